//! Requests about names and attributes.

use super::nodes::{Identity, S_IFMT};
use super::wire::{Header, Reader, Writer, set};
use super::{Done, Reached, Server, as_caller, as_plain, look, look_at};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::Errno;
use std::os::fd::AsFd;

/// Longest target of a symbolic link, PATH_MAX with its NUL.
const TARGET: usize = 4095;

impl Server {
    pub(super) fn lookup(&self, parent: u64, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let name = from.name()?;
        self.entry(parent, self.directory(parent)?.as_fd(), name, to).map(drop)
    }

    pub(super) fn get_attributes(&self, node: u64, _from: &mut Reader<'_>, to: &mut Writer) -> Done {
        self.attributes(&look(self.reach(node)?)?, to);
        Ok(())
    }

    pub(super) fn set_attributes(&self, node: u64, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let valid = from.u32()?;
        from.skip(4)?;
        let (handle, size) = (from.u64()?, from.u64()?);
        from.skip(8)?;
        let (accessed, modified) = (from.u64()?, from.u64()?);
        from.skip(8)?;
        let (accessed_ns, modified_ns) = (from.u32()?, from.u32()?);
        from.skip(4)?;
        let mode = from.u32()?;
        from.skip(4)?;
        let (uid, gid) = (from.u32()?, from.u32()?);

        let reached = self.reach(node)?;
        if valid & (set::UID | set::GID) != 0 {
            // The number that means "as it is" is none.
            let id = |bit, id: u32| (valid & bit != 0 && id != u32::MAX).then_some(id);
            let (uid, gid) = (id(set::UID, uid).map(Uid::from_raw), id(set::GID, gid).map(Gid::from_raw));
            rustix::fs::chownat(&reached, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        // After the owner, whose change may take bits of the mode away.
        if valid & set::MODE != 0 {
            self.change_mode(node, &reached, Mode::from_raw_mode(mode & 0o7777))?;
        }
        if valid & set::SIZE != 0 {
            let plain = valid & set::KILL_SUIDGID != 0;
            if valid & set::HANDLE == 0 {
                let file = self.open_regular(node, OFlags::WRONLY)?;
                as_plain(plain, || rustix::fs::ftruncate(&file, size))?;
            } else {
                let file = self.nodes().file(handle)?;
                as_plain(plain, || rustix::fs::ftruncate(&file.fd, size))?;
            }
        }
        if valid & (set::ATIME | set::MTIME) != 0 {
            let time = |bit, now, seconds: u64, nanoseconds: u32| Timespec {
                tv_sec: seconds as i64,
                tv_nsec: match (valid & bit != 0, valid & now != 0) {
                    (false, _) => UTIME_OMIT,
                    (true, true) => UTIME_NOW,
                    (true, false) => i64::from(nanoseconds.min(999_999_999)),
                },
            };
            let times = Timestamps {
                last_access: time(set::ATIME, set::ATIME_NOW, accessed, accessed_ns),
                last_modification: time(set::MTIME, set::MTIME_NOW, modified, modified_ns),
            };
            rustix::fs::utimensat(&reached, "", &times, AtFlags::EMPTY_PATH)?;
        }
        self.attributes(&look(&reached)?, to);
        Ok(())
    }

    /// By name in its directory, as descriptors that only stand for a file cannot (before Linux 6.6).
    fn change_mode(&self, node: u64, reached: &Reached, mode: Mode) -> Done {
        if let Reached::Open(handle) = reached {
            return rustix::fs::fchmod(&handle.fd, mode);
        }
        let identity = Identity::of(&look(reached)?);
        if identity.is(LINK) {
            return Err(Errno::OPNOTSUPP);
        }
        if node == super::wire::ROOT {
            return Err(Errno::ROFS);
        }
        let (parent, name) = self.nodes().within(node)?;
        let directory = self.directory(parent)?;
        if Identity::of(&look_at(&directory, &name)?) != identity {
            return Err(Errno::STALE);
        }
        // Should a link take its place now, it leads nowhere: links are not followed on these mounts, and what the root has
        // is shared.
        rustix::fs::chmodat(&directory, &name, mode, AtFlags::empty())
    }

    pub(super) fn read_link(&self, node: u64, to: &mut Writer) -> Done {
        let reached = self.reach(node)?;
        to.fill(TARGET, |buffer| rustix::fs::readlinkat_raw(&reached, "", buffer))
    }

    pub(super) fn symlink(&self, header: &Header, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let (name, target) = (from.name()?, from.text()?);
        let directory = self.directory(header.node)?;
        as_caller(header, || rustix::fs::symlinkat(target, &directory, name))?;
        self.entry(header.node, directory.as_fd(), name, to).map(drop)
    }

    pub(super) fn make_node(&self, header: &Header, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let (mode, _device) = (from.u32()?, from.u32()?);
        from.skip(8)?;
        let name = from.name()?;
        let kind = FileType::from_raw_mode(mode & u32::from(S_IFMT));
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            // Devices have the numbers of a machine, and the guest is another one.
            return Err(Errno::PERM);
        }
        let directory = self.directory(header.node)?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        as_caller(header, || rustix::fs::mknodat(&directory, name, kind, mode, 0))?;
        self.entry(header.node, directory.as_fd(), name, to).map(drop)
    }

    pub(super) fn make_directory(&self, header: &Header, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let mode = from.u32()?;
        from.skip(4)?;
        let name = from.name()?;
        let directory = self.directory(header.node)?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        as_caller(header, || rustix::fs::mkdirat(&directory, name, mode))?;
        self.entry(header.node, directory.as_fd(), name, to).map(drop)
    }

    pub(super) fn remove(&self, parent: u64, from: &mut Reader<'_>, flags: AtFlags) -> Done {
        let name = from.name()?;
        rustix::fs::unlinkat(self.directory(parent)?, name, flags)
    }

    pub(super) fn rename(&self, parent: u64, from: &mut Reader<'_>, with_flags: bool) -> Done {
        let new_parent = from.u64()?;
        let flags = if with_flags { from.u64()? as u32 } else { 0 };
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (name, new_name) = (from.name()?, from.name()?);
        let (old, new) = (self.directory(parent)?, self.directory(new_parent)?);
        let moved = look_at(&old, name)?;
        let other = flags.contains(RenameFlags::EXCHANGE).then(|| look_at(&new, new_name)).transpose()?;
        rustix::fs::renameat_with(&old, name, &new, new_name, flags)?;
        let mut nodes = self.nodes();
        nodes.moved(Identity::of(&moved), new_parent, new_name);
        if let Some(other) = other {
            nodes.moved(Identity::of(&other), parent, name);
        }
        Ok(())
    }

    pub(super) fn link(&self, parent: u64, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let node = from.u64()?;
        let name = from.name()?;
        let identity = Identity::of(&look(self.open_as(node, OFlags::PATH)?)?);
        let (old_parent, old_name) = self.nodes().within(node)?;
        let (old, new) = (self.directory(old_parent)?, self.directory(parent)?);
        if Identity::of(&look_at(&old, &old_name)?) != identity {
            return Err(Errno::STALE);
        }
        rustix::fs::linkat(&old, &old_name, &new, name, AtFlags::empty())?;
        self.entry(parent, new.as_fd(), name, to).map(drop)
    }
}

/// A symbolic link in a mode.
const LINK: u16 = 0o120_000;
