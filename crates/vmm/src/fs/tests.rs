//! Honest requests, and those of a guest that is none.

use super::wire::{ROOT, op};
use super::{LONGEST, NUMBER, Server};
use proptest::prelude::*;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

#[macro_use]
mod body {
    /// Numbers of 32 and 64 bits.
    macro_rules! body {
        ($($value:expr),*) => { [$(&$value.to_le_bytes()[..]),*].concat() };
    }
}
mod locks;

/// Carries a request over, and its answer back.
type Ask = Box<dyn Fn(&[u8]) -> Option<Vec<u8>>>;

/// A server of a directory, and a driver in front of it.
struct Rig {
    dir: tempfile::TempDir,
    ask: Ask,
    uid: u32,
}

type Answer = Result<Vec<u8>, Errno>;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn request(opcode: u32, node: u64, uid: u32, body: &[u8]) -> Vec<u8> {
    let length = (40 + body.len()) as u32;
    [
        &length.to_le_bytes()[..],
        &opcode.to_le_bytes(),
        &77u64.to_le_bytes(),
        &node.to_le_bytes(),
        &uid.to_le_bytes(),
        &uid.to_le_bytes(),
        &[0; 8],
        body,
    ]
    .concat()
}

impl Rig {
    fn new() -> Self {
        Self::with_handles(100)
    }

    fn with_handles(handles: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        let server = Server::new(root.into(), handles).unwrap();
        Self::before(dir, Box::new(move |request| server.answer(request)))
    }

