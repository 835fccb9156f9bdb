//! What a container sees and may do, and the escapes of the past, tried through the real program.

use dhow_tests::{Store, busybox};

fn sh(store: &Store, flags: &[&str], script: &str) -> String {
    let mut args = vec!["run", "--rm"];
    args.extend(flags);
    args.extend(["busybox", "sh", "-c", script]);
    let out = store.out(&args);
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
        .trim_end()
        .to_owned()
}

#[test]
fn the_walls_are_dockers() {
    let Some(store) = busybox::store() else { return };
    let status = sh(
        &store,
        &[],
        "grep -E '^(CapEff|CapBnd|CapInh|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t' ' '",
    );
    for line in [
        "CapInh: 0000000000000000",
        "CapEff: 00000000a80425fb",
        "CapBnd: 00000000a80425fb",
        "CapAmb: 0000000000000000",
        "NoNewPrivs: 0",
        "Seccomp: 2",
    ] {
        assert!(status.lines().any(|l| l == line), "{line} is not in {status}");
    }
    assert!(
        sh(
            &store,
            &["--security-opt", "no-new-privileges", "--cap-drop", "ALL"],
            "grep -E 'CapBnd|NoNewPrivs' /proc/self/status | tr -s '\\t' ' '"
        )
        .contains("CapBnd: 0000000000000000\nNoNewPrivs: 1")
    );
    assert_eq!(
        sh(&store, &["-u", "user"], "grep CapEff /proc/self/status | tr -s '\\t' ' '"),
        "CapEff: 0000000000000000"
    );
    // Nothing of the host: descriptors, processes, files, environment. (Processes are told by their numbers, which begin
    // anew in a namespace of their own: one that is about to be another program has no name to go by for a moment.)
    assert_eq!(
        sh(
            &store,
            &[],
            "ls /proc/self/fd | wc -l; \
             for p in /proc/[0-9]*; do [ ${p#/proc/} -lt 20 ] || echo host; done | wc -l; \
             env | grep -c DHOW"
        ),
        "4\n0\n0"
    );
    for (what, script) in [
        ("kernel memory is readable", "test -s /proc/kcore && head -c 1 /proc/kcore | grep -q . && echo BAD"),
        ("the kernel can be told to crash", "echo c > /proc/sysrq-trigger 2>/dev/null && echo BAD"),
        ("kernel settings can be written", "echo x > /proc/sys/kernel/core_pattern 2>/dev/null && echo BAD"),
        ("sysfs can be written", "echo 0 > /sys/kernel/profiling 2>/dev/null && echo BAD"),
        ("mounts can be made", "mount -t tmpfs x /tmp 2>/dev/null && echo BAD"),
        (
            "a block device can be opened",
            "mknod /tmp/d b 254 0 && head -c 1 /tmp/d 2>/dev/null | grep -q . && echo BAD",
        ),
        ("new user namespaces can be made", "unshare -U true 2>/dev/null && echo BAD"),
    ] {
        let said = sh(&store, &[], script);
        assert!(!said.contains("BAD"), "{what}: {said}");
    }
}

/// CVE-2019-5736: the runtime's own binary, reached through `/proc/self/exe` or a process of ours inside.
#[test]
fn cve_2019_5736_the_program_cannot_be_written() {
    let Some(store) = busybox::store() else { return };
    let before = std::fs::read(dhow_tests::program()).unwrap();
    for flags in [&[][..], &["--init"][..], &["--cap-add", "SYS_PTRACE", "--init"][..]] {
        let script =
            "for e in /proc/[0-9]*/exe; do (echo x > $e) 2>/dev/null; (echo x >> $e) 2>/dev/null; done; true";
        sh(&store, flags, script);
    }
    let out = store.out(&["run", "--rm", "--entrypoint", "/proc/self/exe", "busybox", "version"]);
    assert_ne!(
        out.status.code(),
        Some(0),
        "our own program was run inside: {}",
        String::from_utf8_lossy(&out.stdout)
    );
    assert!(before == std::fs::read(dhow_tests::program()).unwrap());
}

