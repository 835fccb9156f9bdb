//! Reads and writes the files of a running container from within its user namespace, so that owners, access lists and
//! file capabilities are told and taken as its own processes see them.
//!
//! To enter a user namespace takes a process with one thread: our program is executed again for it. It enters nothing
//! else of the container, and reaches its files through a handle of the root that it opens before.

use crate::{EngineError, Result};
use rootfs::{RootfsError, UnpackOptions};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Gid, Uid};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use sys::Root;
use types::{ErrorKind, Kinded, RunState};

/// The hidden verb by which the binary does this.
const VERB: &str = "inside";

/// Exit codes of the process, from 1 on.
const KINDS: [ErrorKind; 9] = [
    ErrorKind::Internal,
    ErrorKind::NotFound,
    ErrorKind::Conflict,
    ErrorKind::Invalid,
    ErrorKind::Denied,
    ErrorKind::Unavailable,
    ErrorKind::Exhausted,
    ErrorKind::Corrupt,
    ErrorKind::Unsupported,
];

/// [`rootfs::pack`], or of everything [`rootfs::export`].
pub(crate) fn read(
    state: &RunState,
    path: Option<&Path>,
    rename: Option<&OsStr>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut args = vec![OsStr::new(if path.is_some() { "pack" } else { "export" })];
    args.extend(path.map(Path::as_os_str));
    args.extend(rename);
    let mut child = spawn(state, &args, Stdio::null(), Stdio::piped())?;
    let mut written = Ok(());
    if let Some(mut from) = child.stdout.take() {
        // The receiver's failure is told instead of that of the process, which follows from it.
        written = copy(&mut from, out).map_err(|(_, source)| RootfsError::Output { source });
    }
    let ended = end(child);
    written?;
    ended
}

/// [`rootfs::unpack`].
pub(crate) fn write(state: &RunState, dir: &Path, tar: &mut dyn Read, options: &UnpackOptions) -> Result<()> {
    let strict = if options.no_overwrite_dir_non_dir { "strict" } else { "replace" };
    let owner = options.owner.map(|(uid, gid)| format!("{uid}:{gid}")).unwrap_or_default();
    let args = [OsStr::new("unpack"), dir.as_os_str(), strict.as_ref(), owner.as_ref()];
    let mut child = spawn(state, &args, Stdio::piped(), Stdio::null())?;
    let mut sent = Ok(());
    if let Some(mut to) = child.stdin.take() {
        sent = copy(tar, &mut to);
    }
    let ended = end(child);
    match sent {
        Err((Side::Source, source)) => Err(RootfsError::Tar { source }.into()),
        // It hung up: it says why, or has all it needs.
        _ => ended,
    }
}

enum Side {
    Source,
    Sink,
}

fn copy(from: &mut dyn Read, to: &mut dyn Write) -> Result<(), (Side, io::Error)> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return to.flush().map_err(|e| (Side::Sink, e)),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err((Side::Source, e)),
        };
        to.write_all(buffer.get(..n).unwrap_or_default()).map_err(|e| (Side::Sink, e))?;
    }
}

fn spawn(state: &RunState, args: &[&OsStr], stdin: Stdio, stdout: Stdio) -> Result<Child> {
    let exe =
        sys::exe::self_exe_sealed().map_err(EngineError::io("cannot open", "/proc/self/exe".as_ref()))?;
    let program = format!("/proc/self/fd/{}", exe.as_raw_fd());
    Command::new(&program)
        .arg0("dhow")
        .args([VERB, &state.pid.to_string(), &state.pid_start.to_string()])
        .args(args)
        .env_clear()
        .stdin(stdin)
        .stdout(stdout)
        .stderr(Stdio::piped())
        .current_dir("/")
        .spawn()
        .map_err(EngineError::io("cannot execute", program.as_ref()))
}

fn end(child: Child) -> Result<()> {
    let output = child.wait_with_output().map_err(EngineError::io("cannot wait for", VERB.as_ref()))?;
    if output.status.success() {
        return Ok(());
    }
    let kind = output.status.code().and_then(|c| KINDS.get(usize::try_from(c).ok()?.checked_sub(1)?));
    let message = match String::from_utf8_lossy(&output.stderr).trim() {
        "" => format!("the process that handles the container's files failed: {}", output.status),
        said => said.to_owned(),
    };
    Err(EngineError::Inside { kind: kind.copied().unwrap_or(ErrorKind::Internal), message })
}

/// The `main` of the process: `inside PID STARTED pack PATH [NAME]`, `… export` or `… unpack DIR strict|replace
/// [UID:GID]`, with the tar on its standard streams. Returns the exit code.
pub fn inside(args: &[OsString]) -> i32 {
    let Err(e) = work(args) else { return 0 };
    let _ = writeln!(io::stderr(), "{e}");
    let kind = e.kind();
    KINDS.iter().zip(1..).find(|(k, _)| **k == kind).map_or(1, |(_, code)| code)
}

fn work(args: &[OsString]) -> Result<()> {
    let usage = || EngineError::Invalid("this verb is for dhow itself".into());
    let [pid, started, verb, args @ ..] = args else { return Err(usage()) };
    let number = |text: &OsString| text.to_str().and_then(|t| t.parse::<u64>().ok()).ok_or_else(usage);
    let root = enter(i32::try_from(number(pid)?).map_err(|_| usage())?, number(started)?)?;
    match (verb.to_str(), args) {
        (Some("pack"), [path]) => output(|out| rootfs::pack(&root, path.as_ref(), None, out)),
        (Some("pack"), [path, name]) => output(|out| rootfs::pack(&root, path.as_ref(), Some(name), out)),
        (Some("export"), []) => output(|out| rootfs::export(&root, out)),
        (Some("unpack"), [dir, how, owner]) => {
            let owner = owner.to_str().and_then(|o| o.split_once(':'));
            let owner = owner.and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
            let options = UnpackOptions {
                no_overwrite_dir_non_dir: how == "strict",
                owner,
                ..UnpackOptions::default()
            };
            Ok(rootfs::unpack(&root, dir.as_ref(), &mut io::stdin().lock(), &options)?)
        }
        _ => Err(usage()),
    }
}

fn output(work: impl FnOnce(&mut dyn Write) -> Result<(), RootfsError>) -> Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    work(&mut out)?;
    out.flush().map_err(|source| RootfsError::Output { source }.into())
}

/// Becomes root of the user namespace of a process; returns that process's root directory.
fn enter(pid: i32, started: u64) -> Result<Root> {
    let path = format!("/proc/{pid}/ns/user");
    let io = |e| EngineError::io("cannot enter", path.as_ref())(e);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = openat(CWD, path.as_str(), flags, Mode::empty()).map_err(|e| io(e.into()))?;
    let root = format!("/proc/{pid}/root");
    let root = Root::open(&root).map_err(EngineError::io("cannot open", root.as_ref()))?;
    // After both are open: then neither is another process's that got the number meanwhile.
    if !sys::host::is_running(pid, started) {
        return Err(EngineError::Conflict("the container has ended".into()));
    }
    sys::clone::setns(namespace.as_fd(), sys::clone::ns::USER).map_err(io)?;
    let become_root = || {
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
    };
    become_root().map_err(|e: rustix::io::Errno| io(e.into()))?;
    // As the container's own: what a tar says of modes is what files get.
    rustix::process::umask(Mode::empty());
    Ok(root)
}
