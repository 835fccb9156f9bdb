//! Work on files as somebody else, for one thread and a while.

use rustix::thread::{CapabilitySets, capabilities, set_capabilities};
use std::io;

/// Runs `work` with other ids for all it does with files (`setfsuid(2)`), and all capabilities that this thread has,
/// which the kernel would otherwise take from who stops being root. What the thread makes meanwhile belongs to these
/// ids. Only this thread is changed.
///
/// Overlayfs acts on its layers as who mounted it: in layers that translate ids, only an id that they know can make
/// files.
pub fn as_owner<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    let before = Before { uid: fsuid(None), gid: fsgid(None), capabilities: capabilities(None)? };
    fsgid(Some(gid));
    fsuid(Some(uid));
    if fsuid(None) != uid || fsgid(None) != gid {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    set_capabilities(None, before.capabilities)?;
    let out = work();
    drop(before);
    Ok(out)
}

/// What a thread was, and is again when this is dropped.
struct Before {
    uid: u32,
    gid: u32,
    capabilities: CapabilitySets,
}

impl Drop for Before {
    fn drop(&mut self) {
        fsuid(Some(self.uid));
        fsgid(Some(self.gid));
        // Never more than it had a moment ago, which the kernel cannot refuse.
        let _ = set_capabilities(None, self.capabilities);
    }
}

/// Sets this thread's id for files, and answers the one before.
fn fsuid(to: Option<u32>) -> u32 {
    // SAFETY: takes an integer, of which -1 is no id and changes nothing; glibc makes it no more than a system call.
    unsafe { libc::setfsuid(to.unwrap_or(u32::MAX)) as u32 }
}

fn fsgid(to: Option<u32>) -> u32 {
    // SAFETY: as in `fsuid`.
    unsafe { libc::setfsgid(to.unwrap_or(u32::MAX)) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn files_belong_to_who_they_are_made_for() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let before = capabilities(None).unwrap();
        let within = as_owner(70_001, 70_002, || {
            // The directory is root's and closed to others: this takes the capabilities.
            std::fs::write(path("a"), "").unwrap();
            capabilities(None).unwrap()
        });
        assert_eq!(within.unwrap(), before);
        assert_eq!(capabilities(None).unwrap(), before);
        std::fs::write(path("b"), "").unwrap();
        let owner = |name: &str| std::fs::metadata(path(name)).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!((owner("a"), owner("b")), ((70_001, 70_002), (0, 0)));
    }
}
