//! The host's side of [`crate::files`].

use super::{DIR, connect};
use crate::boot;
use crate::files::{
    FilesError, IDLE, PATIENCE, PORT, Processes, Receiver, Request, Sender, Stat, VERSION, Work, changes,
    expect_accepted,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;
use types::docker::FilesystemChange;

/// Pieces that streams are copied in.
const PIECE: usize = 60 << 10;

/// The files of one microVM whose agent runs.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
    limit: u64,
}

impl Files {
    /// Of the microVM with this run directory, which is believed to have no more than `limit` bytes in a stream.
    pub fn of(run: &Path, limit: u64) -> Self {
        Self { dir: run.join(DIR), limit }
    }

    fn ask(&self, work: Work) -> Result<UnixStream, FilesError> {
        let mut socket = connect::port(&self.dir, PORT, Instant::now() + PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        boot::write(&mut socket, &Request { version: VERSION, work })?;
        expect_accepted(&mut socket)?;
        socket.set_read_timeout(Some(IDLE))?;
        socket.set_write_timeout(Some(IDLE))?;
        Ok(socket)
    }

    /// Has something done that nothing is told of but that it is done.
    pub(super) fn order(&self, work: Work) -> Result<(), FilesError> {
        self.ask(work).map(drop)
    }

    /// Looks at a path.
    pub fn stat(&self, path: &Path) -> Result<Stat, FilesError> {
        Ok(boot::read(&mut self.ask(Work::Stat { path: bytes(path) })?)?)
    }

    /// Lists the workload's processes.
    pub fn processes(&self) -> Result<Processes, FilesError> {
        Ok(boot::read(&mut self.ask(Work::Processes)?)?)
    }

    /// Writes a path as a tar; the names in it are the guest's.
    pub fn pack(&self, path: &Path, rename: Option<&[u8]>, out: &mut dyn Write) -> Result<(), FilesError> {
        self.receive(Work::Pack { path: bytes(path), rename: rename.map(<[u8]>::to_vec) }, self.limit, out)
    }

    /// Writes everything as a tar.
    pub fn export(&self, out: &mut dyn Write) -> Result<(), FilesError> {
        self.receive(Work::Export, self.limit, out)
    }

    /// Writes what the workload changed as a layer, on request with the workload frozen.
    pub fn layer(&self, freeze: bool, out: &mut dyn Write) -> Result<(), FilesError> {
        self.receive(Work::Layer { freeze }, self.limit, out)
    }

    /// What the workload changed.
    pub fn changes(&self) -> Result<Vec<FilesystemChange>, FilesError> {
        let mut list = Vec::new();
        self.receive(Work::Changes, changes::MAX, &mut list)?;
        Ok(changes::read(&list)?)
    }

    fn receive(&self, work: Work, limit: u64, out: &mut dyn Write) -> Result<(), FilesError> {
        let mut stream = Receiver::new(self.ask(work)?, limit);
        let mut buffer = vec![0; PIECE];
        loop {
            match stream.read(&mut buffer)? {
                0 => return out.flush().map_err(FilesError::Output),
                n => out.write_all(buffer.get(..n).unwrap_or_default()).map_err(FilesError::Output)?,
            }
        }
    }

    /// Unpacks a tar into a directory.
    pub fn unpack(
        &self,
        dir: &Path,
        strict: bool,
        owner: Option<(u32, u32)>,
        tar: &mut dyn Read,
    ) -> Result<(), FilesError> {
        let mut socket = self.ask(Work::Unpack { dir: bytes(dir), strict, owner })?;
        let mut sender = BufWriter::with_capacity(PIECE, Sender::new(socket.try_clone()?));
        let mut buffer = vec![0; PIECE];
        let sent = loop {
            // It says early why it takes no more.
            if has_answer(&socket) {
                break Ok(());
            }
            match tar.read(&mut buffer) {
                Ok(0) => {
                    let ended = sender.into_inner().map_err(io::IntoInnerError::into_error);
                    break ended.and_then(Sender::finish);
                }
                Ok(n) => {
                    if let Err(e) = sender.write_all(buffer.get(..n).unwrap_or_default()) {
                        break Err(e);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let why = crate::files::failure(&FilesError::Input(io::Error::other(e.to_string())));
                    let _ = sender.into_parts().0.fail(&why);
                    return Err(FilesError::Input(e));
                }
            }
        };
        // Its answer says more than a connection that broke.
        match (expect_accepted(&mut socket), sent) {
            (Err(FilesError::Broken(_)), Err(e)) => Err(FilesError::Broken(e)),
            (answered, _) => answered,
        }
    }
}

fn has_answer(socket: &UnixStream) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}
