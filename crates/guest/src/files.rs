//! The workload's files, for the host: [`sandbox::files`].
//!
//! A process of its own, made before PID 1 becomes the supervisor, which clones itself and must have but one thread. It
//! sees the workload's mounts by `/proc/PID/root`, as the host does with a container, and resolves every path beneath.

use crate::disks::{self, LOWERS, UPPER};
use crate::serve::STATE;
use crate::{Error, Result, Told, processes};
use rootfs::{RootfsError, UnpackOptions};
use sandbox::boot;
use sandbox::files::{Answer, IDLE, Receiver, Request, Sender, Stat, VERSION, Work, changes, failure};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use sys::Root;
use types::{ErrorKind, Kinded, RunState};

/// Connections at a time; more are closed.
const MOST: usize = 16;
/// Pieces that a stream is sent in.
const PIECE: usize = 60 << 10;
/// How long the workload may take to stand still.
const FREEZE_WAIT: Duration = Duration::from_secs(10);

/// What the service works on.
pub struct Files {
    /// The mounted root, without the workload's own mounts.
    pub root: OwnedFd,
    /// The workload's cgroup.
    pub cgroup: PathBuf,
}

/// Starts the service.
pub fn start(listener: OwnedFd, files: Files) -> Result<()> {
    let body = || {
        let keep = [listener.as_fd(), files.root.as_fd()];
        if sys::process::close_all_but(&keep).is_err() {
            return 1;
        }
        // What a tar says of modes is what files get.
        rustix::process::umask(rustix::fs::Mode::empty());
        let duplicate = |fd: &OwnedFd| fd.try_clone();
        let (Ok(root), Ok(listener)) = (duplicate(&files.root), duplicate(&listener)) else { return 1 };
        serve(&listener, &Arc::new(Files { root, cgroup: files.cgroup.clone() }));
        1
    };
    sys::clone::spawn(0, None, body).map(drop).told("create the process that serves the files")
}

fn serve(listener: &OwnedFd, files: &Arc<Files>) {
    let busy = Arc::new(AtomicUsize::new(0));
    while let Ok(socket) = sys::vsock::accept(listener) {
        if busy.fetch_add(1, Ordering::SeqCst) >= MOST {
            busy.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (files, freed) = (files.clone(), busy.clone());
        let work = move || {
            // The host sees it as a connection that broke, and there is nobody else to tell.
            let _ = files.converse(UnixStream::from(socket));
            freed.fetch_sub(1, Ordering::SeqCst);
        };
        if std::thread::Builder::new().name("files".into()).spawn(work).is_err() {
            busy.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Why work on files failed.
enum Failed {
    Files(RootfsError),
    Other(Error),
}

impl From<RootfsError> for Failed {
    fn from(e: RootfsError) -> Self {
        Self::Files(e)
    }
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Self::Other(e)
    }
}

impl Kinded for Failed {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Files(e) => e.kind(),
            Self::Other(_) => ErrorKind::Internal,
        }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Files(e) => e.fmt(f),
            Self::Other(e) => e.fmt(f),
        }
    }
}

type Done<T = ()> = std::result::Result<T, Failed>;

impl Files {
    fn converse(&self, mut host: UnixStream) -> io::Result<()> {
        host.set_read_timeout(Some(IDLE))?;
        host.set_write_timeout(Some(IDLE))?;
        let request: Request = boot::read(&mut host)?;
        if request.version != VERSION {
            let what = format!(
                "the guest's agent speaks version {VERSION} of files, the host {}: restart the microVM",
                request.version
            );
            return answer(&mut host, Err(Failed::Other(Error(what))));
        }
        match request.work {
            Work::Stat { path } => document(&mut host, self.stat(&os(path))),
            Work::Processes => document(&mut host, processes::list(&self.cgroup).map_err(Failed::from)),
            Work::Grow { volume, bytes } => {
                answer(&mut host, disks::grow_volume(volume, bytes).map_err(Failed::from))
            }
            Work::Pack { path, rename } => {
                let rename = rename.map(os);
                stream(host, |out| {
                    Ok(rootfs::pack(&self.root()?, Path::new(&os(path)), rename.as_deref(), out)?)
                })
            }
            Work::Export => stream(host, |out| Ok(rootfs::export(&self.root()?, out)?)),
            Work::Changes => stream(host, |out| {
                let list = rootfs::changes_between(Path::new(UPPER), image()?.as_fd())?;
                Ok(changes::write(&list, out).map_err(|source| RootfsError::Output { source })?)
            }),
            Work::Layer { freeze } => {
                let frozen = if freeze { Frozen::new(&self.cgroup) } else { Ok(None) };
                stream(host, |out| {
                    let _frozen = frozen?;
                    Ok(rootfs::archive_changes_between(Path::new(UPPER), image()?.as_fd(), out)?)
                })
            }
            Work::Unpack { dir, strict, owner } => {
                let options =
                    UnpackOptions { no_overwrite_dir_non_dir: strict, owner, ..UnpackOptions::default() };
                self.unpack(host, &os(dir), &options)
            }
        }
    }