    fn before(dir: tempfile::TempDir, ask: Ask) -> Self {
        let rig = Self { dir, ask, uid: 0 };
        rig.call(op::INIT, 0, &body!(7u32, 38u32, 0u32, u32::MAX)).unwrap();
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The body of the answer.
    fn call(&self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        let answer = (self.ask)(&request(opcode, node, self.uid, body)).expect("there is an answer");
        assert_eq!((u32_at(&answer, 0) as usize, u64_at(&answer, 8)), (answer.len(), 77));
        match u32_at(&answer, 4) as i32 {
            0 => Ok(answer[16..].to_vec()),
            error => Err(Errno::from_raw_os_error(-error)),
        }
    }

    fn named(&self, opcode: u32, node: u64, arguments: &[u8], names: &[&str]) -> Answer {
        let names = names.iter().flat_map(|name| name.bytes().chain([0]));
        self.call(opcode, node, &arguments.iter().copied().chain(names).collect::<Vec<_>>())
    }

    fn lookup(&self, parent: u64, name: &str) -> Result<u64, Errno> {
        self.named(op::LOOKUP, parent, &[], &[name]).map(|entry| u64_at(&entry, 0))
    }

    fn open(&self, node: u64, flags: u32) -> Result<u64, Errno> {
        self.call(op::OPEN, node, &body!(flags, 0u32)).map(|opened| u64_at(&opened, 0))
    }

    fn read(&self, handle: u64, offset: u64, size: u32) -> Answer {
        self.call(op::READ, 0, &body!(handle, offset, size, 0u32, 0u64, 0u32, 0u32))
    }

    fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Answer {
        let head = body!(handle, offset, data.len() as u32, 0u32, 0u64, 0u32, 0u32);
        self.call(op::WRITE, 0, &[&head, data].concat())
    }

    /// Names, and with `plus` nodes.
    fn list(&self, directory: u64, plus: bool) -> Vec<(String, u64)> {
        let handle = u64_at(&self.call(op::OPENDIR, directory, &body!(0u32, 0u32)).unwrap(), 0);
        let (mut all, mut offset) = (Vec::new(), 0u64);
        loop {
            let opcode = if plus { op::READDIRPLUS } else { op::READDIR };
            let some =
                self.call(opcode, directory, &body!(handle, offset, 1024u32, 0u32, 0u64, 0u64)).unwrap();
            assert!(some.len() <= 1024);
            if some.is_empty() {
                break;
            }
            let mut rest = &some[..];
            while !rest.is_empty() {
                let node = if plus { u64_at(rest, 0) } else { 0 };
                let entry = &rest[if plus { 128 } else { 0 }..];
                let length = u32_at(entry, 16) as usize;
                all.push((String::from_utf8(entry[24..24 + length].to_vec()).unwrap(), node));
                offset = u64_at(entry, 8);
                rest = &entry[(24 + length).next_multiple_of(8)..];
            }
        }
        self.call(op::RELEASEDIR, directory, &body!(handle, 0u64, 0u64)).unwrap();
        all.sort();
        all
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn files_are_made_written_read_and_removed() {
    files(&Rig::new());
}

fn files(rig: &Rig) {
    let flags = (rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE).bits();
    let made = rig.named(op::CREATE, ROOT, &body!(flags, 0o640u32, 0u32, 0u32), &["a"]).unwrap();
    let (node, handle) = (u64_at(&made, 0), u64_at(&made, 128));
    assert_eq!(rig.write(handle, 2, b"word").unwrap()[..4], 4u32.to_le_bytes());
    assert_eq!(rig.read(handle, 0, 100).unwrap(), b"\0\0word");
    assert_eq!(fs::read(rig.path("a")).unwrap(), b"\0\0word");
    assert_eq!(fs::metadata(rig.path("a")).unwrap().permissions().mode() & 0o7777, 0o640);

    // Cut off, by its node and by its file; times and modes.
    let set = |valid: u32, size: u64, mode: u32| {
        let body = body!(
            valid, 0u32, handle, size, 0u64, 11u64, 12u64, 0u64, 0u32, 5u32, 0u32, mode, 0u32, 0u32, 0u32,
            0u32
        );
        rig.call(op::SETATTR, node, &body)
    };
    set(1 << 3, 3, 0).unwrap();
    set(1 << 3 | 1 << 6, 2, 0).unwrap();
    set(1 << 0 | 1 << 4 | 1 << 5, 0, 0o4711).unwrap();
    let meta = fs::metadata(rig.path("a")).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o7777), (2, 0o4711));
    assert_eq!((meta.atime(), meta.mtime(), meta.mtime_nsec()), (11, 12, 5));

    // Without its name it still is what was opened.
    rig.named(op::UNLINK, ROOT, &[], &["a"]).unwrap();
    assert!(!rig.path("a").exists());
    assert_eq!(rig.read(handle, 0, 100).unwrap(), b"\0\0");
    let attributes = rig.call(op::GETATTR, node, &body!(0u32, 0u32, 0u64)).unwrap();
    assert_eq!((u64_at(&attributes, 16 + 8), u32_at(&attributes, 16 + 64)), (2, 0), "size and links");
    rig.call(op::RELEASE, node, &body!(handle, 0u64, 0u64)).unwrap();
    assert_eq!(rig.call(op::GETATTR, node, &body!(0u32, 0u32, 0u64)), Err(Errno::STALE));
    assert_eq!(rig.read(handle, 0, 1), Err(Errno::BADF));
}

#[test]
fn what_is_appended_goes_to_the_end_and_pages_where_they_belong() {
    let rig = Rig::new();
    fs::write(rig.path("log"), "12345").unwrap();
    let node = rig.lookup(ROOT, "log").unwrap();
    let flags = (rustix::fs::OFlags::RDWR | rustix::fs::OFlags::APPEND).bits();
    let handle = rig.open(node, flags).unwrap();
    rig.write(handle, 0, b"6").unwrap();
    let page = body!(handle, 0u64, 1u32, 1u32, 0u64, 0u32, 0u32);
    rig.call(op::WRITE, 0, &[&page[..], b"x"].concat()).unwrap();
    assert_eq!(fs::read(rig.path("log")).unwrap(), b"x23456");
}

#[test]
fn directories_links_and_names() {
    directories(&Rig::new());
}

fn directories(rig: &Rig) {
    let made = rig.named(op::MKDIR, ROOT, &body!(0o750u32, 0u32), &["dir"]).unwrap();
    let dir = u64_at(&made, 0);
    rig.named(op::SYMLINK, dir, &[], &["link", "../../etc/passwd"]).unwrap();
    let link = rig.lookup(dir, "link").unwrap();
    assert_eq!(rig.call(op::READLINK, link, &[]).unwrap(), b"../../etc/passwd");
    fs::write(rig.path("dir/file"), "text").unwrap();
    let file = rig.lookup(dir, "file").unwrap();
    rig.named(op::LINK, ROOT, &body!(file), &["second"]).unwrap();
    assert_eq!(fs::metadata(rig.path("second")).unwrap().nlink(), 2);
    assert_eq!(rig.lookup(ROOT, "second").unwrap(), file, "one file, one node");

    let names = |list: Vec<(String, u64)>| list.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(rig.list(dir, false)), [".", "..", "file", "link"]);
    let all = rig.list(ROOT, true);
    assert_eq!(all[2..], [("dir".into(), dir), ("second".into(), file)]);
    for number in 0..200 {
        fs::write(rig.path(&format!("dir/entry-{number}")), "").unwrap();
    }
    assert_eq!((rig.list(dir, false).len(), rig.list(dir, true).len()), (204, 204));

