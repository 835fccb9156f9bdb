//! What of the host's files a microVM mounts, and the process that serves them to it by virtio-fs.
//!
//! ```text
//! monitor ─ clones ─► server: a mount namespace of its own whose root has 0, 1, 2 … , the shared directories and files;
//!    │                  then our program, executed anew
//!    └─ the other end of its socket ─► the machine's device, which ends it by hanging up
//! ```
//!
//! The server is root, as files of the host get owners and modes: so what it cannot name, it cannot reach. The mounts
//! themselves are read-only where they shall be, and follow no links and open no devices. [`vmm::fs`] does the rest.

use crate::container::mounts::tree;
use crate::container::options::Options;
use crate::container::running;
use crate::container::step::Step;
use crate::container::wire::{Heard, Wire, Word};
use crate::hull::HullError;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use sys::clone::{Child, ns};
use sys::mount::{Change, attach, attr, new_filesystem, propagation, set_attributes};
use types::oci;

/// The verb by which our program becomes the server.
pub const SHARES_VERB: &CStr = c"shares";
/// All that the server runs in, of its own.
const NAMESPACES: u64 = ns::MOUNT | ns::PID | ns::NET | ns::IPC | ns::UTS | ns::CGROUP;
/// What the server's mounts are never used for.
const WALLS: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC | attr::NOSYMFOLLOW;

/// A directory or a regular file of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    source: PathBuf,
    /// With what is mounted below.
    recursive: bool,
    read_only: bool,
    options: Options,
}

impl Share {
    /// What a binding of the specification asks for.
    pub(super) fn of(source: PathBuf, mount: &oci::Mount) -> Self {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default());
        Self { source, recursive: options.bind.unwrap_or(false), read_only: options.readonly(), options }
    }

    /// A copy of the mount, as the server is to have it, and whether it is a directory.
    fn tree(&self) -> Result<(OwnedFd, bool), HullError> {
        let named = || format!("bind {}", self.source.display());
        let tree = tree(&self.source, &self.options, self.recursive)?;
        let kind = FileType::from_raw_mode(fstat(&tree).step(named)?.st_mode);
        if !matches!(kind, FileType::Directory | FileType::RegularFile) {
            return Err(HullError::Unsupported(format!(
                "{} cannot be mounted into a microVM: only directories and regular files can",
                self.source.display()
            )));
        }
        let set = if self.read_only { WALLS | attr::RDONLY } else { WALLS };
        let change = Change { set, propagation: propagation::PRIVATE, ..Change::default() };
        set_attributes(&tree, true, change).step(named)?;
        Ok((tree, kind == FileType::Directory))
    }
}

/// The process that serves; ended when this is dropped.
pub(super) struct Server(Child);

impl Server {
    /// Starts it, and gives the socket for the machine's device. This process must have but one thread.
    pub(super) fn start(shares: &[Share]) -> Result<(Self, OwnedFd), HullError> {
        let trees = shares.iter().map(Share::tree).collect::<Result<Vec<_>, _>>()?;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (device, own) = pair.step(|| "make a socket pair".into())?;
        let (ours, theirs) = Wire::pair().step(|| "make a socket pair".into())?;
        let open = |path: &str, flags| {
            openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()).step(|| format!("open {path}"))
        };
        let (program, null) = (open("/proc/self/exe", OFlags::PATH)?, open("/dev/null", OFlags::RDWR)?);
        let args = [c"dhow".to_owned(), SHARES_VERB.to_owned()];
        let child = sys::clone::spawn(NAMESPACES, None, || {
            let mut keep = vec![own.as_fd(), theirs.as_fd(), program.as_fd(), null.as_fd()];
            keep.extend(trees.iter().map(|(tree, _)| tree.as_fd()));
            if sys::process::close_all_but(&keep).is_err() {
                return 125;
            }
            sys::process::reset_signals();
            let furnished = furnish(&trees)
                .and_then(|()| sys::process::set_stdio([own.as_fd(), null.as_fd(), null.as_fd()]));
            if let Err(e) = furnished.step(|| "make the root of the server of directories".into()) {
                theirs.say_failed(e);
                return 125;
            }
            if theirs.say(Word::Ready).is_ok() {
                // All other descriptors end here: those of mounts would keep them busy.
                sys::process::execve_fd(program.as_fd(), &args, &[]);
            }
            125
        });
        let server = Self(child.step(|| "create the server of directories".into())?);
        drop((own, theirs));
        match ours.hear().step(|| "listen to the server of directories".into())? {
            Heard::Ready(_) => Ok((server, device)),
            Heard::Failed(e) => Err(e),
            Heard::Closed | Heard::Born(_) | Heard::Stopped => Err(running::ended_early(&server.0.pidfd)),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = sys::process::pidfd_signal(&self.0.pidfd, 9);
        let _ = running::reap(&self.0.pidfd);
    }
}

/// The whole life of the server's process once it is executed; returns its exit code. Nothing is in its memory but what it
/// serves.
pub fn serve() -> i32 {
    let served = || -> Result<(), Box<dyn std::error::Error>> {
        rustix::thread::set_name(c"dhow-shares")?;
        let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(std::io::stdout())?;
        let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(vmm::fs::serve(&socket, root)?)
    };
    i32::from(served().is_err())
}

/// Makes a root of nothing but the trees, by their numbers, the only one there is.
fn furnish(trees: &[(OwnedFd, bool)]) -> std::io::Result<()> {
    let top = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    set_attributes(&top, true, Change::propagation(propagation::PRIVATE))?;
    let root = new_filesystem("tmpfs", Some("shares"), ["mode=0555", "size=1m"], WALLS)?;
    attach(&root, &top)?;
    let handle = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for (number, (tree, directory)) in trees.iter().enumerate() {
        let name = number.to_string();
        match directory {
            true => mkdirat(&root, &name, Mode::RWXU)?,
            false => {
                drop(openat(&root, &name, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RWXU)?)
            }
        }
        attach(tree, openat(&root, &name, handle, Mode::empty())?)?;
    }
    set_attributes(&root, false, Change::set(WALLS | attr::RDONLY))?;
    sys::mount::pivot(&root)
}