/// CVE-2024-21626: a working directory or descriptor that leads to the host.
#[test]
fn cve_2024_21626_no_way_out_by_descriptors() {
    let Some(store) = busybox::store() else { return };
    for n in 3..12 {
        let dir = format!("/proc/self/fd/{n}");
        let out =
            store.out(&["run", "--rm", "-w", &dir, "busybox", "sh", "-c", "cat ../../../etc/hostname; pwd"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
        assert!(host.trim().is_empty() || !text.contains(host.trim()), "{dir}: {text}");
    }
    store.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "60"]);
    let out = store.out(&["exec", "-w", "/proc/self/fd/7", "box", "pwd"]);
    assert!(!out.status.success() || !String::from_utf8_lossy(&out.stdout).contains("unreachable"));
}

/// CVE-2021-30465 and its kin: mount targets and working directories that are links to the outside.
#[test]
fn cve_2021_30465_links_stay_inside() {
    let Some(store) = busybox::store() else { return };
    store.ok(&[
        "run",
        "--name",
        "links",
        "busybox",
        "sh",
        "-c",
        "ln -s /../../../../tmp/dhow-escape /target; ln -s / /rootlink",
    ]);
    store.ok(&["commit", "links", "linked"]);
    let dir = store.root().with_file_name("src");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("f"), "here").unwrap();
    let bind = format!("{}:/target", dir.display());
    assert_eq!(store.ok(&["run", "--rm", "-v", &bind, "linked", "cat", "/tmp/dhow-escape/f"]), "here");
    assert_eq!(
        store.ok(&["run", "--rm", "-w", "/target/sub", "linked", "readlink", "-f", "."]),
        "/tmp/dhow-escape/sub"
    );
    assert!(!std::path::Path::new("/tmp/dhow-escape").exists());
}

/// CVE-2022-0492 (release_agent) and CVE-2022-0185 (fsconfig): neither cgroup mounts nor new mount contexts.
#[test]
fn cve_2022_0492_and_0185_no_kernel_doors() {
    let Some(store) = busybox::store() else { return };
    let script = "mkdir /tmp/c; mount -t cgroup -o memory c /tmp/c 2>/dev/null && echo BAD; \
                  unshare -m true 2>/dev/null && echo BAD; \
                  for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/notify_on_release; do (echo x > $f) 2>/dev/null && echo BAD $f; done; true";
    let said = sh(&store, &[], script);
    assert!(!said.contains("BAD"), "{said}");
}

/// CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: masks, console and procfs writes redirected by what the image put
/// in their place.
#[test]
fn cve_2025_masks_hold_whatever_the_image_has() {
    let Some(store) = busybox::store() else { return };
    store.ok(&[
        "run",
        "--name",
        "evil",
        "busybox",
        "sh",
        "-c",
        "mkdir -p /dev; ln -sf /proc/sysrq-trigger /dev/null2; ln -s /proc/kcore /console; true",
    ]);
    store.ok(&["commit", "evil", "evil"]);
    for flags in [&["-t"][..], &[][..]] {
        let mut args = vec!["run", "--rm"];
        args.extend(flags);
        args.extend(["evil", "sh", "-c", "stat -c '%t:%T' /dev/null; grep -c ' /proc/sys ' /proc/mounts; (echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo held"]);
        let out = store.out(&args);
        assert_eq!(String::from_utf8_lossy(&out.stdout).replace('\r', "").trim_end(), "1:3\n1\nheld");
    }
    let over = store.out(&["run", "--rm", "--tmpfs", "/proc/self", "busybox", "true"]);
    assert!(!over.status.success(), "a mount over procfs was taken");
}

/// CVE-2019-14271: `cp` of a running container runs nothing of its image and follows no link outside.
#[test]
fn cve_2019_14271_cp_trusts_nothing() {
    let Some(store) = busybox::store() else { return };
    store.ok(&[
        "run",
        "-d",
        "--name",
        "box",
        "busybox",
        "sh",
        "-c",
        "ln -s /proc/1/root /tmp/magic; ln -s ../../../../../.. /tmp/up; sleep 60",
    ]);
    store.ok(&["exec", "box", "sh", "-c", "while [ ! -L /tmp/up ]; do sleep 0.01; done"]);
    let dest = store.root().with_file_name("got");
    for path in ["box:/tmp/up/etc/passwd", "box:/tmp/../../../etc/passwd"] {
        store.ok(&["cp", "-L", path, dest.to_str().unwrap()]);
        assert!(std::fs::read_to_string(&dest).unwrap().contains("/home/user"), "{path} is the host's");
    }
    store.out(&["cp", "box:/tmp/magic/etc/shadow", dest.to_str().unwrap()]);
    assert!(!std::fs::read_to_string(&dest).unwrap().contains('$'), "a magic link was followed");
}
