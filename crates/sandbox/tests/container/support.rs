//! A busybox root filesystem, a specification as the engine writes it, and one call to run it.

use dhow_sandbox::container::ContainerHull;
use dhow_sandbox::hull::*;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

const APPLETS: &[&str] = &[
    "sh", "ls", "cat", "true", "false", "sleep", "id", "mount", "ps", "echo", "hostname", "stat", "readlink",
    "pwd", "touch", "mknod", "unshare", "kill", "grep", "mkdir", "env", "ulimit", "umount", "chroot", "tty",
    "stty", "test", "ln", "wc", "head", "dd",
];

/// A root filesystem of its own for each test; removed at the end.
pub struct Rootfs(pub tempfile::TempDir);

impl Rootfs {
    pub fn new() -> Self {
        let tmp = tempfile::Builder::new().prefix("dhow-test-").tempdir().unwrap();
        let root = tmp.path().join("root");
        for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:\n")
            .unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\nann:x:1000:\nextra:x:44:ann\n").unwrap();
        Self(tmp)
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join("root").join(inside.trim_start_matches('/'))
    }

    /// A place beside the root, which the container must never reach.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn mount(&self) -> OwnedFd {
        sys::mount::clone_path(&self.path("/"), true).unwrap()
    }
}

/// Docker's defaults, in short.
pub fn spec(args: &[&str]) -> Value {
    let caps: Vec<String> = process::caps::docker_default().into_iter().map(process::caps::name).collect();
    let seccomp = process::seccomp::default_profile(&process::caps::docker_default());
    let mut spec = bare(args, &caps);
    spec["linux"]["seccomp"] = serde_json::to_value(seccomp).unwrap();
    spec
}

fn bare(args: &[&str], caps: &[String]) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "", "readonly": false},
        "hostname": "testhost",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": false,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps}
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]}
        ],
        "linux": {
            "namespaces": [
                {"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "cgroup"}
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi",
                "/proc/sched_debug", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// A shell command.
pub fn shell(script: &str) -> Value {
    spec(&["sh", "-c", script])
}

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

/// A container with pipes for its output.
pub struct Box_ {
    pub sandbox: Box<dyn Sandbox>,
    pub console: Option<OwnedFd>,
    out: File,
    err: File,
    pub cgroup: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

pub fn unique() -> String {
    format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Where the cgroups of this run are.
pub fn cgroup_parent() -> String {
    format!("/dhow-test-{}", std::process::id())
}

pub fn create(root: &Rootfs, spec: &Value) -> Result<Box_, HullError> {
    create_with(root, spec, false)
}

pub fn create_with(root: &Rootfs, spec: &Value, init: bool) -> Result<Box_, HullError> {
    let spec: types::oci::Spec = serde_json::from_value(spec.clone()).unwrap();
    let mount = root.mount();
    let id = unique();
    let cgroup = format!("{}/{id}", cgroup_parent());
    let null = File::open("/dev/null").unwrap();
    let (out, out_w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (err, err_w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let created = ContainerHull.create(CreateRequest {
        id: &id,
        spec: &spec,
        rootfs: dhow_sandbox::hull::Rootfs::Mount(mount.as_fd()),
        run: std::path::Path::new("/nonexistent"),
        cgroup: &cgroup,
        stdio: [null.as_fd(), out_w.as_fd(), err_w.as_fd()],
        console_size: Some((25, 81)),
        removed: false,
        init,
        network_outside: &mut |_| Ok(()),
        taps: &mut || Ok(Vec::new()),
        network_inside: &|| Ok(()),
        meanwhile: &|| (),
    })?;
    let Created { sandbox, console, .. } = created;
    Ok(Box_ { sandbox, console, out: out.into(), err: err.into(), cgroup })
}

impl Box_ {
    /// Waits for the end, takes the output, destroys.
    pub fn finish(mut self) -> Outcome {
        wait_readable(&self.sandbox.pidfd());
        let status = self.sandbox.wait().unwrap();
        self.sandbox.destroy().unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).unwrap();
        self.err.read_to_string(&mut err).unwrap();
        Outcome { status, out, err }
    }

    /// Runs a shell script beside the main process.
    pub fn exec(&mut self, process: Value) -> Result<Outcome, HullError> {
        let process: types::oci::Process = serde_json::from_value(process).unwrap();
        let null = File::open("/dev/null").unwrap();
        let (out, out_w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let child = self.sandbox.exec(ExecRequest {
            id: "exec",
            process: &process,
            stdio: [null.as_fd(), out_w.as_fd(), out_w.as_fd()],
            console_size: Some((25, 81)),
        })?;
        drop(out_w);
        let mut text = String::new();
        match &child.console {
            Some(console) => text = read_terminal(console),
            None => drop(File::from(out).read_to_string(&mut text).unwrap()),
        }
        wait_readable(&child.pidfd);
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        let status = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Exited(code),
            (_, signal) => ExitStatus::Signaled(signal.unwrap_or(0)),
        };
        Ok(Outcome { status, out: text, err: String::new() })
    }
}

/// Everything until the terminal's other side is closed.
pub fn read_terminal(console: &OwnedFd) -> String {
    let mut text = Vec::new();
    let mut file = File::from(console.try_clone().unwrap());
    // EIO is how a terminal says that nobody is there any more.
    let _ = file.read_to_end(&mut text);
    String::from_utf8_lossy(&text).replace("\r\n", "\n")
}

pub fn wait_readable(fd: &impl AsFd) {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], None).unwrap();
}

/// Creates, starts, waits.
pub fn run(root: &Rootfs, spec: &Value) -> Result<Outcome, HullError> {
    let mut created = create(root, spec)?;
    match created.sandbox.start() {
        Ok(_) => Ok(created.finish()),
        Err(e) => {
            created.sandbox.destroy().unwrap();
            Err(e)
        }
    }
}

/// The output of a shell script in a container of default make.
pub fn sh(root: &Rootfs, script: &str) -> String {
    let done = run(root, &shell(script)).unwrap();
    assert_eq!(done.status, ExitStatus::Exited(0), "{script}: {done:?}");
    done.out
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
