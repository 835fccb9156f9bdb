//! Clients of the Docker Engine API that others wrote: Docker Compose, the Python SDK and Testcontainers from PyPI, dockerode
//! from npm. Installed once, in the versions that `clients/` names, into `target/test-clients`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PINS: &str = include_str!("../clients/requirements.txt");
/// Without the install scripts of what it depends on: they compile what is only for SSH.
const NODE: &str = "dockerode@5.0.1";

/// A file of `clients/`.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// A Python with the clients; none, said so, where they cannot be had.
pub fn python() -> Option<PathBuf> {
    said(environment()).map(|dir| dir.join("bin/python"))
}

/// Docker Compose, the program itself; none, said so, where it cannot be had.
pub fn compose() -> Option<PathBuf> {
    let program = said(environment())?.join("bin/docker-compose");
    if !program.exists() {
        eprintln!("SKIPPED: there is no Docker Compose for this machine");
        return None;
    }
    Some(program)
}

/// `NODE_PATH` with dockerode; none, said so, where it cannot be had.
pub fn node() -> Option<PathBuf> {
    said(modules()).map(|dir| dir.join("node_modules"))
}

fn said(installed: Result<PathBuf, String>) -> Option<PathBuf> {
    installed.map_err(|why| eprintln!("SKIPPED: a client cannot be installed: {why}")).ok()
}

fn environment() -> Result<PathBuf, String> {
    installed("python", PINS, |dir| {
        run(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
        let mut pip = Command::new(dir.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement"]);
        run(pip.arg(file("requirements.txt")))
    })
}

fn modules() -> Result<PathBuf, String> {
    installed("node", NODE, |dir| {
        fs::create_dir_all(dir).map_err(|e| e.to_string())?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
        run(npm.arg(dir).arg(NODE))
    })
}

/// A directory that was made whole for these pins. One that says other pins, or none since its making was cut off, is made
/// anew: a Python environment has its own path in it and cannot be moved into place.
fn installed(
    name: &str,
    pins: &str,
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-clients");
    fs::create_dir_all(&cache).map_err(|e| e.to_string())?;
    let cache = cache.canonicalize().map_err(|e| e.to_string())?;
    // Tests of several processes may come at once.
    let lock = File::create(cache.join(format!("{name}.lock"))).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    let (dir, mark) = (cache.join(name), cache.join(format!("{name}.pins")));
    if fs::read_to_string(&mark).is_ok_and(|have| have == pins) {
        return Ok(dir);
    }
    let _ = fs::remove_dir_all(&dir);
    make(&dir)?;
    fs::write(mark, pins).map_err(|e| e.to_string())?;
    Ok(dir)
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.stdin(Stdio::null()).output().map_err(|e| format!("{program}: {e}"))?;
    if done.status.success() {
        return Ok(());
    }
    let text = [done.stdout, done.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    Err(format!("{program}: {}", text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("it failed")))
}