    // A node goes with its name, also where its directory got another one.
    rig.named(op::RENAME, ROOT, &body!(ROOT), &["dir", "moved"]).unwrap();
    let handle = rig.open(rig.lookup(dir, "file").unwrap(), 0).unwrap();
    assert_eq!(rig.read(handle, 0, 9).unwrap(), b"text");
    assert_eq!(
        rig.named(op::RENAME2, ROOT, &body!(ROOT, 1u32, 0u32), &["moved", "second"]),
        Err(Errno::EXIST)
    );
    rig.named(op::RENAME2, ROOT, &body!(ROOT, 2u32, 0u32), &["moved", "second"]).unwrap();
    assert_eq!(rig.lookup(ROOT, "second").unwrap(), dir);
    assert_eq!(rig.named(op::RENAME2, ROOT, &body!(ROOT, 4u32, 0u32), &["second", "w"]), Err(Errno::INVAL));
    assert_eq!(rig.named(op::RMDIR, ROOT, &[], &["second"]), Err(Errno::NOTEMPTY));
    assert_eq!(rig.named(op::UNLINK, ROOT, &[], &["second"]), Err(Errno::ISDIR));
    rig.named(op::UNLINK, ROOT, &[], &["moved"]).unwrap();
}

#[test]
fn what_the_host_does_is_seen_and_what_it_replaced_is_stale() {
    let rig = Rig::new();
    fs::create_dir(rig.path("dir")).unwrap();
    fs::write(rig.path("dir/file"), "old").unwrap();
    let dir = rig.lookup(ROOT, "dir").unwrap();
    let file = rig.lookup(dir, "file").unwrap();
    let open = rig.open(file, 0).unwrap();
    fs::write(rig.path("dir/new"), "new").unwrap();
    fs::rename(rig.path("dir/new"), rig.path("dir/file")).unwrap();
    assert_eq!(rig.open(file, 0), Err(Errno::STALE));
    assert_eq!(rig.read(open, 0, 9).unwrap(), b"old");
    let again = rig.lookup(dir, "file").unwrap();
    assert_ne!(again, file);
    assert_eq!(rig.read(rig.open(again, 0).unwrap(), 0, 9).unwrap(), b"new");
    fs::rename(rig.path("dir"), rig.path("other")).unwrap();
    assert_eq!(rig.lookup(dir, "file"), Err(Errno::STALE));
    assert_eq!(rig.lookup(ROOT, "dir"), Err(Errno::NOENT));
    assert_eq!(rig.lookup(ROOT, "other").unwrap(), dir);
    assert_eq!(rig.lookup(dir, "file").unwrap(), again);
}

#[test]
fn what_is_made_belongs_to_who_asked_though_the_directory_is_roots() {
    if !is_root() {
        return;
    }
    owners(&mut Rig::new());
}

