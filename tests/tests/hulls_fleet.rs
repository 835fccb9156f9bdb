//! Both hulls in earnest: an image that people run, and many at once.

use dhow_tests::debian::{self, get_soon};
use dhow_tests::said::until;
use dhow_tests::vm;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn a_debian_with_python_serves_from_a_microvm() {
    let Some(tar) = debian::with_python() else { return };
    let Some(store) = vm::store() else { return };
    store.ok(&["import", tar.to_str().unwrap(), "debian-python"]);
    let server = ["python3", "-u", "-m", "http.server", "8000"];
    let flags =
        ["run", "-d", "--vm", "--name", "web", "-p", "127.0.0.1::8000", "-m", "256m", "debian-python"];
    store.ok(&[&flags[..], &server].concat());
    let address = store.ok(&["port", "web", "8000"]);
    let page = get_soon(&address, "/etc/debian_version");
    assert!(page.starts_with("HTTP/1.0 200") && page.contains("12."), "{page}");

    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(store.ok(&["exec", "web", "uname", "-r"]), host.trim(), "it has a kernel of its own");
    let program = "import os; print(os.environ['A'], os.path.exists('/proc/1/exe'))";
    assert_eq!(store.ok(&["exec", "-e", "A=b", "web", "python3", "-c", program]), "b True");
    let note = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(note.path(), "from the host\n").unwrap();
    store.ok(&["cp", note.path().to_str().unwrap(), "web:/srv/note"]);
    assert!(get_soon(&address, "/srv/note").ends_with("from the host\n"));
    // The server logs after it has answered.
    until("both requests are in the log", || {
        let logs = store.both(&["logs", "web"]);
        logs.contains("GET /etc/debian_version") && logs.contains("GET /srv/note")
    });

    // As PID 1 without a handler, Python does not hear SIGTERM.
    store.ok(&["stop", "-t", "1", "web"]);
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "web"]), "exited 137");
    assert!(std::net::TcpStream::connect(&address).is_err(), "the port is still open");
    store.ok(&["rm", "web"]);
}

/// Of each hull.
const MANY: usize = 20;
/// How many are started at a time.
const AT_ONCE: usize = 4;

#[test]
fn twenty_of_each_hull_run_at_once_and_reach_each_other() {
    let Some(store) = vm::store() else { return };
    let name = |hull: &str, i: usize| format!("{hull}-{i}");
    let all: Vec<(String, &[&str])> = (0..MANY)
        .flat_map(|i| {
            [(name("c", i), &[][..]), (name("m", i), &["--vm", "-m", "96m", "--disk-size", "32m"][..])]
        })
        .collect();
    for some in all.chunks(AT_ONCE) {
        let starts: Vec<_> = some
            .iter()
            .map(|(name, hull)| {
                let serve = "echo I am $HOSTNAME > /tmp/index.html; exec httpd -f -p 80 -h /tmp";
                let flags = ["--name", name, "--hostname", name, "-e", &format!("HOSTNAME={name}")];
                let args = [&["run", "-d"], &flags[..], hull, &["busybox", "sh", "-c", serve]].concat();
                store.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for start in starts {
            let out = start.wait_with_output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
    }
    assert_eq!(store.ok(&["ps", "-q"]).lines().count(), 2 * MANY);
    let address =
        |name: &str| store.ok(&["inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", name]);
    let addresses: Vec<_> = all.iter().map(|(name, _)| (name.clone(), address(name))).collect();
    // From one of each hull to all others.
    let begin = Instant::now();
    for from in [name("c", 0), name("m", 0)] {
        let ask: String =
            addresses.iter().map(|(_, a)| format!("timeout 10 wget -qO- http://{a}/\n")).collect();
        let expected: Vec<_> = addresses.iter().map(|(name, _)| format!("I am {name}")).collect();
        loop {
            let out = store.out(&["exec", &from, "sh", "-c", &ask]);
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            if said.lines().eq(expected.iter()) {
                break;
            }
            // A server may be a moment behind the start of its machine.
            let (reached, all) = (said.lines().count(), addresses.len());
            assert!(begin.elapsed() < Duration::from_secs(120), "{from} reaches {reached} of {all}: {out:?}");
        }
    }
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    store.ok(&[&["rm", "-f"], &names[..]].concat());
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}
