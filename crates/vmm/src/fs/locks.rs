//! Locks of files, shared with the host: flock(2) by the very file that is open, record locks of fcntl(2) by a file for each
//! owner, as those of several owners exclude each other though they came by one.
//!
//! Who asks to wait for a lock is written down here, and asked for again: at once when the guest gives one back, else every
//! few milliseconds, as nobody tells when the host does. So no thread waits, and the guest's other requests pass.
//! A driver of virtio-fs sends no interrupts: a signal does not end such a wait before the lock is there.
//!
//! Sources: fuse.h (`struct fuse_lk_in`); fcntl(2), "Open file description locks".

use super::nodes::Kind;
use super::wire::{Header, Reader, Writer};
use super::{Done, Server, refusal};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// FUSE_LK_FLOCK: of flock(2).
const WHOLE: u32 = 1;
/// How many may wait at a time: each has a place in the guest's queue, and those who give locks back need some, too.
pub(super) const MOST_WAITING: usize = 32;
/// How often is looked whether the host has given one back.
const LOOK: Duration = Duration::from_millis(20);

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    handle: u64,
    owner: u64,
    start: u64,
    /// The last byte; `i64::MAX` is the end of the file, wherever that is.
    end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    kind: libc::c_short,
    whole: bool,
}

impl Wanted {
    fn read(from: &mut Reader<'_>) -> Done<Self> {
        let (handle, owner) = (from.u64()?, from.u64()?);
        let (start, end) = (from.u64()?, from.u64()?);
        let kind = from.u32()?;
        from.skip(4)?;
        let whole = from.u32()? & WHOLE != 0;
        let kind = match i32::try_from(kind) {
            Ok(libc::F_RDLCK) => libc::F_RDLCK,
            Ok(libc::F_WRLCK) => libc::F_WRLCK,
            Ok(libc::F_UNLCK) => libc::F_UNLCK,
            _ => return Err(Errno::INVAL),
        };
        if start > end || end > i64::MAX as u64 {
            return Err(Errno::INVAL);
        }
        Ok(Self { handle, owner, start, end, kind: kind as libc::c_short, whole })
    }

    fn is_release(&self) -> bool {
        i32::from(self.kind) == libc::F_UNLCK
    }

    /// As fcntl(2) has it.
    fn record(&self) -> libc::flock {
        let to_the_end = self.end == i64::MAX as u64;
        libc::flock {
            l_type: self.kind,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: self.start as i64,
            // No more than `i64::MAX`.
            l_len: if to_the_end { 0 } else { (self.end - self.start + 1) as i64 },
            l_pid: 0,
        }
    }
}