fn owners(rig: &mut Rig) {
    rig.uid = 70_001;
    fs::set_permissions(rig.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let flags = (rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE).bits();
    rig.named(op::CREATE, ROOT, &body!(flags, 0o600u32, 0u32, 0u32), &["file"]).unwrap();
    rig.named(op::MKDIR, ROOT, &body!(0o700u32, 0u32), &["dir"]).unwrap();
    rig.named(op::SYMLINK, ROOT, &[], &["link", "x"]).unwrap();
    rig.named(op::MKNOD, ROOT, &body!(0o010_600u32, 0u32, 0u32, 0u32), &["fifo"]).unwrap();
    for name in ["file", "dir", "link", "fifo"] {
        let meta = fs::symlink_metadata(rig.path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (70_001, 70_001), "{name}");
    }
    let node = rig.lookup(ROOT, "link").unwrap();
    let owner =
        body!(6u32, 0u32, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u32, 0u32, 0u32, 0u32, 0u32, 5u32, 6u32, 0u32);
    rig.call(op::SETATTR, node, &owner).unwrap();
    let meta = fs::symlink_metadata(rig.path("link")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (5, 6));
    rig.uid = 0;
}

#[test]
fn attributes_of_users_pass_and_others_do_not() {
    attributes(&Rig::new());
}

fn attributes(rig: &Rig) {
    fs::write(rig.path("file"), "").unwrap();
    let node = rig.lookup(ROOT, "file").unwrap();
    let set = |name: &str| {
        let body = [&body!(3u32, 0u32)[..], name.as_bytes(), b"\0abc"].concat();
        rig.call(op::SETXATTR, node, &body)
    };
    let get = |name: &str, size: u32| rig.named(op::GETXATTR, node, &body!(size, 0u32), &[name]);
    if set("user.mine") == Err(Errno::OPNOTSUPP) {
        return eprintln!("skipped: the file system of {} has no attributes", rig.dir.path().display());
    }
    assert_eq!(get("user.mine", 0).unwrap(), body!(3u32, 0u32));
    assert_eq!(get("user.mine", 64).unwrap(), b"abc");
    assert_eq!(get("user.mine", 2), Err(Errno::RANGE));
    assert_eq!(get("user.other", 64), Err(Errno::NODATA));
    assert_eq!(rig.call(op::LISTXATTR, node, &body!(64u32, 0u32)).unwrap(), b"user.mine\0");
    for name in ["security.capability", "trusted.overlay.opaque", "system.posix_acl_access", "user"] {
        assert_eq!(set(name), Err(Errno::OPNOTSUPP), "{name}");
        assert_eq!(get(name, 64), Err(Errno::OPNOTSUPP), "{name}");
    }
    rig.named(op::REMOVEXATTR, node, &[], &["user.mine"]).unwrap();
    assert_eq!(rig.call(op::LISTXATTR, node, &body!(64u32, 0u32)).unwrap(), b"");
}

#[test]
fn names_lead_down_and_links_nowhere() {
    let rig = Rig::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), rig.path("out")).unwrap();
    symlink("dir", rig.path("within")).unwrap();
    fs::create_dir(rig.path("dir")).unwrap();
    for name in ["", ".", "..", "a/b", "/", "/etc", "../x", &"x".repeat(256)] {
        for (opcode, arguments) in [
            (op::LOOKUP, vec![]),
            (op::UNLINK, vec![]),
            (op::RMDIR, vec![]),
            (op::MKDIR, body!(0o700u32, 0u32)),
            (op::MKNOD, body!(0o100_600u32, 0u32, 0u32, 0u32)),
            (op::CREATE, body!(0o101u32, 0o600u32, 0u32, 0u32)),
            (op::RENAME, body!(ROOT)),
            (op::LINK, body!(ROOT)),
            (op::SYMLINK, vec![]),
        ] {
            let done = rig.named(opcode, ROOT, &arguments, &[name, "other"]);
            assert!(matches!(done, Err(Errno::INVAL | Errno::NAMETOOLONG)), "{opcode} {name:?}: {done:?}");
        }
        let done = rig.named(op::RENAME, ROOT, &body!(ROOT), &["dir", name]);
        assert!(matches!(done, Err(Errno::INVAL | Errno::NAMETOOLONG)), "{name:?}: {done:?}");
    }
    for link in ["out", "within"] {
        let node = rig.lookup(ROOT, link).unwrap();
        assert_eq!(rig.lookup(node, "secret"), Err(Errno::STALE), "a link is no directory");
        assert_eq!(rig.open(node, 0), Err(Errno::INVAL));
        assert!(rig.call(op::OPENDIR, node, &body!(0u32, 0u32)).is_err());
        let flags = (rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE).bits();
        assert_eq!(
            rig.named(op::CREATE, ROOT, &body!(flags, 0o600u32, 0u32, 0u32), &[link]),
            Err(Errno::LOOP)
        );
        let mode = body!(
            1u32, 0u32, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32
        );
        assert_eq!(rig.call(op::SETATTR, node, &mode), Err(Errno::OPNOTSUPP));
    }
    // A directory that the guest knows, and that somebody made a link meanwhile.
    let dir = rig.lookup(ROOT, "dir").unwrap();
    fs::rename(rig.path("dir"), rig.path("gone")).unwrap();
    symlink(outside.path(), rig.path("dir")).unwrap();
    assert_eq!(rig.lookup(dir, "secret"), Err(Errno::STALE));
    assert_eq!(rig.named(op::UNLINK, dir, &[], &["secret"]), Err(Errno::STALE));
    assert!(outside.path().join("secret").exists());
}

