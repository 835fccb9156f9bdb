//! What the driver refers to: nodes, by numbers that it got from LOOKUP and gives back by FORGET, and open files.
//!
//! A node is remembered by its path below the root and by its identity on the host, and found again for each request: so a
//! hundred thousand of them take memory but no descriptors, and what somebody else moved or replaced is stale instead
//! of wrong.

use rustix::fs::Statx;
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::wire::ROOT;

/// Most nodes. A driver that keeps an inode for each needs some five times the memory that this takes.
const NODES: usize = 1 << 20;
/// Longest path, PATH_MAX of limits.h with its NUL.
const PATH: usize = 4095;
/// File systems whose inode numbers are told apart.
const DEVICES: usize = 0xffff;
/// Where the number of the file system begins in an inode number.
const DEVICE_SHIFT: u32 = 48;

/// What makes a file the same file, seen through the same mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    mount: u64,
    device: u64,
    inode: u64,
    kind: u16,
}

impl Identity {
    pub fn of(found: &Statx) -> Self {
        Self {
            mount: found.stx_mnt_id,
            device: u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor),
            inode: found.stx_ino,
            kind: found.stx_mode & S_IFMT,
        }
    }

    pub fn is(&self, kind: u16) -> bool {
        self.kind == kind
    }
}

/// Bits of a mode that tell the kind of a file, inode(7).
pub const S_IFMT: u16 = 0o170_000;
/// A regular file.
pub const REGULAR: u16 = 0o100_000;
/// A directory.
pub const DIRECTORY: u16 = 0o040_000;

struct Node {
    identity: Identity,
    parent: u64,
    name: Box<[u8]>,
    lookups: u64,
    /// How often it is open, and one of the files: what lost its name is reached by that.
    open: u32,
    file: Option<Arc<Handle>>,
}

/// What is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; with `append`, what is written goes to its end.
    File {
        append: bool,
    },
    Directory,
}

/// An open file or directory.
pub struct Handle {
    pub fd: OwnedFd,
    pub kind: Kind,
    node: u64,
    /// It has had a lock of flock(2).
    locked: AtomicBool,
}

impl Handle {
    /// Notes that it has a lock of flock(2).
    pub fn locked(&self) {
        self.locked.store(true, Ordering::Relaxed);
    }

    /// Whether it may have one.
    pub fn was_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }
}

/// What an owner has its record locks of a node by.
struct Holder {
    fd: Arc<OwnedFd>,
    /// The file that it asked for the last of them by.
    handle: u64,
}

/// Where a node lies.
pub struct Place {
    /// Relative to the root.
    pub path: Vec<u8>,
    pub identity: Identity,
    /// It is open as this.
    pub file: Option<Arc<Handle>>,
}

/// All that the driver refers to.
pub struct Nodes {
    root: Identity,
    nodes: HashMap<u64, Node>,
    numbers: HashMap<Identity, u64>,
    handles: HashMap<u64, Arc<Handle>>,
    most_handles: usize,
    /// By node and owner.
    holders: HashMap<(u64, u64), Holder>,
    devices: HashMap<u64, u64>,
    next: u64,
}

impl Nodes {
    /// Nothing but the root.
    pub fn new(root: Identity, most_handles: usize) -> Self {
        Self {
            root,
            nodes: HashMap::new(),
            numbers: HashMap::new(),
            handles: HashMap::new(),
            most_handles,
            holders: HashMap::new(),
            devices: HashMap::new(),
            next: ROOT + 1,
        }
    }

