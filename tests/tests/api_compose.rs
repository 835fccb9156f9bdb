//! Docker Compose against `dhow serve`: a stack as people write them, in `clients/compose.yaml`.

use dhow_tests::server::Server;
use dhow_tests::{Store, busybox, clients, vm};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Compose over a store that is served.
struct Stack {
    compose: PathBuf,
    files: Vec<PathBuf>,
    server: Server,
    // After the server, that goes first.
    _store: Store,
}

impl Stack {
    fn new(store: Option<Store>, compose: PathBuf, files: &[&str]) -> Option<Self> {
        let store = store?;
        let server = Server::start(&store, &[]);
        Some(Self { compose, files: files.iter().map(|f| clients::file(f)).collect(), server, _store: store })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.compose);
        command.env("DOCKER_HOST", self.server.address()).stdin(Stdio::null());
        for file in &self.files {
            command.arg("-f").arg(file);
        }
        command.args(["--progress", "quiet"]).args(args);
        command
    }

    fn out(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What must succeed says on stdout.
    fn ok(&self, args: &[&str]) -> String {
        let out = self.out(args);
        let said = String::from_utf8_lossy(&out.stdout).trim_end().to_owned();
        assert!(
            out.status.success(),
            "docker compose {args:?}: {:?}: {said}\n{}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr),
            String::from_utf8_lossy(&self.out(&["logs"]).stdout)
        );
        said
    }

    fn services(&self, args: &[&str]) -> Vec<String> {
        let all = [&["ps", "--format", "{{.Service}}"], args].concat();
        let mut found: Vec<String> = self.ok(&all).lines().map(str::to_owned).collect();
        found.sort();
        found
    }
}

#[test]
fn a_stack_of_containers() {
    let Some(compose) = clients::compose() else { return };
    let Some(stack) = Stack::new(busybox::store(), compose, &["compose.yaml"]) else { return };

    // Up: what depends on what is waited for, by its health or by its end.
    stack.ok(&["up", "-d"]);
    assert_eq!(stack.services(&[]), ["client", "db", "web"]);
    assert_eq!(stack.services(&["-a", "--status", "exited"]), ["seed"]);
    let health = stack.ok(&["ps", "--format", "{{.Service}} {{.Health}}", "db", "web"]);
    assert_eq!(health.lines().filter(|l| l.ends_with(" healthy")).count(), 2, "{health}");
    // Logs, those of one service and of all.
    for _ in 0..200 {
        if stack.ok(&["logs", "--no-log-prefix", "client"]).contains("row") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(stack.ok(&["logs", "--no-log-prefix", "client"]), "page of the volume\nrow");
    let all = stack.ok(&["logs"]);
    assert!(
        all.contains("web-1     | web is up") || all.contains("web-1") && all.contains("web is up"),
        "{all}"
    );
    // The rest of what is asked of one service, that Compose finds by its labels.
    assert!(stack.ok(&["port", "web", "80"]).starts_with("127.0.0.1:"));
    assert_eq!(stack.ok(&["exec", "-T", "web", "sh", "-c", "echo at $PLACE"]), "at here");
    assert_eq!(stack.out(&["exec", "-T", "web", "sh", "-c", "exit 5"]).status.code(), Some(5));
    assert!(stack.ok(&["exec", "-T", "web", "cat", "/stack/compose.yaml"]).starts_with("name: stack"));
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page");
    stack.ok(&["cp", "web:/w/index.html", page.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&page).unwrap(), "page of the volume\n");
    stack.ok(&["cp", page.to_str().unwrap(), "db:/w/copy"]);
    assert_eq!(
        stack.ok(&["exec", "-T", "client", "wget", "-qO-", "database:5432/copy"]),
        "page of the volume"
    );
    assert!(stack.ok(&["top", "web"]).contains("httpd"));
    assert!(stack.ok(&["images", "web"]).contains("busybox"));
    assert!(stack.ok(&["ls"]).contains("running(3)"));
    assert!(stack.ok(&["volumes", "-q"]).contains("stack_conf"));
    // A profile, one-off containers, scale, up again with nothing or with something changed.
    assert_eq!(stack.ok(&["run", "--rm", "-T", "tool", "echo", "once"]), "once");
    let up = stack.out(&["--profile", "tools", "up", "--no-deps", "tool"]);
    assert!(String::from_utf8_lossy(&up.stdout).contains("the tool ran"), "{up:?}");
    let before = stack.ok(&["ps", "-q", "web"]);
    stack.ok(&["up", "-d", "--scale", "client=3"]);
    assert_eq!(stack.services(&["client"]).len(), 3);
    assert_eq!(stack.ok(&["ps", "-q", "web"]), before, "nothing changed, so it runs on");
    let changed =
        stack.command(&["up", "-d", "--wait", "--no-deps", "web"]).env("PLACE", "there").output().unwrap();
    assert!(changed.status.success(), "{changed:?}");
    assert_ne!(stack.ok(&["ps", "-q", "web"]), before);
    assert_eq!(stack.ok(&["exec", "-T", "web", "sh", "-c", "echo at $PLACE"]), "at there");
    assert_eq!(stack.services(&["client"]).len(), 3);
    // The verbs that change a state.
    stack.ok(&["pause", "db"]);
    assert_eq!(stack.services(&["--status", "paused"]), ["db"]);
    stack.ok(&["unpause", "db"]);
    stack.ok(&["restart", "db"]);
    stack.ok(&["stop", "db"]);
    assert!(stack.ok(&["logs", "db"]).contains("bye"));
    assert_eq!(stack.out(&["wait", "db"]).status.code(), Some(3));
    stack.ok(&["start", "db"]);
    stack.ok(&["kill", "db"]);
    stack.ok(&["rm", "-f", "db"]);
    assert_eq!(stack.services(&["-a", "db"]), Vec::<String>::new());
    // Down: nothing is left.
    stack.ok(&["--profile", "tools", "down", "-v", "-t", "1"]);
    for list in [["ps", "-aq"], ["volume", "-q"]] {
        let list = if list[0] == "volume" { vec!["volume", "ls", "-q"] } else { list.to_vec() };
        assert_eq!(stack._store.ok(&list), "");
    }
    assert!(!stack._store.ok(&["network", "ls"]).contains("stack_"));
}

#[test]
fn a_stack_with_a_microvm() {
    let Some(compose) = clients::compose() else { return };
    let files = ["compose.yaml", "compose.vm.yaml"];
    let Some(stack) = Stack::new(vm::store(), compose, &files) else { return };
    stack.ok(&["up", "-d"]);
    let runtimes =
        stack.server.ok(&["inspect", "-f", "{{.HostConfig.Runtime}}", "stack-db-1", "stack-web-1"]);
    assert!(runtimes.starts_with("dhow-vm\n") && !runtimes.ends_with("dhow-vm"), "{runtimes}");
    // Its health let the others start; they find it by its names, it finds them, and what is said of it is the same.
    assert_eq!(stack.ok(&["exec", "-T", "client", "wget", "-qO-", "database:5432/row"]), "row");
    assert_eq!(stack.ok(&["exec", "-T", "db", "wget", "-qO-", "web"]), "page of the volume");
    assert_eq!(stack.out(&["exec", "-T", "db", "sh", "-c", "exit 6"]).status.code(), Some(6));
    stack.ok(&["stop", "db"]);
    assert!(stack.ok(&["logs", "db"]).contains("bye"));
    stack.ok(&["down", "-v", "-t", "1"]);
    assert_eq!(stack._store.ok(&["ps", "-aq"]), "");
}
