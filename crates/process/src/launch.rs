//! From a forked copy of us to the workload: the steps that a process takes on itself.
//!
//! ```text
//! Launch::new (parent) ──► settle (child, in the container, privileged) ──► [wait for start] ──► go ──► execve
//! ```
//!
//! `settle` does all that can be done before the start: directory, limits, user, the search of `PATH`. `go` gives up
//! the last privileges. The order is forced by the kernel: a seccomp filter needs CAP_SYS_ADMIN unless
//! `no_new_privs` is set, so without the latter it is loaded just before the capabilities go, with it as the last
//! thing of all.

use crate::caps::{self, Sets};
use crate::error::{LaunchError, Step};
use crate::limits::{self, Limit};
use crate::lookup;
use crate::seccomp_load::Loadable;
use crate::user;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use sys::Root;
use types::oci;

/// `CLONE_PARENT`, clone(2).
const CLONE_PARENT: u64 = 0x8000;
/// ioctl_tty(2).
const TIOCSCTTY: u64 = 0x540e;

/// A process of the specification in the kernel's terms.
#[derive(Debug)]
pub struct Launch {
    command: String,
    args: Vec<CString>,
    env: Vec<CString>,
    path: String,
    cwd: PathBuf,
    user: UserSpec,
    umask: Mode,
    caps: Sets,
    left_out: Vec<oci::Capability>,
    limits: Vec<Limit>,
    no_new_privileges: bool,
    io_priority: Option<(u16, u16)>,
    seccomp: Option<Loadable>,
    found: Option<CString>,
}

/// By number, or by name as far as only the container's own files can tell.
#[derive(Debug)]
struct UserSpec {
    name: Option<String>,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home_is_set: bool,
}

impl Launch {
    /// Checks and translates; to be called in the parent, where an error costs nothing.
    pub fn new(process: &oci::Process, seccomp: Option<Loadable>) -> Result<Self, LaunchError> {
        let text = |what: &str, s: &String| {
            CString::new(s.as_bytes())
                .map_err(|_| LaunchError::Invalid(format!("{what} {s:?} contains a zero byte")))
        };
        let args = process.args().as_deref().unwrap_or_default();
        let Some(command) = args.first() else {
            return Err(LaunchError::Invalid("no command specified".into()));
        };
        let env = process.env().as_deref().unwrap_or_default();
        let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(lookup::DEFAULT_PATH);
        let cwd = process.cwd();
        if !cwd.is_absolute() {
            return Err(LaunchError::Invalid(format!(
                "the working directory {cwd:?} is invalid: it needs to be an absolute path"
            )));
        }
        let available = caps::bounding();
        let caps = Sets::new(process.capabilities().as_ref(), available);
        let wanted = process.capabilities().as_ref().and_then(|c| c.bounding().as_ref());
        let left_out = wanted.map_or(0, caps::to_bits) & !available;
        let user = process.user();
        Ok(Self {
            command: command.clone(),
            args: args.iter().map(|a| text("argument", a)).collect::<Result<_, _>>()?,
            env: env.iter().map(|e| text("environment variable", e)).collect::<Result<_, _>>()?,
            path: path.to_owned(),
            cwd: cwd.clone(),
            user: UserSpec {
                name: user.username().clone().filter(|n| !n.is_empty()),
                uid: user.uid(),
                gid: user.gid(),
                groups: user.additional_gids().clone().unwrap_or_default(),
                home_is_set: env.iter().any(|e| e.starts_with("HOME=")),
            },
            umask: Mode::from_raw_mode(user.umask().unwrap_or(0o022) & 0o777),
            caps,
            left_out: caps::from_bits(left_out).into_iter().collect(),
            limits: limits::check(
                process.rlimits().as_deref().unwrap_or_default(),
                available & caps::SYS_RESOURCE != 0,
            )?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
            seccomp,
            found: None,
        })
    }

    /// Capabilities that were asked for and that this host cannot give.
    pub fn left_out(&self) -> &[oci::Capability] {
        &self.left_out
    }

