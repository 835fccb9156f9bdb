//! A supervisor in a process of its own: this test program, executed once more as `as_supervisor`.

use crate::fake::FakeHull;
use dhow_sandbox::client::*;
use dhow_sandbox::hull::Wiring;
use dhow_sandbox::logs;
use dhow_sandbox::supervisor::{HookError, Hooks, Supervise, supervise};
use rustix::io::fcntl_setfd;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use types::{Attachment, Bundle, PortBinding, RunState};

pub const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub struct Rig {
    pub tmp: tempfile::TempDir,
    pub bundle: Bundle,
    pub child: Option<Child>,
}

impl Rig {
    pub fn new(script: &str) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("root").join(ID)).unwrap();
        std::fs::create_dir_all(tmp.path().join("run").join(ID)).unwrap();
        let bundle = serde_json::from_value(serde_json::json!({
            "id": ID, "name": "t", "image": "i", "labels": {},
            "spec": { "ociVersion": "1.0.2", "process": { "terminal": false, "cwd": "/", "args": ["sh", "-c", script], "user": {"uid": 0, "gid": 0} },
                      "root": {"path": "x"} },
            "rootfs": { "layers": [], "layer_mounts": "/nonexistent", "writable": "/nonexistent" },
            "network": "none", "cgroup": "/x", "open_stdin": false, "stdin_once": false, "init": false,
            "console_size": null, "restart": "no", "auto_remove": false, "stop_signal": 15, "stop_timeout": 10,
            "health": null,
            "log": { "driver": "json-file", "max_size": null, "max_file": 1, "compress": false, "attrs": {} },
        }));
        Self { tmp, bundle: bundle.unwrap(), child: None }
    }

    pub fn dir(&self) -> PathBuf {
        self.tmp.path().join("root").join(ID)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.tmp.path().join("run").join(ID)
    }

    /// Starts the supervisor.
    pub fn launch(&mut self, attach: Option<AttachOptions>) -> Result<(i32, Option<Stream>), ClientError> {
        self.begin(attach).started()
    }

    /// The same, and leaves it to the caller to wait for the start.
    pub fn begin(&mut self, attach: Option<AttachOptions>) -> Launch {
        let (launch, theirs) = Launch::new(attach).unwrap();
        self.spawn(Some(theirs), false);
        launch
    }

    /// Makes something of the workload's start wait for a FIFO ([`crate::fake`]).
    pub fn slow(&mut self, name: &str) -> PathBuf {
        let fifo = fifo(&self.tmp.path().join(name));
        let process = self.bundle.spec.process_mut().as_mut().unwrap();
        let mut env = process.env().clone().unwrap_or_default();
        env.push(format!("{name}={}", fifo.display()));
        process.set_env(Some(env));
        fifo
    }

    pub fn adopt(&mut self) {
        let (launch, theirs) = Launch::new(None).unwrap();
        self.spawn(Some(theirs), true);
        launch.started().unwrap();
    }

    fn spawn(&mut self, ready: Option<OwnedFd>, adopt: bool) {
        std::fs::write(self.dir().join("bundle.json"), serde_json::to_vec(&self.bundle).unwrap()).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["as_supervisor", "--exact", "--nocapture"]).env("SUPERVISE", self.tmp.path());
        command.env("ADOPT", if adopt { "1" } else { "" });
        // The socket goes down as stdin: the one descriptor that needs no inheritance by number.
        if let Some(ready) = ready {
            command.stdin(Stdio::from(ready));
        }
        command.stdout(Stdio::null());
        self.child = Some(command.spawn().unwrap());
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.run_dir()).unwrap()
    }

    pub fn state(&self) -> RunState {
        serde_json::from_slice(&std::fs::read(self.dir().join("state.json")).unwrap()).unwrap()
    }

    pub fn events(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir().join("events")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The log as text, stdout and stderr together.
    pub fn log(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let all = &mut |entry: logs::Entry| {
            out.extend(entry.line);
            ControlFlow::Continue(())
        };
        logs::read(&self.dir(), &self.bundle.log, &logs::ReadOptions::default(), all, &|| false).unwrap();
        out
    }

    /// Waits for the supervisor's own end.
    pub fn gone(&mut self) -> i32 {
        let mut child = self.child.take().unwrap();
        until("the supervisor's end", || child.try_wait().unwrap().is_some());
        child.wait().unwrap().code().unwrap_or(-1)
    }
}

