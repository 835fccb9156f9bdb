//! A volume's disk becomes larger while a microVM has it.
//!
//! ```text
//! limit of the hypervisor's files ─► the file ─► the hypervisor, which tells its guest ─► the agent: the filesystem
//! ```
//!
//! Whoever is killed on the way leaves a disk that is larger than its filesystem, which does no harm: the next one who
//! mounts it, or asks again, lets the filesystem have it.

use super::limits::Orders;
use super::monitor::user;
use super::{DIR, spec};
use crate::files::{FilesError, Work};
use crate::vm::Files;
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid, prlimit};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use types::{ErrorKind, Kinded};

/// What is to grow.
#[derive(Debug)]
pub struct Growth<'a> {
    /// Full id of the container.
    pub id: &'a str,
    /// Its main process.
    pub monitor: i32,
    /// Its run directory.
    pub run: &'a Path,
    /// How many layers it has.
    pub layers: usize,
    /// The number of the volume among those that are disks.
    pub volume: usize,
    /// The disk's file, open to be written.
    pub file: &'a File,
    /// What the disk is to have.
    pub bytes: u64,
}

/// Why a disk did not grow, or its filesystem did not.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The hypervisor could not be told.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The guest has a larger disk, and a filesystem of its old size.
    #[error(
        "the disk has grown, and the filesystem on it has not: {0}; it does when the microVM starts again"
    )]
    Guest(#[source] FilesError),
}

impl Kinded for GrowError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Host { .. } => ErrorKind::Unavailable,
            Self::Guest(e) => e.kind(),
        }
    }
}

impl Growth<'_> {
    /// Carries it out.
    pub fn carry_out(&self) -> Result<(), GrowError> {
        let failed = |action| move |source: io::Error| GrowError::Host { action, source };
        let now = self.file.metadata().map_err(failed("look at the disk"))?.len();
        if now < self.bytes {
            self.raise_limit().map_err(failed("let the hypervisor's files grow"))?;
            let longer = self.file.set_len(self.bytes).and_then(|()| self.file.sync_all());
            longer.map_err(failed("make the disk larger"))?;
        }
        let disk = spec::disk(self.layers, self.volume);
        let orders = Orders::connect(&self.run.join(DIR));
        let told = orders.and_then(|mut orders| orders.grow(self.volume, disk, self.bytes));
        told.map_err(failed("tell the hypervisor"))?;
        let number = u32::try_from(self.volume).unwrap_or(u32::MAX);
        let work = Work::Grow { volume: number, bytes: self.bytes };
        Files::of(self.run, 0).order(work).map_err(GrowError::Guest)
    }

    /// The hypervisor has no system call by which to raise its own limits. Who is another user and lacks CAP_SYS_RESOURCE
    /// cannot raise them either; so a thread becomes the same user.
    fn raise_limit(&self) -> io::Result<()> {
        let (id, bytes, hypervisor) = (user(self.id), self.bytes, self.hypervisor()?);
        let now = largest_file(hypervisor)?;
        if now.current.is_none_or(|current| current >= bytes) {
            return Ok(());
        }
        let wanted = Rlimit { current: Some(bytes), ..now };
        let raise = move || -> io::Result<()> {
            let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            Ok(prlimit(Some(hypervisor), Resource::Fsize, wanted).map(drop)?)
        };
        let thread = std::thread::Builder::new().name("limits".into()).spawn(raise)?;
        thread.join().map_err(|_| io::Error::other("a thread has panicked"))?
    }

    /// The child of the monitor that has become its user.
    fn hypervisor(&self) -> io::Result<Pid> {
        let id = user(self.id).to_string();
        let is_it = |pid: &&str| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
            line.is_some_and(|ids| ids.split_whitespace().all(|one| one == id))
        };
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.monitor))?;
        let pid = children.split_whitespace().find(is_it).and_then(|pid| Pid::from_raw(pid.parse().ok()?));
        pid.ok_or_else(|| io::Error::other("it has ended"))
    }
}

/// The limits of a process's files, of which prlimit(2) tells only with an order; proc_pid_limits(5).
fn largest_file(pid: Pid) -> io::Result<Rlimit> {
    let text = fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_nonzero()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max file size"));
    let mut words = line.unwrap_or_default().split_whitespace();
    let mut number = || match words.next() {
        Some("unlimited") => Ok(None),
        word => word.and_then(|word| word.parse().ok()).map(Some).ok_or(io::ErrorKind::InvalidData),
    };
    Ok(Rlimit { current: number()?, maximum: number()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are() {
        let told = largest_file(rustix::process::getpid()).unwrap();
        assert_eq!(told, rustix::process::getrlimit(Resource::Fsize));
    }
}