    /// Forgets all; numbers are not given out again.
    pub fn clear(&mut self) {
        self.nodes = HashMap::new();
        self.numbers = HashMap::new();
        self.handles = HashMap::new();
        self.holders = HashMap::new();
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// The inode number that the driver is shown: those of several file systems do not meet in one.
    pub fn shown(&mut self, found: &Statx) -> u64 {
        let device = Identity::of(found).device;
        let count = self.devices.len();
        let index = match self.devices.get(&device) {
            Some(index) => *index,
            None if count >= DEVICES => DEVICES as u64,
            None => {
                self.devices.insert(device, count as u64);
                count as u64
            }
        };
        // 0 is none.
        (found.stx_ino ^ index << DEVICE_SHIFT).max(1)
    }

    pub fn place(&self, number: u64) -> Result<Place, Errno> {
        if number == ROOT {
            return Ok(Place { path: b".".to_vec(), identity: self.root, file: None });
        }
        let node = self.nodes.get(&number).ok_or(Errno::STALE)?;
        let path = self.path(node);
        if let (Err(e), None) = (&path, &node.file) {
            return Err(*e);
        }
        Ok(Place { path: path.unwrap_or_default(), identity: node.identity, file: node.file.clone() })
    }

    fn path(&self, node: &Node) -> Result<Vec<u8>, Errno> {
        let mut names = vec![&node.name];
        let mut length = node.name.len();
        let mut parent = node.parent;
        while parent != ROOT {
            let node = self.nodes.get(&parent).ok_or(Errno::STALE)?;
            length += 1 + node.name.len();
            // This ends a circle, too, which those make who move directories behind our back.
            if length > PATH {
                return Err(Errno::NAMETOOLONG);
            }
            names.push(&node.name);
            parent = node.parent;
        }
        names.reverse();
        let names: Vec<&[u8]> = names.iter().map(|name| &***name).collect();
        Ok(names.join(&b'/'))
    }

    /// The number of what was found in a directory, given to the driver once more.
    pub fn found(&mut self, parent: u64, name: &[u8], identity: Identity) -> Result<u64, Errno> {
        if let Some(number) = self.numbers.get(&identity).copied()
            && let Some(node) = self.nodes.get_mut(&number)
        {
            node.lookups += 1;
            if node.parent != parent || *node.name != *name {
                (node.parent, node.name) = (parent, name.into());
            }
            return Ok(number);
        }
        if self.nodes.len() >= NODES {
            return Err(Errno::NFILE);
        }
        let number = self.number();
        let node = Node { identity, parent, name: name.into(), lookups: 1, open: 0, file: None };
        self.nodes.insert(number, node);
        self.numbers.insert(identity, number);
        Ok(number)
    }

    /// What was found there has another name now.
    pub fn moved(&mut self, identity: Identity, parent: u64, name: &[u8]) {
        let number = self.numbers.get(&identity);
        if let Some(node) = number.and_then(|number| self.nodes.get_mut(number)) {
            (node.parent, node.name) = (parent, name.into());
        }
    }

    /// The driver has a number that many times less.
    pub fn forget(&mut self, number: u64, lookups: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            let identity = node.identity;
            self.nodes.remove(&number);
            if self.numbers.get(&identity) == Some(&number) {
                self.numbers.remove(&identity);
            }
        }
    }

    /// The directory in which a node was found last, and its name there.
    pub fn within(&self, number: u64) -> Result<(u64, Vec<u8>), Errno> {
        let node = self.nodes.get(&number).ok_or(Errno::STALE)?;
        Ok((node.parent, node.name.to_vec()))
    }

    /// Keeps an open file.
    pub fn open(&mut self, node: u64, fd: OwnedFd, kind: Kind) -> Result<u64, Errno> {
        if self.is_full() {
            return Err(Errno::NFILE);
        }
        let number = self.number();
        let handle = Arc::new(Handle { fd, kind, node, locked: AtomicBool::new(false) });
        if let Some(node) = self.nodes.get_mut(&node) {
            node.open = node.open.saturating_add(1);
            node.file.get_or_insert_with(|| Arc::clone(&handle));
        }
        self.handles.insert(number, handle);
        Ok(number)
    }

    /// An open file.
    pub fn file(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.handles.get(&number).filter(|handle| handle.kind != Kind::Directory);
        handle.cloned().ok_or(Errno::BADF)
    }

    /// An open directory, and its node.
    pub fn directory(&self, number: u64) -> Result<(Arc<Handle>, u64), Errno> {
        let handle = self.handles.get(&number).filter(|handle| handle.kind == Kind::Directory);
        handle.map(|handle| (Arc::clone(handle), handle.node)).ok_or(Errno::BADF)
    }

    fn is_full(&self) -> bool {
        self.handles.len() + self.holders.len() >= self.most_handles
    }

    /// The node of an open file.
    pub fn node_of(&self, number: u64) -> Result<u64, Errno> {
        self.file(number).map(|handle| handle.node)
    }

    /// What an owner has its record locks of a node by, if it has had any.
    pub fn holder(&self, node: u64, owner: u64) -> Option<Arc<OwnedFd>> {
        self.holders.get(&(node, owner)).map(|holder| Arc::clone(&holder.fd))
    }

    /// Keeps it.
    pub fn hold(&mut self, node: u64, owner: u64, handle: u64, fd: Arc<OwnedFd>) -> Result<(), Errno> {
        if !self.holders.contains_key(&(node, owner)) && self.is_full() {
            return Err(Errno::NOLCK);
        }
        self.holders.insert((node, owner), Holder { fd, handle });
        Ok(())
    }

    /// Gives back all record locks that an owner has of a node; whether there were any.
    pub fn let_go(&mut self, node: u64, owner: u64) -> bool {
        self.holders.remove(&(node, owner)).is_some()
    }

    /// Forgets an open file, and the record locks that were asked for by it.
    pub fn release(&mut self, number: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.handles.remove(&number).ok_or(Errno::BADF)?;
        self.holders.retain(|_, holder| holder.handle != number);
        if let Some(node) = self.nodes.get_mut(&handle.node) {
            node.open = node.open.saturating_sub(1);
            if node.open == 0 {
                node.file = None;
            }
        }
        Ok(handle)
    }
}
