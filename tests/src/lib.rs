//! What the end-to-end tests share: a store of their own, images made on the spot, registries, good and bad.
//!
//! The tests drive the program that `DHOW_BIN` names (`make e2e` sets it), else the one that was built last.
#![forbid(unsafe_code)]

pub mod busybox;
pub mod clients;
pub mod debian;
pub mod layout;
pub mod liar;
pub mod private;
pub mod registry;
pub mod said;
pub mod server;
pub mod traces;
pub mod vm;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program under test.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("DHOW_BIN") {
        return path.into();
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let candidates = ["release", "debug"].map(|profile| target.join(&triple).join(profile).join("dhow"));
    let built = candidates.into_iter().find(|p| p.exists());
    built.expect("there is no program to test: run `make build`, or set DHOW_BIN")
}

/// Whether a program is installed on this host.
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Makes a program of a text in C that needs nothing of where it runs.
pub fn compile(source: &str, to: &Path) {
    let text = to.with_extension("c");
    std::fs::write(&text, source).unwrap();
    let done = Command::new("cc").args(["-O1", "-static", "-o"]).args([to, &text]).status().unwrap();
    assert!(done.success(), "cc cannot make {}", to.display());
    std::fs::remove_file(text).unwrap();
}

/// A store of its own, of which nothing is left when it is dropped.
#[derive(Debug)]
pub struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    /// An empty one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("dhow-test-").tempdir().unwrap() }
    }

    /// `--root`.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// `--run`.
    pub fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// `dhow ARGS` on this store, to be run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.env("DHOW_ROOT", self.root()).env("DHOW_RUN", self.run()).args(args);
        command
    }

    /// Runs it.
    pub fn out(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs what must succeed; its stdout without the last line's end.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.out(args);
        assert!(
            out.status.success(),
            "dhow {args:?}: {:?}: {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
    }

    /// Runs what must succeed; stdout and stderr.
    pub fn both(&self, args: &[&str]) -> String {
        let out = self.out(args);
        assert!(
            out.status.success(),
            "dhow {args:?}: {:?}: {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
    }

    /// The pid of a container's supervisor.
    pub fn supervisor(&self, container: &str) -> i32 {
        let id = self.ok(&["inspect", "-f", "{{.Id}}", container]);
        let state = std::fs::read(self.root().join("sandboxes").join(id).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        state["supervisor"].as_i64().unwrap().try_into().unwrap()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let out = self.out(&["system", "reset", "--force"]);
        if !out.status.success() && !std::thread::panicking() {
            panic!("dhow system reset: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}
