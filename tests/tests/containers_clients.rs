//! Those who look on from outside: attached clients, followers of logs, and where the container's groups lie.

use dhow_tests::said::until;
use dhow_tests::{Store, busybox};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A client on a terminal, and the terminal's other side.
fn on_a_terminal(store: &Store, args: &[&str]) -> (Child, std::fs::File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let side = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let stdio = || Stdio::from(side.try_clone().unwrap());
    let child = store.command(args).stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
    (child, std::fs::File::from(master))
}

#[test]
fn keys_detach_and_the_container_goes_on() {
    let Some(store) = busybox::store() else { return };
    let (mut run, mut keys) = on_a_terminal(&store, &["run", "-it", "--name", "box", "busybox", "sh"]);
    keys.write_all(b"echo 1$((1))2\n").unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("112") {
        let mut piece = [0; 256];
        let n = keys.read(&mut piece).unwrap();
        seen.extend_from_slice(&piece[..n]);
    }
    keys.write_all(b"\x10\x11").unwrap();
    assert!(run.wait().unwrap().success());
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.Status}}", "box"]), "running");
    // Keys of one's own; the first of them alone is input.
    let (mut again, mut keys) = on_a_terminal(&store, &["attach", "--detach-keys", "ctrl-a,x", "box"]);
    until("the attachment", || {
        let events = store.ok(&["events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}"]);
        events.lines().filter(|l| *l == "attach").count() == 2
    });
    keys.write_all(b"\x01").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(again.try_wait().unwrap().is_none());
    keys.write_all(b"x").unwrap();
    assert!(again.wait().unwrap().success());
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.Status}}", "box"]), "running");
    store.ok(&["rm", "-f", "box"]);
}

