//! A small image for tests of containers: Debian's static busybox and the files that name users.

use crate::Store;
use std::io::Write;
use std::process::Stdio;

const APPLETS: &[&str] = &[
    "adduser", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "echo", "env", "false", "find",
    "grep", "head", "hostname", "httpd", "id", "ip", "kill", "ln", "ls", "md5sum", "mkdir", "mknod", "mount",
    "mv", "nc", "nslookup", "ping", "ps", "pwd", "readlink", "rm", "sed", "seq", "setsid", "sh", "sleep",
    "sort", "stat", "stty", "su", "sync", "tail", "tee", "test", "touch", "tr", "trap", "true", "tty",
    "umount", "uname", "unshare", "vi", "wc", "wget", "whoami", "xargs", "yes",
];

/// A store with the image `busybox`; `None`, said so, where the host has no static busybox.
pub fn store() -> Option<Store> {
    let Ok(program) = std::fs::read("/bin/busybox") else {
        eprintln!("SKIPPED: /bin/busybox is missing (package busybox-static)");
        return None;
    };
    let store = Store::new();
    let mut import = store
        .command(&["import", "-", "busybox"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    import.stdin.take().unwrap().write_all(&rootfs(&program)).unwrap();
    assert!(import.wait().unwrap().success(), "the busybox image was not imported");
    Some(store)
}

/// The root tar.
fn rootfs(program: &[u8]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, kind: tar::EntryType, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(1_600_000_000);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        out.append_data(&mut header, path, data).unwrap();
    };
    for (dir, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
        ("home/user", 0o755),
        ("data", 0o750),
    ] {
        add(dir, mode, tar::EntryType::Directory, "", b"");
    }
    add("bin/busybox", 0o755, tar::EntryType::Regular, "", program);
    for applet in APPLETS {
        add(&format!("bin/{applet}"), 0o777, tar::EntryType::Symlink, "busybox", b"");
    }
    add("data/seed", 0o640, tar::EntryType::Regular, "", b"from the image\n");
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
    add("etc/passwd", 0o644, tar::EntryType::Regular, "", passwd);
    add("etc/group", 0o644, tar::EntryType::Regular, "", b"root:x:0:\nuser:x:1000:\nextra:x:2000:\n");
    out.into_inner().unwrap()
}