    /// Makes this process ready: it is in the container's namespaces and root already, with all privileges there.
    pub fn settle(&mut self) -> Result<(), LaunchError> {
        let root = Root::open("/").step(|| "open the container's root".into())?;
        self.resolve_user(&root)?;
        enter(&root, &self.cwd)?;
        drop(root);
        // No key of whoever started us; kernels without keyrings have none to hide.
        let _ = sys::process::new_session_keyring(c"_ses");
        limits::apply(&self.limits)?;
        if let Some((class, level)) = self.io_priority {
            sys::process::set_io_priority(class, level).step(|| "set the I/O priority".into())?;
        }
        rustix::process::umask(self.umask);
        self.own_stdio();
        self.become_user()?;
        // The change of user made it what fs.suid_dumpable says, which may be traceable.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .step(|| "make this process undumpable".into())?;
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs".into())?;
        }
        self.found = Some(lookup::find(&self.command, &self.path)?);
        Ok(())
    }

    /// Whether a process that has done [`Self::drop_privileges`] can still make another one that only opens its session
    /// and calls [`Self::exec`]. The default policy lets it.
    pub fn can_spawn_after(&self, terminal: bool) -> bool {
        let Some(filter) = &self.seccomp else { return true };
        let calls = [("clone", CLONE_PARENT), ("sendto", 0), ("setsid", 0), ("exit_group", 0)];
        calls.into_iter().all(|(call, first)| filter.allows(call, [first, 0, 0, 0, 0, 0]))
            && (!terminal || filter.allows("ioctl", [0, TIOCSCTTY, 0, 0, 0, 0]))
    }

    /// Gives up, after [`Self::settle`], every capability that the last steps do not need: for a process that others,
    /// who may hold CAP_SYS_PTRACE, are about to see.
    pub fn narrow(&self) -> Result<(), LaunchError> {
        let for_seccomp = if self.seccomp.is_some() && !self.no_new_privileges { caps::SYS_ADMIN } else { 0 };
        let keep = CapabilitySet::from_bits_retain(self.caps.permitted | for_seccomp);
        let now = rustix::thread::capabilities(None).step(|| "read the capabilities".into())?;
        let permitted = now.permitted & keep;
        let sets =
            CapabilitySets { effective: permitted, permitted, inheritable: now.inheritable & permitted };
        rustix::thread::set_capabilities(None, sets).step(|| "set the capabilities".into())
    }

    /// Gives up what privileges are left and loads the seccomp filter.
    pub fn drop_privileges(&self) -> Result<(), LaunchError> {
        sys::process::close_on_exec_from_3().step(|| "close descriptors".into())?;
        if !self.no_new_privileges {
            self.load_seccomp()?;
        }
        self.final_capabilities()?;
        if self.no_new_privileges {
            self.load_seccomp()?;
        }
        Ok(())
    }

    /// Becomes the command.
    pub fn exec(&self) -> LaunchError {
        let Some(found) = &self.found else {
            return LaunchError::NotFound { command: self.command.clone() };
        };
        let source = sys::process::execve(found, &self.args, &self.env);
        LaunchError::NotExecutable { command: self.command.clone(), source }
    }

    /// `drop_privileges` and `exec`.
    pub fn go(&self) -> Result<Infallible, LaunchError> {
        self.drop_privileges()?;
        Err(self.exec())
    }

    fn resolve_user(&mut self, root: &Root) -> Result<(), LaunchError> {
        let wanted = &mut self.user;
        if let Some(name) = &wanted.name {
            let user =
                user::resolve_user(root, name, &[]).map_err(|e| LaunchError::Invalid(e.to_string()))?;
            (wanted.uid, wanted.gid) = (user.uid(), user.gid());
            wanted.groups.extend(user.additional_gids().iter().flatten());
        }
        if !wanted.home_is_set
            && let Ok(home) = CString::new(format!("HOME={}", user::home(root, wanted.uid)))
        {
            self.env.push(home);
        }
        Ok(())
    }

    /// Gives the standard streams to the user, who could otherwise not open `/dev/stdout` again. What cannot be given
    /// (a read-only file, a foreign device) stays as it is.
    fn own_stdio(&self) {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
            let Ok(meta) = rustix::fs::fstat(fd) else { continue };
            let kind = FileType::from_raw_mode(meta.st_mode);
            let private = kind.is_fifo() || kind.is_socket() || rustix::termios::isatty(fd);
            if private && meta.st_uid != self.user.uid {
                let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(self.user.uid)), None);
            }
        }
    }

    /// Drops the bounding set and changes to the user; keeps, for the steps still to come, all other privileges.
    fn become_user(&self) -> Result<(), LaunchError> {
        let groups: Vec<Gid> = self.user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        rustix::thread::set_thread_groups(&groups).step(|| "set the additional groups".into())?;
        let surplus = caps::bounding() & !self.caps.bounding;
        for bit in (0..63).map(|i| 1u64 << i).filter(|bit| surplus & bit != 0) {
            rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(bit))
                .step(|| "drop capabilities from the bounding set".into())?;
        }
        let before = rustix::thread::capabilities(None).step(|| "read the capabilities".into())?;
        rustix::thread::set_keep_capabilities(true).step(|| "keep capabilities".into())?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)
            .step(|| format!("change to gid {}", self.user.gid))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)
            .step(|| format!("change to uid {}", self.user.uid))?;
        rustix::thread::set_keep_capabilities(false).step(|| "keep capabilities".into())?;
        // The change of user emptied the effective set.
        let kept = CapabilitySets { effective: before.permitted, ..before };
        rustix::thread::set_capabilities(None, kept).step(|| "raise capabilities".into())
    }

    fn final_capabilities(&self) -> Result<(), LaunchError> {
        let set = CapabilitySet::from_bits_retain;
        // With what user namespaces and hosts give, no more can be had than is permitted now.
        let now = rustix::thread::capabilities(None).step(|| "read the capabilities".into())?;
        let permitted = self.caps.permitted & now.permitted.bits();
        let sets = CapabilitySets {
            effective: set(self.caps.effective & permitted),
            permitted: set(permitted),
            inheritable: set(self.caps.inheritable & permitted),
        };
        rustix::thread::set_capabilities(None, sets).step(|| "set the capabilities".into())?;
        rustix::thread::clear_ambient_capability_set().step(|| "clear the ambient capabilities".into())?;
        let ambient = self.caps.ambient & permitted & sets.inheritable.bits();
        for bit in (0..63).map(|i| 1u64 << i).filter(|bit| ambient & bit != 0) {
            rustix::thread::configure_capability_in_ambient_set(set(bit), true)
                .step(|| "set the ambient capabilities".into())?;
        }
        Ok(())
    }

    fn load_seccomp(&self) -> Result<(), LaunchError> {
        let Some(filter) = &self.seccomp else { return Ok(()) };
        filter.load().step(|| "load the seccomp filter".into())
    }
}