    /// The workload's own root, with all that it has mounted; before it runs, and where none shall, the disks'.
    fn root(&self) -> Result<Root> {
        let state = fs::read(Path::new(STATE).join("state.json")).unwrap_or_default();
        let state: RunState = serde_json::from_slice(&state).unwrap_or_default();
        if state.pid > 0
            && let Ok(root) = Root::open(format!("/proc/{}/root", state.pid))
            && sys::host::is_running(state.pid, state.pid_start)
        {
            return Ok(root);
        }
        Ok(Root::from_fd(self.root.try_clone().told("duplicate a descriptor")?))
    }

    fn stat(&self, path: &OsStr) -> Done<Stat> {
        let found = rootfs::stat(&self.root()?, Path::new(path))?;
        Ok(Stat {
            size: found.size,
            mode: found.mode,
            mtime_ns: found.mtime_ns,
            link_target: found.link_target,
        })
    }

    fn unpack(&self, mut host: UnixStream, dir: &OsStr, options: &UnpackOptions) -> io::Result<()> {
        let root = match self.root() {
            Ok(root) => root,
            Err(e) => return answer(&mut host, Err(e.into())),
        };
        // Opened before, so that it tells of each error from here on.
        let disks = match disks::written_to() {
            Ok(disks) => disks,
            Err(e) => return answer(&mut host, Err(e.into())),
        };
        answer(&mut host, Ok(()))?;
        let mut tar = Receiver::new(host.try_clone()?, u64::MAX);
        let unpacked = rootfs::unpack(&root, Path::new(dir), &mut tar, options).map_err(Failed::from);
        match unpacked {
            Ok(()) => {
                // Without the host's word that it was all, it was not.
                let whole = tar.drain().map_err(|source| Failed::Files(RootfsError::Tar { source }));
                answer(&mut host, whole.and_then(|()| Ok(written_out(&disks)?)))
            }
            Err(e) => {
                answer(&mut host, Err(e))?;
                // The answer would be lost if what comes meanwhile were not read.
                tar.drain()
            }
        }
    }
}

/// Waits until what was written is on the disks. Before that nobody knows whether the host has room for it (syncfs(2)).
pub fn written_out(disks: &[fs::File]) -> Result<()> {
    disks.iter().try_for_each(|disk| rustix::fs::syncfs(disk).told("write the files to the microVM's disk"))
}

fn os(bytes: Vec<u8>) -> OsString {
    OsString::from_vec(bytes)
}

/// The layers alone.
fn image() -> Result<OwnedFd> {
    let lowers = fs::read_to_string(LOWERS).told("read the list of layers")?;
    if !lowers.contains(':') {
        // Overlayfs wants two where nothing is written.
        return Ok(fs::File::open(&lowers).told("open the layer")?.into());
    }
    let options = [format!("lowerdir={lowers}")];
    sys::mount::new_filesystem("overlay", Some("image"), options.iter().map(String::as_str), 0)
        .told("mount the image")
}

fn answer(host: &mut UnixStream, done: Done) -> io::Result<()> {
    let word = match done {
        Ok(()) => Answer::Accepted,
        Err(e) => Answer::Failed(failure(&e)),
    };
    boot::write(host, &word)
}

fn document(host: &mut UnixStream, made: Done<impl serde::Serialize>) -> io::Result<()> {
    match made {
        Ok(document) => {
            answer(host, Ok(()))?;
            boot::write(host, &document)
        }
        Err(e) => answer(host, Err(e)),
    }
}

fn stream(mut host: UnixStream, work: impl FnOnce(&mut dyn Write) -> Done) -> io::Result<()> {
    answer(&mut host, Ok(()))?;
    let mut out = BufWriter::with_capacity(PIECE, Sender::new(host));
    match work(&mut out) {
        Ok(()) => out.into_inner().map_err(io::IntoInnerError::into_error)?.finish(),
        Err(e) => out.into_parts().0.fail(&failure(&e)),
    }
}

/// The workload stands still until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    /// None where no workload runs.
    fn new(cgroup: &Path) -> Result<Option<Self>> {
        let file = cgroup.join("cgroup.freeze");
        if !file.exists() {
            return Ok(None);
        }
        let frozen = Self(file);
        fs::write(&frozen.0, "1").told("freeze the workload")?;
        let begin = Instant::now();
        while !fs::read_to_string(cgroup.join("cgroup.events"))
            .told("look at the cgroup")?
            .contains("frozen 1")
        {
            if begin.elapsed() > FREEZE_WAIT {
                return Err(Error("the workload cannot be frozen: use --pause=false".into()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(frozen))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, "0");
    }
}