#[test]
fn two_clients_see_the_same_and_both_may_speak() {
    let Some(store) = busybox::store() else { return };
    store.ok(&[
        "run",
        "-d",
        "-i",
        "--name",
        "box",
        "busybox",
        "sh",
        "-c",
        "while read x; do echo got $x; done",
    ]);
    let attach = || {
        let mut command = store.command(&["attach", "box"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let (mut one, mut two) = (attach(), attach());
    until("both attached", || {
        let events = store.ok(&["events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}"]);
        events.lines().filter(|l| *l == "attach").count() == 2
    });
    let mut out = [&mut one, &mut two].map(|c| BufReader::new(c.stdout.take().unwrap()).lines());
    let mut ins = [&mut one, &mut two].map(|c| c.stdin.take().unwrap());
    for (speaker, word) in [(0, "a"), (1, "b")] {
        writeln!(ins[speaker], "{word}").unwrap();
        for lines in &mut out {
            assert_eq!(lines.next().unwrap().unwrap(), format!("got {word}"));
        }
    }
    store.ok(&["kill", "box"]);
    assert_eq!((one.wait().unwrap().code(), two.wait().unwrap().code()), (Some(137), Some(137)));
    store.ok(&["rm", "box"]);
}

#[test]
fn logs_are_followed_to_the_end_and_begin_where_asked() {
    let Some(store) = busybox::store() else { return };
    let script = "echo old; while [ ! -e /go ]; do sleep 0.05; done; echo new; echo last";
    store.ok(&["run", "-d", "--name", "box", "busybox", "sh", "-c", script]);
    until("the first line", || store.ok(&["logs", "box"]) == "old");
    std::thread::sleep(Duration::from_millis(1100));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let since = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
    let follow = |args: &[&str]| store.command(args).stdout(Stdio::piped()).spawn().unwrap();
    let all = follow(&["logs", "-f", "box"]);
    let later = follow(&["logs", "-f", "--since", &since, "box"]);
    store.ok(&["exec", "box", "touch", "/go"]);
    // Following ends with the container.
    let text = |child: Child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(text(all), "old\nnew\nlast\n");
    assert_eq!(text(later), "new\nlast\n");
    assert_eq!(store.ok(&["logs", "--since", &since, "box"]), "new\nlast");
    assert_eq!(store.ok(&["logs", "--until", &since, "box"]), "old");
    assert_eq!(store.ok(&["logs", "--since", "1s", "--until", &since, "box"]), "");
    store.ok(&["rm", "box"]);
}

#[test]
fn groups_lie_below_the_parent_that_was_named() {
    let Some(store) = busybox::store() else { return };
    let parent = format!("dhow-parent-{}", std::process::id());
    store.ok(&[
        "run",
        "-d",
        "--name",
        "box",
        "--cgroup-parent",
        &format!("/{parent}/sub"),
        "busybox",
        "sleep",
        "60",
    ]);
    let id = store.ok(&["inspect", "-f", "{{.Id}}", "box"]);
    let pid = store.ok(&["inspect", "-f", "{{.State.Pid}}", "box"]);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.contains(&format!(":/{parent}/sub/{id}")), "{groups}");
    assert_eq!(store.ok(&["exec", "box", "echo", "in"]), "in");
    store.ok(&["rm", "-f", "box"]);
    let mut left = Vec::new();
    for top in [vec!["/sys/fs/cgroup".into()], subdirectories("/sys/fs/cgroup".as_ref())].concat() {
        let sub: std::path::PathBuf = top.join(&parent).join("sub");
        left.extend(subdirectories(&sub));
        // The parents were named by the user, and are the user's.
        let _ = std::fs::remove_dir(&sub);
        let _ = std::fs::remove_dir(top.join(&parent));
    }
    assert!(left.is_empty(), "{left:?}");
    let refused = store.out(&["run", "--rm", "--cgroup-parent", "/../x", "busybox", "true"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("invalid cgroup parent"), "{refused:?}");
    assert_eq!(store.ok(&["ps", "-aq"]), "", "nothing is left that cannot be removed");
}

fn subdirectories(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

#[test]
fn events_of_a_renamed_container_have_its_new_name() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["run", "-d", "--name", "before", "busybox", "sleep", "60"]);
    store.ok(&["rename", "before", "after"]);
    store.ok(&["kill", "after"]);
    until("its end", || store.ok(&["ps", "-q"]).is_empty());
    let format = "{{.Action}} {{.Actor.Attributes.name}}";
    let events = || store.ok(&["events", "--since", "1h", "--until", "0s", "--format", format]);
    // They are told when it is over.
    until("the event of its end", || events().contains("die "));
    let events = events();
    assert!(events.contains("start before") && events.contains("die after"), "{events}");
    assert!(!events.contains("die before"), "{events}");
    store.ok(&["rm", "after"]);
}

#[test]
fn failures_say_what_to_do() {
    let Some(store) = busybox::store() else { return };
    let said =
        |command: &mut std::process::Command| String::from_utf8(command.output().unwrap().stderr).unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut run = store.command(&["run", "--rm", "busybox", "echo", "x"]);
    let mut child = run.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert!(text.contains("cannot write the output: No space left on device"), "{text}");
    for limit in [6, 12, 20] {
        let line = format!("ulimit -n {limit}; exec \"$0\" run --rm busybox true");
        let text = said(
            std::process::Command::new("sh")
                .args(["-c", &line])
                .arg(dhow_tests::program())
                .env("DHOW_ROOT", store.root())
                .env("DHOW_RUN", store.run()),
        );
        assert!(text.contains("ulimit -n"), "{limit}: {text}");
    }
    for mount in ["/etc/passwd:/bin", "/etc:/bin/busybox"] {
        let text = said(&mut store.command(&["run", "--rm", "-v", mount, "busybox", "true"]));
        assert!(text.contains("mount a directory on a directory, or a file on a file"), "{mount}: {text}");
    }
    let text = said(&mut store.command(&["run", "--rm", "--network", "container:", "busybox", "true"]));
    assert!(text.contains("names no container"), "{text}");
    store.out(&["run", "--name", "box", "busybox", "dd", "if=/dev/zero", "of=/file", "bs=1M", "count=3"]);
    let text = store.ok(&["system", "prune", "--force", "--all"]);
    let total = text.lines().find_map(|l| l.strip_prefix("Total reclaimed space: ")).unwrap();
    assert!(total.ends_with("MB") && !total.starts_with('0'), "{text}");
}
