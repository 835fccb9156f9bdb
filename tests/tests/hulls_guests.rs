//! Guests that lie, are silent, or end badly: what a microVM's host makes of it.

use dhow_tests::traces::{hypervisors, until};
use dhow_tests::{Store, vm};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How long a guest is waited for, and its end is.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running microVM.
fn start(store: &Store, name: &str, script: &str) -> PathBuf {
    store.ok(&["run", "-d", "--vm", "--name", name, "busybox", "sh", "-c", script]);
    let id = store.ok(&["inspect", "-f", "{{.Id}}", name]);
    store.run().join("sandboxes").join(id).join("vm")
}

/// Takes the place of the guest, as it were: whoever wants to talk to it gets this answer, a byte at a time.
fn stand_in(dir: &std::path::Path, said: Vec<u8>, pause: Duration) {
    std::fs::remove_file(dir.join("vsock")).unwrap();
    let open = std::fs::File::open(dir).unwrap();
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/vsock", open.as_raw_fd())).unwrap();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let said = said.clone();
            std::thread::spawn(move || {
                let _ = socket.read(&mut [0; 32]);
                if said.is_empty() || socket.write_all(b"OK 1073741824\n").is_err() {
                    std::thread::sleep(Duration::from_secs(1000));
                }
                for byte in said {
                    if socket.write_all(&[byte]).is_err() {
                        return;
                    }
                    std::thread::sleep(pause);
                }
                std::thread::sleep(Duration::from_secs(1000));
            });
        }
    });
}

#[test]
fn a_guest_that_drips_its_answers_or_gives_none_is_stopped_and_removed_in_time() {
    let Some(store) = vm::store() else { return };
    let dir = start(&store, "dripping", "sleep 1000");
    // The head of a response of a megabyte, and then its bytes, which take more than a week.
    let mut said = vec![3, 0, 0, 0, 0, 0, 0x10, 0];
    said.extend([b' '; 4096]);
    stand_in(&dir, said, Duration::from_secs(1));
    let begin = Instant::now();
    let mut exec = store.command(&["exec", "dripping", "true"]).stderr(Stdio::piped()).spawn().unwrap();
    // It waits for nobody but itself.
    until("the session", || store.ok(&["inspect", "-f", "{{json .ExecIDs}}", "dripping"]).contains("\""));
    store.ok(&["rename", "dripping", "dripped"]);
    store.ok(&["rename", "dripped", "dripping"]);
    assert!(exec.try_wait().unwrap().is_none());
    let exec = exec.wait_with_output().unwrap();
    assert!(!exec.status.success());
    let said = String::from_utf8_lossy(&exec.stderr).into_owned();
    assert!(said.contains("the guest's agent does not answer"), "{said}");
    store.ok(&["stop", "-t", "1", "dripping"]);
    // It is waited for ten seconds by the session, and as long by what ends it.
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.Status}}", "dripping"]), "exited");

    // One that hangs altogether, its hypervisor too.
    let dir = start(&store, "hung", "sleep 1000");
    let id = dir.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let [hypervisor] = &hypervisors(&store)[..] else { panic!("there is one machine") };
    kill_process(Pid::from_raw(hypervisor.pid).unwrap(), Signal::STOP).unwrap();
    let begin = Instant::now();
    let args: [&[&str]; 3] =
        [&["kill", "-s", "USR1", id], &["stats", "--no-stream", id], &["exec", id, "true"]];
    let asked =
        args.map(|args| store.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    until("the session", || store.ok(&["inspect", "-f", "{{json .ExecIDs}}", "hung"]).contains("\""));
    store.ok(&["rename", "hung", "silent"]);
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    let [signal, stats, exec] = asked.map(|child| child.wait_with_output().unwrap());
    for failed in [signal, exec] {
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && said.contains("the guest's agent does not answer"), "{said}");
    }
    assert!(stats.status.success(), "what the host counts is told: {stats:?}");
    let begin = Instant::now();
    store.ok(&["stop", "-t", "1", "silent"]);
    assert!(begin.elapsed() < PATIENCE * 2, "{:?}", begin.elapsed());
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.Status}}", "silent"]), "exited");
    store.ok(&["rm", "-f", "silent", "dripping"]);
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}

#[test]
fn what_was_written_before_a_stop_is_there_after_it() {
    let Some(store) = vm::store() else { return };
    // As PID 1 without a handler, the shell does not hear SIGTERM.
    let dir = start(&store, "diligent", "echo data > /precious; echo ready; sleep 1000");
    let begin = Instant::now();
    while store.ok(&["logs", "diligent"]) != "ready" {
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
    // A paused guest hears nothing: it goes on, to be told.
    store.ok(&["pause", "diligent"]);
    for asked in [&["kill", "-s", "HUP", "diligent"][..], &["update", "--cpus", "1", "diligent"]] {
        let refused = store.out(asked);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("unpause"), "{refused:?}");
    }
    // What it costs its host is counted all the same.
    let memory = store.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "diligent"]);
    assert!(memory.contains("MiB") && !memory.starts_with("0"), "{memory}");
    store.ok(&["stop", "-t", "0", "diligent"]);
    assert_eq!(
        store.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "diligent"]),
        "exited 137"
    );
    assert!(!dir.join("end").exists(), "it told its end by itself");
    let out = tempfile::TempDir::new().unwrap();
    store.ok(&["cp", "diligent:/precious", out.path().to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(out.path().join("precious")).unwrap(), "data\n");

    // A device that a guest made does not become one of this host, nor a program of its user's one of the caller's.
    store.ok(&["start", "diligent"]);
    let script = "mknod /report b 254 0; cp /bin/busybox /rich; chmod 4755 /rich; echo made";
    assert_eq!(store.ok(&["exec", "diligent", "sh", "-c", script]), "made");
    let to = out.path().to_str().unwrap();
    let refused = store.out(&["cp", "diligent:/report", to]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is a device"), "{refused:?}");
    assert!(!out.path().join("report").exists());
    store.ok(&["cp", "diligent:/rich", to]);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&out.path().join("rich").metadata().unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o755);
    store.ok(&["rm", "-f", "diligent"]);
}