#[test]
fn what_is_no_file_is_not_opened_and_devices_are_not_made() {
    let rig = Rig::new();
    rig.named(op::MKNOD, ROOT, &body!(0o010_600u32, 0u32, 0u32, 0u32), &["fifo"]).unwrap();
    rig.named(op::MKNOD, ROOT, &body!(0o140_600u32, 0u32, 0u32, 0u32), &["socket"]).unwrap();
    assert!(fs::metadata(rig.path("fifo")).unwrap().file_type().is_fifo());
    for name in ["fifo", "socket"] {
        let node = rig.lookup(ROOT, name).unwrap();
        for flags in 0..3 {
            assert_eq!(rig.open(node, flags), Err(Errno::INVAL), "{name}");
        }
        assert!(rig.named(op::CREATE, ROOT, &body!(0o102u32, 0u32, 0u32, 0u32), &[name]).is_err());
    }
    for mode in [0o020_666u32, 0o060_666, 0, 0o040_700, 0o120_777, 0o160_000] {
        let made = rig.named(op::MKNOD, ROOT, &body!(mode, 0x0103u32, 0u32, 0u32), &["device"]);
        assert_eq!(made, Err(Errno::PERM), "{mode:o}");
    }
    assert!(!rig.path("device").exists());
}

#[test]
fn what_was_forgotten_is_stale_and_what_is_kept_is_bounded() {
    let rig = Rig::with_handles(3);
    fs::write(rig.path("file"), "").unwrap();
    let node = rig.lookup(ROOT, "file").unwrap();
    assert_eq!(rig.lookup(ROOT, "file").unwrap(), node);
    let forget = |lookups: u64| {
        let forget = request(op::FORGET, node, 0, &body!(lookups));
        assert_eq!((rig.ask)(&forget), None);
    };
    forget(1);
    let open: Vec<u64> = (0..3).map(|_| rig.open(node, 0).unwrap()).collect();
    assert_eq!(rig.open(node, 0), Err(Errno::NFILE));
    rig.call(op::RELEASE, node, &body!(open[0], 0u64, 0u64)).unwrap();
    assert_eq!(rig.call(op::RELEASE, node, &body!(open[0], 0u64, 0u64)), Err(Errno::BADF));
    let flags = (rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE).bits();
    rig.named(op::CREATE, ROOT, &body!(flags, 0o600u32, 0u32, 0u32), &["b"]).unwrap();
    forget(u64::MAX);
    assert_eq!(rig.open(node, 0), Err(Errno::STALE));
    assert_eq!(rig.read(open[1], 0, 1).unwrap(), b"", "an open file stays open");
    forget(1);
    // Many at once, which says that there are more than it has; and the root is never forgotten.
    let again = rig.lookup(ROOT, "file").unwrap();
    let many = request(op::BATCH_FORGET, 0, 0, &body!(u32::MAX, 0u32, again, 1u64, ROOT, 9u64, 12u64));
    assert_eq!((rig.ask)(&many), None);
    assert_eq!(rig.open(again, 0), Err(Errno::STALE));
    rig.lookup(ROOT, "file").unwrap();
    // A file is no directory.
    assert_eq!(rig.call(op::READDIR, ROOT, &body!(open[1], 0u64, 99u32, 0u32, 0u64, 0u64)), Err(Errno::BADF));
}