/// Makes a FIFO.
pub fn fifo(path: &Path) -> PathBuf {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    path.to_owned()
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if let Ok(mut client) = Client::connect(&self.run_dir()) {
                let _ = client.kill_all();
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Everything that a stream brings, and its exit code.
pub fn collect(mut stream: Stream) -> (Vec<u8>, Vec<u8>, Option<i32>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match stream.next_frame().unwrap() {
            Some(OwnedFrame::Stdout(bytes)) => out.extend(bytes),
            Some(OwnedFrame::Stderr(bytes)) => err.extend(bytes),
            Some(OwnedFrame::Exit { code, .. }) => return (out, err, Some(code)),
            None => return (out, err, None),
        }
    }
}

pub const BOTH: AttachOptions = AttachOptions { stdin: false, stdout: true, stderr: true };

struct FakeHooks {
    events: std::fs::File,
}

impl Wiring for FakeHooks {
    fn connect(&mut self, a: &Attachment, _: Option<BorrowedFd<'_>>) -> Result<(), HookError> {
        writeln!(self.events, "(connect {} default={})", a.ifname, a.default_route).unwrap();
        match a.ifname.as_str() {
            "eth9" => Err(HookError { kind: types::ErrorKind::Exhausted, message: "no wire left".into() }),
            _ => Ok(()),
        }
    }
    fn is_connected(&self, a: &Attachment) -> bool {
        a.ifname != "eth7"
    }
    fn configure(&mut self, a: &Attachment, _: BorrowedFd<'_>) -> Result<(), HookError> {
        writeln!(self.events, "(configure {} default={})", a.ifname, a.default_route).unwrap();
        Ok(())
    }
    fn disconnect(&mut self, a: &Attachment, _: Option<BorrowedFd<'_>>) -> Result<(), HookError> {
        writeln!(self.events, "(disconnect {})", a.ifname).unwrap();
        Ok(())
    }
}

impl Hooks for FakeHooks {
    fn rootfs(&mut self, _: &Bundle) -> Result<OwnedFd, HookError> {
        Ok(std::fs::File::open("/").unwrap().into())
    }
    fn network_outside(&mut self, _: &Bundle, _: BorrowedFd<'_>) -> Result<Vec<PortBinding>, HookError> {
        Ok(Vec::new())
    }
    fn taps(&mut self, _: &Bundle) -> Result<(Vec<OwnedFd>, Vec<types::PortBinding>), HookError> {
        Ok((Vec::new(), Vec::new()))
    }

    fn network_inside(&self, _: &Bundle) -> Result<(), HookError> {
        Ok(())
    }
    fn networks_changed(&mut self, bundle: &Bundle) -> Result<Vec<PortBinding>, HookError> {
        let ports = bundle.network.attachments().iter().find(|a| !a.ports.is_empty());
        Ok(ports.map(|a| a.ports.clone()).unwrap_or_default())
    }
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn serve(&mut self) {}
    fn ended(&mut self, bundle: &Bundle) {
        self.event(bundle, "(ended)", &[]);
    }
    fn event(&mut self, _: &Bundle, action: &str, attributes: &[(&str, String)]) {
        let rest: String =
            attributes.iter().filter(|(k, _)| *k != "execID").map(|(k, v)| format!(" {k}={v}")).collect();
        writeln!(self.events, "{action}{rest}").unwrap();
    }
    fn finished(&mut self, bundle: &Bundle, _: &RunState) {
        self.event(bundle, "(finished)", &[]);
    }
}

/// The other side: runs in the re-executed test program.
pub fn supervisor_main(tmp: &Path) -> i32 {
    let (dir, run) = (tmp.join("root").join(ID), tmp.join("run").join(ID));
    let bundle = serde_json::from_slice(&std::fs::read(dir.join("bundle.json")).unwrap()).unwrap();
    let lock = sys::file::Lock::try_exclusive(&run.join("lock")).unwrap().expect("one supervisor at a time");
    let ready = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).unwrap();
    let _ = fcntl_setfd(&ready, rustix::io::FdFlags::CLOEXEC);
    assert!(ready.as_raw_fd() > 2);
    let adopt = std::env::var_os("ADOPT")
        .filter(|v| !v.is_empty())
        .map(|_| serde_json::from_slice(&std::fs::read(dir.join("state.json")).unwrap()).unwrap());
    let events = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("events")).unwrap();
    supervise(
        Supervise { bundle, dir, run, lock, ready: Some(ready), listener: None, adopt },
        &FakeHull,
        &mut FakeHooks { events },
    )
}