fn io_priority(wanted: &oci::LinuxIOPriority) -> Result<(u16, u16), LaunchError> {
    let class = match wanted.class() {
        oci::IOPriorityClass::IoprioClassRt => 1,
        oci::IOPriorityClass::IoprioClassBe => 2,
        oci::IOPriorityClass::IoprioClassIdle => 3,
    };
    match u16::try_from(wanted.priority()) {
        Ok(level @ 0..=7) => Ok((class, level)),
        _ => Err(LaunchError::Invalid(format!("I/O priority {} is not in 0-7", wanted.priority()))),
    }
}

/// Makes `cwd` the working directory, made if it is missing, and proves that it lies in the container
/// (CVE-2024-21626): no magic link is followed, and the kernel must know its path from our root.
fn enter(root: &Root, cwd: &PathBuf) -> Result<(), LaunchError> {
    let step = || format!("enter the working directory {cwd:?}");
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let dir = match root.resolve(cwd, flags, Mode::empty()) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => root.mkdir_all(cwd, Mode::from_raw_mode(0o755)),
        done => done,
    };
    let dir = dir.step(step)?;
    rustix::process::fchdir(&dir).step(step)?;
    let now = rustix::process::getcwd(Vec::new()).step(step)?;
    if !now.to_bytes().starts_with(b"/") {
        return Err(LaunchError::Invalid(format!(
            "the working directory {cwd:?} is outside of the container"
        )));
    }
    Ok(())
}
