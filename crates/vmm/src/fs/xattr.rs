//! Requests about extended attributes, of which only those of users pass: others mean something to this kernel.
//!
//! Source: xattr(7).

use super::nodes::{DIRECTORY, Identity, REGULAR};
use super::wire::{Reader, Writer};
use super::{Done, Server, look};
use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

const PREFIX: &[u8] = b"user.";
/// XATTR_SIZE_MAX and XATTR_LIST_MAX of linux/limits.h.
const MOST: usize = 64 << 10;

/// A name that passes.
fn name<'a>(from: &mut Reader<'a>) -> Done<&'a [u8]> {
    from.text().and_then(|name| if name.starts_with(PREFIX) { Ok(name) } else { Err(Errno::OPNOTSUPP) })
}

impl Server {
    /// Only regular files and directories can have any.
    fn bearer(&self, node: u64) -> Done<OwnedFd> {
        let found = Identity::of(&look(self.reach(node)?)?);
        match found.is(REGULAR) || found.is(DIRECTORY) {
            true => self.open_as(node, OFlags::RDONLY),
            false => Err(Errno::OPNOTSUPP),
        }
    }

    pub(super) fn set_xattr(&self, node: u64, from: &mut Reader<'_>) -> Done {
        let (size, flags) = (from.u32()?, from.u32()?);
        let name = name(from)?;
        let value = from.bytes(size as usize)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::fsetxattr(self.bearer(node)?, name, value, flags)
    }

    pub(super) fn get_xattr(&self, node: u64, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let size = from.u32()? as usize;
        from.skip(4)?;
        let name = name(from)?;
        let mut value = vec![0; MOST];
        let length = rustix::fs::fgetxattr(self.bearer(node)?, name, &mut value)?;
        sized(value.get(..length).unwrap_or_default(), size, to)
    }

    pub(super) fn list_xattrs(&self, node: u64, from: &mut Reader<'_>, to: &mut Writer) -> Done {
        let size = from.u32()? as usize;
        let mut list = vec![0; MOST];
        let length = match self.bearer(node) {
            Err(Errno::OPNOTSUPP) => 0,
            bearer => rustix::fs::flistxattr(bearer?, &mut list)?,
        };
        let names = list.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == 0);
        let names: Vec<u8> = names.filter(|name| name.starts_with(PREFIX)).flatten().copied().collect();
        sized(&names, size, to)
    }

    pub(super) fn remove_xattr(&self, node: u64, from: &mut Reader<'_>) -> Done {
        let name = name(from)?;
        rustix::fs::fremovexattr(self.bearer(node)?, name)
    }
}

/// The value, or its size for who has room for nothing.
fn sized(value: &[u8], room: usize, to: &mut Writer) -> Done {
    match room {
        // No more than `MOST`.
        0 => drop(to.u32(value.len() as u32).u32(0)),
        _ if room < value.len() => return Err(Errno::RANGE),
        _ => drop(to.bytes(value)),
    }
    Ok(())
}
