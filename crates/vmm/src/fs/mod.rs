//! The server of the host's directories that a guest mounts by virtio-fs: FUSE requests in, answers out.
//!
//! ```text
//! guest's kernel ─queue─► devices::fs (VMM, or beside QEMU) ─socket─► this, in a process of its own ─► the directories
//! ```
//!
//! The process that serves can write files as root, as a container's own bindings can; so it has nothing else. The caller
//! gives it a mount namespace whose root has the shared directories and files as its only entries, read-only where they
//! are to be, and [`serve()`] leaves it a few capabilities and system calls. It never has the guest's memory: requests
//! are copied to it, one datagram each, and answers back.
//!
//! The guest is hostile. A request is bytes of which nothing is believed; a name is one component that leads down; no
//! symbolic link is followed here, as that is the guest's own business; nothing but regular files and directories is
//! opened. What the guest can make this process keep is bounded.
//!
//! Sources: the kernel's Documentation/filesystems/fuse.rst and include/uapi/linux/fuse.h; VIRTIO 1.2, section 5.11.

mod data;
mod jail;
mod locks;
mod names;
mod nodes;
mod serve;
#[cfg(test)]
mod tests;
mod wire;
mod xattr;

pub(crate) use serve::NUMBER;
pub use serve::{ServeError, serve};
pub(crate) use wire::{OUT_HEADER, refusal};

use nodes::{Handle, Identity, Nodes};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::{Header, Reader, Writer, init, op};

/// Most data of one read or write: what a driver asks for that does not know FUSE_MAX_PAGES, 32 pages.
pub const MOST_DATA: usize = 128 << 10;
/// Longest request: data, or the value of an extended attribute, with its header, names and arguments.
pub const LONGEST: usize = MOST_DATA + (4 << 10);
/// How long the guest may take what it was told of a file for true, in nanoseconds: the host changes files, too.
const VALID_NS: u32 = 500_000_000;

type Done<T = ()> = Result<T, Errno>;

/// Never a link on the way, never out of the root.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// What is asked of a file.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID);

/// Files beneath a directory.
pub struct Server {
    root: OwnedFd,
    nodes: Mutex<Nodes>,
    /// Who waits for locks.
    locks: locks::Queue,
}

/// A node as a descriptor.
enum Reached {
    /// Found by its path.
    Found(OwnedFd),
    /// It has no path any more, and is open.
    Open(Arc<Handle>),
}

impl AsFd for Reached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Found(fd) => fd.as_fd(),
            Self::Open(handle) => handle.fd.as_fd(),
        }
    }
}

impl Server {
    /// Serves what is in the directory `root`; the guest may have as many files open as `handles` says.
    pub fn new(root: OwnedFd, handles: usize) -> std::io::Result<Self> {
        let found = look(&root)?;
        let nodes = Mutex::new(Nodes::new(Identity::of(&found), handles));
        Ok(Self { root, nodes, locks: locks::Queue::default() })
    }

