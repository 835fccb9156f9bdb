//! Libraries that others wrote against `dhow serve`: the Python SDK, Testcontainers for Python, dockerode. What they do is
//! in the scripts of `clients/`.

use dhow_tests::registry::{Registry, USER};
use dhow_tests::server::Server;
use dhow_tests::{Store, busybox, clients, have};
use std::process::{Command, Stdio};

fn served() -> Option<(Store, Server)> {
    let store = busybox::store()?;
    let server = Server::start(&store, &[]);
    Some((store, server))
}

/// Runs a script, which says "all of it" at its end.
fn passes(server: &Server, command: &Command) {
    let mut limited = Command::new("timeout");
    limited.args(["-k", "5", "300"]).arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let out = limited.env("DOCKER_HOST", server.address()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && said.trim_end().ends_with("all of it"),
        "{:?}: {said}{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
fn the_python_sdk() {
    let Some(python) = clients::python() else { return };
    let Some((store, server)) = served() else { return };
    let registry = Registry::with_password();
    let mut script = Command::new(python);
    script.arg(clients::file("sdk.py"));
    if let Some(registry) = &registry {
        script.env("REGISTRY", format!("{}|{}|{}", registry.host, USER.0, USER.1));
    }
    passes(&server, &script);
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}

#[test]
fn testcontainers() {
    let Some(python) = clients::python() else { return };
    let Some((store, server)) = served() else { return };
    passes(&server, Command::new(python).arg(clients::file("containers.py")));
    assert_eq!(store.ok(&["ps", "-aq"]), "", "it removed what it made");
}

#[test]
fn dockerode() {
    if !have("node") || !have("npm") {
        eprintln!("SKIPPED: node or npm is missing");
        return;
    }
    let Some(modules) = clients::node() else { return };
    let Some((store, server)) = served() else { return };
    passes(&server, Command::new("node").env("NODE_PATH", modules).arg(clients::file("dockerode.js")));
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}
