//! What somebody does with Dhow on the first day, from a Debian root to a served page, and what is left when a
//! supervisor is shot in the middle of it.

use dhow_tests::Store;
use dhow_tests::debian::{self, get_soon};
use dhow_tests::registry::Registry;
use std::net::TcpStream;

/// The memory limit of the cgroup that a process is in, v1 or v2.
fn memory_limit(pid: &str) -> String {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap(), parts.next().unwrap());
        let file = match controllers {
            "memory" => format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"),
            "" => format!("/sys/fs/cgroup{path}/memory.max"),
            _ => continue,
        };
        if let Ok(limit) = std::fs::read_to_string(file) {
            return limit.trim().to_owned();
        }
    }
    panic!("no memory cgroup: {cgroups}");
}

#[test]
fn a_debian_image_is_built_pushed_pulled_served_and_survives_its_supervisor() {
    let Some(tar) = debian::with_python() else { return };
    let Some(registry) = Registry::start() else { return };
    let image = registry.name("debian-python:12");

    // One store makes and pushes it, another one, empty, pulls and runs it.
    let maker = Store::new();
    maker.ok(&["import", "-m", "by mmdebstrap", "-c", "CMD [\"python3\"]", tar.to_str().unwrap(), &image]);
    maker.ok(&["push", "-q", &image]);
    let store = Store::new();
    assert_eq!(store.ok(&["images", "-q"]), "");
    store.ok(&["pull", "-q", &image]);

    let run = store.ok(&[
        "run",
        "--rm",
        &image,
        "python3",
        "-c",
        "import platform; print(6 * 7, platform.system())",
    ]);
    assert_eq!(run, "42 Linux");

    store.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "127.0.0.1::8000",
        "-m",
        "128m",
        &image,
        "python3",
        "-u",
        "-m",
        "http.server",
        "8000",
    ]);
    let address = store.ok(&["port", "web", "8000"]);
    let page = get_soon(&address, "/etc/debian_version");
    assert!(page.starts_with("HTTP/1.0 200") && page.contains("12."), "{page}");

    let exec = store.ok(&[
        "exec",
        "-e",
        "A=b",
        "web",
        "python3",
        "-c",
        "import os; print(os.environ['A'], os.path.exists('/proc/1/exe'))",
    ]);
    assert_eq!(exec, "b True");

    let inspect = |field: &str| store.ok(&["inspect", "-f", field, "web"]);
    let pid = inspect("{{.State.Pid}}");
    assert_eq!(memory_limit(&pid), (128 << 20).to_string());
    store.ok(&["update", "--memory", "200m", "--memory-swap", "200m", "web"]);
    assert_eq!(memory_limit(&pid), (200 << 20).to_string());
    assert_eq!(inspect("{{.HostConfig.Memory}}"), (200 << 20).to_string());

    // The supervisor dies; nothing else may.
    let supervisor = store.supervisor("web");
    kill(supervisor);
    assert!(
        get_soon(&address, "/etc/hostname").starts_with("HTTP/1.0 200"),
        "it serves without its supervisor"
    );
    assert_eq!(inspect("{{.State.Status}} {{.State.Pid}}"), format!("running {pid}"));
    assert_ne!(store.supervisor("web"), supervisor, "somebody else minds it now");
    assert!(
        get_soon(&address, "/etc/issue").starts_with("HTTP/1.0 200"),
        "it serves with its new supervisor"
    );
    let logs = store.both(&["logs", "web"]);
    for path in ["/etc/debian_version", "/etc/hostname", "/etc/issue"] {
        assert!(logs.contains(&format!("GET {path}")), "{path} is not in the log: {logs}");
    }
    assert_eq!(store.ok(&["exec", "web", "python3", "-c", "print(1 + 1)"]), "2");
    assert_eq!(memory_limit(&pid), (200 << 20).to_string());
    store.ok(&["update", "--memory", "160m", "web"]);
    assert_eq!(memory_limit(&pid), (160 << 20).to_string());

    // As PID 1 without a handler, Python does not hear SIGTERM.
    store.ok(&["stop", "-t", "1", "web"]);
    assert_eq!(inspect("{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}"), "exited 137 0");
    assert!(TcpStream::connect(&address).is_err(), "the port is still open");
    assert!(store.both(&["logs", "web"]).contains("GET /etc/issue"));

    // What it was started with holds again.
    store.ok(&["start", "web"]);
    let address = store.ok(&["port", "web", "8000"]);
    assert!(get_soon(&address, "/etc/issue").starts_with("HTTP/1.0 200"));
    assert_eq!(memory_limit(&inspect("{{.State.Pid}}")), (160 << 20).to_string());
    store.ok(&["rm", "-f", "web"]);
    assert_eq!(store.ok(&["ps", "-aq"]), "");
    store.ok(&["rmi", &image]);
    assert_eq!(store.ok(&["images", "-q"]), "");
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