#[test]
fn requests_that_lie_are_refused() {
    let rig = Rig::new();
    fs::write(rig.path("file"), "text").unwrap();
    let node = rig.lookup(ROOT, "file").unwrap();
    let handle = rig.open(node, 2).unwrap();
    let refused = |bytes: &[u8], error: Errno| {
        let answer = (rig.ask)(bytes).unwrap();
        assert_eq!((answer.len(), -(u32_at(&answer, 4) as i32)), (16, error.raw_os_error()), "{bytes:?}");
    };
    let honest = request(op::GETATTR, ROOT, 0, &body!(0u32, 0u32, 0u64));
    for cut in 0..40 {
        refused(&honest[..cut], Errno::INVAL);
    }
    let mut lying = honest.clone();
    lying[0] += 1;
    refused(&lying, Errno::INVAL);
    // Fewer arguments, fewer data, no end of a name.
    for opcode in (1..=50).filter(|opcode| ![2, 36, 38, 42].contains(opcode)) {
        let short = request(opcode, ROOT, 0, &[]);
        let answer = (rig.ask)(&short).unwrap();
        let fine = [op::GETATTR, op::STATFS, op::OPENDIR].contains(&opcode);
        assert_eq!(u32_at(&answer, 4) == 0, fine, "{opcode}");
    }
    let head = body!(handle, 0u64, 4096u32, 0u32, 0u64, 0u32, 0u32);
    assert_eq!(rig.call(op::WRITE, 0, &[&head[..], b"only this"].concat()), Err(Errno::INVAL));
    assert_eq!(rig.call(op::LOOKUP, ROOT, b"file"), Err(Errno::INVAL));
    assert_eq!(
        rig.call(op::SETXATTR, node, &[&body!(u32::MAX, 0u32)[..], b"user.x\0y"].concat()),
        Err(Errno::INVAL)
    );
    // Sizes and offsets beyond everything.
    assert!(rig.read(handle, u64::MAX, u32::MAX).is_err());
    assert_eq!(rig.read(handle, 1 << 40, u32::MAX).unwrap(), b"");
    assert!(rig.write(handle, u64::MAX, b"x").is_err());
    let allocate = |offset: u64, length: u64, mode: u32| {
        rig.call(op::FALLOCATE, node, &body!(handle, offset, length, mode, 0u32))
    };
    assert!(allocate(u64::MAX, u64::MAX, 0).is_err());
    assert_eq!(allocate(0, 1, 0x40), Err(Errno::OPNOTSUPP));
    assert!(rig.call(op::LSEEK, node, &body!(handle, u64::MAX, 3u32, 0u32)).is_err());
    assert_eq!(rig.call(op::LSEEK, node, &body!(handle, 0u64, 4u32, 0u32)).unwrap(), 4u64.to_le_bytes());
    assert_eq!(rig.call(op::LSEEK, node, &body!(handle, 0u64, 0u32, 0u32)), Err(Errno::INVAL));
    assert_eq!(rig.call(op::INIT, 0, &body!(6u32, 0u32, 0u32, 0u32)), Err(Errno::PROTO));
    assert_eq!(rig.call(9999, ROOT, &[]), Err(Errno::NOSYS));
    assert_eq!(rig.lookup(u64::MAX, "file"), Err(Errno::STALE));
    assert_eq!(fs::read(rig.path("file")).unwrap(), b"text");
}

#[test]
fn who_may_not_keep_them_loses_the_bits_that_lend_rights() {
    if is_root() {
        bits(&Rig::new());
    }
}