fn record_lock(fd: BorrowedFd<'_>, command: libc::c_int, record: &mut libc::flock) -> Done {
    // SAFETY: the commands are F_OFD_GETLK and F_OFD_SETLK, which read and write one `struct flock`, alive for the call.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut *record) } {
        0.. => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// Who waits, by the numbers of their requests.
#[derive(Default)]
pub struct Queue {
    list: Mutex<List>,
    /// Somebody came, or a lock was given back.
    news: Condvar,
}

#[derive(Default)]
struct List {
    waiting: Vec<(u64, u64, Wanted)>,
    ended: bool,
}

impl Queue {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody who waits is there any more.
    pub fn clear(&self) {
        self.list().waiting.clear();
    }

    /// Ends [`Server::wait_for_locks`].
    pub fn end(&self) {
        self.list().ended = true;
        self.news.notify_all();
    }
}

impl Server {
    /// FUSE_GETLK: what is in the way, if anything.
    pub(super) fn get_lock(&self, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let wanted = Wanted::read(from)?;
        let mut record = wanted.record();
        let holder = self.holder(&wanted)?;
        record_lock(holder.as_fd(), libc::F_OFD_GETLK, &mut record)?;
        let end = match record.l_len {
            0 => i64::MAX as u64,
            length => (record.l_start as u64).saturating_add(length as u64).saturating_sub(1),
        };
        // No process of the guest's.
        to.u64(record.l_start as u64).u64(end).u32(record.l_type as u32).u32(0);
        Ok(())
    }

    /// FUSE_SETLK, and with `wait` FUSE_SETLKW; false if it is answered later.
    pub(super) fn set_lock(
        &self,
        number: u64,
        header: &Header,
        from: &mut Reader<'_>,
        wait: bool,
    ) -> Done<bool> {
        let wanted = Wanted::read(from)?;
        match self.try_lock(&wanted) {
            Err(Errno::AGAIN) if wait => {
                let mut list = self.locks.list();
                if list.waiting.len() >= MOST_WAITING {
                    return Err(Errno::NOLCK);
                }
                list.waiting.push((number, header.unique, wanted));
                self.locks.news.notify_one();
                Ok(false)
            }
            done => {
                if wanted.is_release() {
                    self.locks.news.notify_one();
                }
                done.map(|()| true)
            }
        }
    }

    fn try_lock(&self, wanted: &Wanted) -> Done {
        if wanted.whole {
            let file = self.nodes().file(wanted.handle)?;
            let operation = match i32::from(wanted.kind) {
                libc::F_RDLCK => FlockOperation::NonBlockingLockShared,
                libc::F_WRLCK => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::Unlock,
            };
            flock(&file.fd, operation)?;
            file.locked();
            return Ok(());
        }
        let node = self.nodes().node_of(wanted.handle)?;
        if wanted.is_release() && self.nodes().holder(node, wanted.owner).is_none() {
            return Ok(());
        }
        let holder = self.holder(wanted)?;
        match record_lock(holder.as_fd(), libc::F_OFD_SETLK, &mut wanted.record()) {
            Err(Errno::ACCESS) => Err(Errno::AGAIN),
            Err(e) => Err(e),
            Ok(()) => self.nodes().hold(node, wanted.owner, wanted.handle, holder),
        }
    }

    /// The file by which an owner has its record locks.
    fn holder(&self, wanted: &Wanted) -> Done<Arc<OwnedFd>> {
        let node = {
            let nodes = self.nodes();
            let node = nodes.node_of(wanted.handle)?;
            if let Some(holder) = nodes.holder(node, wanted.owner) {
                return Ok(holder);
            }
            node
        };
        // Of what can only be read there are only locks to read.
        let opened =
            self.open_regular(node, OFlags::RDWR).or_else(|_| self.open_regular(node, OFlags::RDONLY));
        opened.map(Arc::new).map_err(|e| if e == Errno::STALE { Errno::NOLCK } else { e })
    }

    /// FUSE_FLUSH: an owner closes one of its files, and so gives its record locks of it back, as fcntl(2) has it.
    pub(super) fn flush(&self, from: &mut Reader<'_>) -> Done {
        let handle = from.u64()?;
        from.skip(8)?;
        let owner = from.u64()?;
        let mut nodes = self.nodes();
        if let Ok(node) = nodes.node_of(handle)
            && nodes.let_go(node, owner)
        {
            drop(nodes);
            self.locks.news.notify_one();
        }
        Ok(())
    }

    /// FUSE_RELEASE: nobody has it open any more.
    pub(super) fn release(&self, from: &mut Reader<'_>) -> Done {
        let handle = from.u64()?;
        let released = self.nodes().release(handle)?;
        if released.kind != Kind::Directory && released.was_locked() {
            // Another one may keep it open, by which its node is found.
            let _ = flock(&released.fd, FlockOperation::Unlock);
            self.locks.news.notify_one();
        }
        Ok(())
    }

    /// Answers those who wait for locks, by `say`, until [`Queue::end`].
    pub(super) fn wait_for_locks(&self, say: impl Fn(u64, Vec<u8>)) {
        let mut list = self.locks.list();
        while !list.ended {
            if list.waiting.is_empty() {
                list = self.locks.news.wait(list).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // Nobody else takes one out of the list meanwhile, but who clears it.
            let waiting = std::mem::take(&mut list.waiting);
            drop(list);
            let mut still = Vec::new();
            for (number, unique, wanted) in waiting {
                match self.try_lock(&wanted) {
                    Err(Errno::AGAIN) => still.push((number, unique, wanted)),
                    Ok(()) => say(number, Writer::new().finish(unique)),
                    Err(e) => say(number, refusal(unique, e)),
                }
            }
            list = self.locks.list();
            // In the order in which they came.
            still.append(&mut list.waiting);
            list.waiting = still;
            if !list.waiting.is_empty() {
                let waited = self.locks.news.wait_timeout(list, LOOK);
                list = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}