    /// Carries a request out. None has an answer to which there is none: those that forget and interrupt, and those that
    /// wait for a lock.
    pub fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        self.answer_numbered(0, request)
    }

    /// The same of a request that is known by a number, by which those are answered who wait for a lock.
    fn answer_numbered(&self, number: u64, request: &[u8]) -> Option<Vec<u8>> {
        let mut reader = Reader::new(request);
        let header = match reader.header() {
            Ok(header) => header,
            Err(e) => return Some(refusal(0, e)),
        };
        let mut answer = Writer::new();
        let done = match header.opcode {
            op::FORGET => {
                let _ = self.forget(header.node, &mut reader);
                return None;
            }
            op::BATCH_FORGET => {
                let _ = self.forget_many(&mut reader);
                return None;
            }
            // Requests are too short to be interrupted, and no driver of virtio-fs does it where they are not.
            op::INTERRUPT => return None,
            op::SETLK | op::SETLKW => {
                match self.set_lock(number, &header, &mut reader, header.opcode == op::SETLKW) {
                    Ok(false) => return None,
                    done => done.map(drop),
                }
            }
            _ => self.dispatch(&header, &mut reader, &mut answer),
        };
        Some(match done {
            Ok(()) => answer.finish(header.unique),
            Err(e) => refusal(header.unique, e),
        })
    }

    fn dispatch(&self, header: &Header, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let node = header.node;
        match header.opcode {
            op::INIT => self.init(from, to),
            op::DESTROY => {
                self.locks.clear();
                self.nodes().clear();
                Ok(())
            }
            op::LOOKUP => self.lookup(node, from, to),
            op::GETATTR => self.get_attributes(node, from, to),
            op::SETATTR => self.set_attributes(node, from, to),
            op::READLINK => self.read_link(node, to),
            op::SYMLINK => self.symlink(header, from, to),
            op::MKNOD => self.make_node(header, from, to),
            op::MKDIR => self.make_directory(header, from, to),
            op::UNLINK => self.remove(node, from, AtFlags::empty()),
            op::RMDIR => self.remove(node, from, AtFlags::REMOVEDIR),
            op::RENAME => self.rename(node, from, false),
            op::RENAME2 => self.rename(node, from, true),
            op::LINK => self.link(node, from, to),
            op::STATFS => {
                to.statfs(&rustix::fs::fstatvfs(self.reach(node)?)?);
                Ok(())
            }
            op::OPEN => self.open(node, from, to),
            op::CREATE => self.create(header, from, to),
            op::READ => self.read(from, to),
            op::WRITE => self.write(from, to),
            op::FSYNC => self.sync(from, false),
            op::FSYNCDIR => self.sync(from, true),
            op::RELEASE | op::RELEASEDIR => self.release(from),
            op::FLUSH => self.flush(from),
            op::GETLK => self.get_lock(from, to),
            op::FALLOCATE => self.allocate(from),
            op::LSEEK => self.seek(from, to),
            op::OPENDIR => self.open_directory(node, to),
            op::READDIR => self.read_directory(from, to, false),
            op::READDIRPLUS => self.read_directory(from, to, true),
            op::SETXATTR => self.set_xattr(node, from),
            op::GETXATTR => self.get_xattr(node, from, to),
            op::LISTXATTR => self.list_xattrs(node, from, to),
            op::REMOVEXATTR => self.remove_xattr(node, from),
            // The driver does without, and does not ask again.
            _ => Err(Errno::NOSYS),
        }
    }

    /// A driver that begins, and knows nothing of what another had.
    fn init(&self, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let (major, _minor, ahead, offered) = (from.u32()?, from.u32()?, from.u32()?, from.u32()?);
        if major < wire::MAJOR {
            return Err(Errno::PROTO);
        }
        self.locks.clear();
        self.nodes().clear();
        let wanted = init::ASYNC_READ
            | init::POSIX_LOCKS
            | init::FLOCK_LOCKS
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::PARALLEL_DIROPS
            | init::HANDLE_KILLPRIV_V2;
        to.u32(wire::MAJOR).u32(wire::MINOR).u32(ahead.min(MOST_DATA as u32)).u32(offered & wanted);
        // Requests in the background, and from how many on the guest holds back; times have nanoseconds.
        to.u16(64).u16(48).u32(MOST_DATA as u32).u32(1).zeros(36);
        Ok(())
    }

    fn forget(&self, node: u64, from: &mut Reader<'_>) -> Done {
        let lookups = from.u64()?;
        self.nodes().forget(node, lookups);
        Ok(())
    }

    fn forget_many(&self, from: &mut Reader<'_>) -> Done {
        let count = from.u32()?;
        from.skip(4)?;
        // Ends with the request, whatever it says.
        for _ in 0..count {
            let (node, lookups) = (from.u64()?, from.u64()?);
            self.nodes().forget(node, lookups);
        }
        Ok(())
    }

    /// Nobody asks any more.
    fn end(&self) {
        self.locks.end();
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a node by its path, if it still is what is there.
    fn open_as(&self, node: u64, flags: OFlags) -> Done<OwnedFd> {
        let place = self.nodes().place(node)?;
        self.open_at(&place, flags)
    }

    fn open_at(&self, place: &nodes::Place, flags: OFlags) -> Done<OwnedFd> {
        // With NONBLOCK nobody waits at a FIFO that took a file's place.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // O_PATH goes with few others.
        let flags = if flags.contains(OFlags::PATH) {
            flags & (OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)
        } else {
            flags
        };
        let fd = openat2(&self.root, &place.path, flags, Mode::empty(), BENEATH).map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Errno::STALE,
            e => e,
        })?;
        if Identity::of(&look(&fd)?) == place.identity { Ok(fd) } else { Err(Errno::STALE) }
    }

    /// A node, to look at it and to change its attributes.
    fn reach(&self, node: u64) -> Done<Reached> {
        let place = self.nodes().place(node)?;
        match (self.open_at(&place, OFlags::PATH), place.file) {
            (Err(Errno::STALE), Some(file)) => Ok(Reached::Open(file)),
            (found, _) => found.map(Reached::Found),
        }
    }

    /// A directory, to do something to an entry of it.
    fn directory(&self, node: u64) -> Done<OwnedFd> {
        self.open_as(node, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// `struct fuse_entry_out` for what has this name in a directory; the driver then has the node once more.
    fn entry(&self, parent: u64, directory: BorrowedFd<'_>, name: &[u8], to: &mut Writer) -> Done<u64> {
        let found = look_at(directory, name)?;
        let mut nodes = self.nodes();
        let node = nodes.found(parent, name, Identity::of(&found))?;
        let inode = nodes.shown(&found);
        drop(nodes);
        // Generation, and how long name and attributes are valid: seconds, then nanoseconds.
        to.u64(node).u64(0).u64(0).u64(0).u32(VALID_NS).u32(VALID_NS).attributes(inode, &found);
        Ok(node)
    }

    /// `struct fuse_attr_out`.
    fn attributes(&self, found: &Statx, to: &mut Writer) {
        let inode = self.nodes().shown(found);
        to.u64(0).u32(VALID_NS).u32(0).attributes(inode, found);
    }
}

/// What a descriptor is of.
fn look(fd: impl AsFd) -> Done<Statx> {
    statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, WANTED)
}

/// What has this name in a directory.
fn look_at(directory: impl AsFd, name: &[u8]) -> Done<Statx> {
    statx(directory, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, WANTED)
}

/// Makes something that belongs to who asks for it, with root's rights in the directory: the guest has decided already
/// who may.
fn as_caller<T>(header: &Header, make: impl FnOnce() -> Done<T>) -> Done<T> {
    if (header.uid, header.gid) == (0, 0) {
        return make();
    }
    sys::fsids::as_owner(header.uid, header.gid, make).map_err(|_| Errno::PERM)?
}

/// Changes what a file holds. With `plain` as somebody who cannot keep its set-user-ID and set-group-ID bits, as most in a
/// guest cannot; that the server sees to it (FUSE_HANDLE_KILLPRIV_V2) spares a request before each write.
fn as_plain<T>(plain: bool, change: impl FnOnce() -> Done<T>) -> Done<T> {
    if !plain {
        return change();
    }
    let all = capabilities(None)?;
    let fewer = CapabilitySets { effective: all.effective - CapabilitySet::FSETID, ..all };
    set_capabilities(None, fewer)?;
    let done = change();
    set_capabilities(None, all)?;
    done
}