fn bits(rig: &Rig) {
    let mode = || fs::metadata(rig.path("tool")).unwrap().mode() & 0o7777;
    let give = || fs::set_permissions(rig.path("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::write(rig.path("tool"), "text").unwrap();
    let node = rig.lookup(ROOT, "tool").unwrap();
    let handle = rig.open(node, 2).unwrap();
    let write = |flags: u32| {
        let head = body!(handle, 0u64, 1u32, flags, 0u64, 0u32, 0u32);
        rig.call(op::WRITE, 0, &[&head[..], b"x"].concat()).unwrap();
    };
    let cut = |valid: u32| {
        let rest =
            body!(handle, 2u64, 0u64, 0u64, 0u64, 0u64, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32);
        rig.call(op::SETATTR, node, &[&body!(valid, 0u32)[..], &rest].concat()).unwrap();
    };
    let truncate = rustix::fs::OFlags::TRUNC.bits() | 1;
    give();
    write(0);
    cut(1 << 3);
    rig.call(op::OPEN, node, &body!(truncate, 0u32)).unwrap();
    assert_eq!(mode(), 0o6755);
    write(4);
    assert_eq!(mode(), 0o755);
    give();
    cut(1 << 3 | 1 << 11);
    assert_eq!(mode(), 0o755);
    give();
    rig.call(op::OPEN, node, &body!(truncate, 1u32)).unwrap();
    assert_eq!(mode(), 0o755);
    give();
    rig.named(op::CREATE, ROOT, &body!(truncate, 0o600u32, 0u32, 1u32), &["tool"]).unwrap();
    assert_eq!(mode(), 0o755);
}

/// A process of its own, in which the server is shut in and a thread is the driver.
#[test]
fn all_this_can_be_done_behind_the_filter() {
    const NAME: &str = "fs::tests::all_this_can_be_done_behind_the_filter";
    if !is_root() {
        return;
    }
    if std::env::var_os("DHOW_FS_CHILD").is_none() {
        let exe = std::env::current_exe().unwrap();
        let mut child = std::process::Command::new(exe);
        let out =
            child.args(["--exact", NAME, "--test-threads=1"]).env("DHOW_FS_CHILD", "1").output().unwrap();
        return assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stdout));
    }
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let root = fs::File::open(dir.path()).unwrap();
    let driver = std::thread::spawn(move || {
        let ask = move |request: &[u8]| {
            rustix::net::send(&ours, &[&[1; NUMBER], request].concat(), SendFlags::empty()).unwrap();
            let mut answer = vec![0; 2 * LONGEST];
            let (length, _) = rustix::net::recv(&ours, &mut answer[..], RecvFlags::empty()).unwrap();
            Some(answer[NUMBER..length].to_vec())
        };
        let mut rig = Rig::before(dir, Box::new(ask));
        files(&rig);
        directories(&rig);
        attributes(&rig);
        bits(&rig);
        locks::shared(&rig);
        locks::waited_for(&rig);
        let dir = rig.named(op::MKDIR, ROOT, &body!(0o755u32, 0u32), &["owners"]).unwrap();
        rig.call(op::STATFS, u64_at(&dir, 0), &[]).unwrap();
        let file = rig.lookup(ROOT, "file").unwrap();
        let handle = rig.open(file, 2).unwrap();
        rig.write(handle, 0, b"text").unwrap();
        rig.call(op::FALLOCATE, file, &body!(handle, 0u64, 8192u64, 0u32, 0u32)).unwrap();
        rig.call(op::LSEEK, file, &body!(handle, 0u64, 4u32, 0u32)).unwrap();
        for flags in [0u32, 1] {
            rig.call(op::FSYNC, file, &body!(handle, flags, 0u32)).unwrap();
        }
        rig.named(op::UNLINK, ROOT, &[], &["file"]).unwrap();
        owners(&mut rig);
    });
    std::thread::spawn(move || {
        let done = driver.join();
        std::process::exit(i32::from(done.is_err()));
    });
    super::serve(&theirs, root.into()).unwrap();
    // The driver hung up; how it was, is told by the thread above.
    std::thread::sleep(std::time::Duration::from_secs(60));
}

proptest! {
    /// Whatever comes, there is an answer of a bounded length that says its length, or none where none is due.
    #[test]
    fn anything_is_answered(requests in proptest::collection::vec(
        (0u32..52, 0u64..6, proptest::collection::vec(any::<u8>(), 0..96)), 1..40)
    ) {
        let rig = Rig::with_handles(4);
        fs::write(rig.path("f"), "x").unwrap();
        rig.lookup(ROOT, "f").unwrap();
        for (opcode, node, body) in requests {
            match (rig.ask)(&request(opcode, node, 0, &body)) {
                None => {
                    let unanswered = [op::FORGET, op::BATCH_FORGET, op::INTERRUPT, op::SETLKW];
                    prop_assert!(unanswered.contains(&opcode));
                }
                Some(answer) => {
                    prop_assert!(answer.len() <= LONGEST);
                    prop_assert_eq!(u32_at(&answer, 0) as usize, answer.len());
                }
            }
        }
    }
}
