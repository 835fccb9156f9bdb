//! The child's side of `create`: from the moment of the clone to the workload's first instruction.
//!
//! ```text
//! [user namespace: Mapped] ─► join ─► root attached ─► mounts ─► (Go: the network is there) ─► cgroup view
//!   ─► devices ─► sysctls ─► masks ─► pivot_root ─► stdio, terminal ─► user, limits, PATH ─► Ready … Start ─► execve
//! ```
//!
//! Until `pivot_root` the host's tree is in sight and is trusted; the root filesystem never is: it is reached
//! through [`Root`] only. The process cannot be traced or looked into by anybody in the container, as it is not
//! dumpable (CVE-2016-9962), and it closes all it does not need first.

use super::cgroup::Cgroup;
use super::cgroup_view::View;
use super::devices::{self, Console};
use super::hooks;
use super::labels::Labels;
use super::namespaces::{become_root, enter_time};
use super::plan::Plan;
use super::step::Step;
use super::wire::{Wire, Word};
use super::{paths, reaper, sysctl};
use crate::hull::{CreateRequest, HullError, Rootfs};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::cell::OnceCell;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::Root;
use sys::clone::ns;
use sys::mount::{Change, attr, propagation, set_attributes};

/// Builds the container around this process and executes the workload; returns, with the exit code, only
/// when that failed.
pub(super) fn run(plan: &mut Plan<'_>, request: &CreateRequest<'_>, cgroup: &Cgroup, wire: Wire) -> i32 {
    let Err(e) = build(plan, request, cgroup, &wire).and_then(|()| finish(plan, request, &wire));
    let code = e.exit_code();
    wire.say_failed(e);
    code
}

/// The mount; the hull has looked before.
fn rootfs<'a>(request: &CreateRequest<'a>) -> Result<BorrowedFd<'a>, HullError> {
    match request.rootfs {
        Rootfs::Mount(fd) => Ok(fd),
        Rootfs::Machine { .. } => Err(HullError::Invalid("a container has no disks".into())),
    }
}

/// Everything up to `Ready`.
fn build(
    plan: &mut Plan<'_>,
    request: &CreateRequest<'_>,
    cgroup: &Cgroup,
    wire: &Wire,
) -> Result<(), HullError> {
    if request.init {
        // The init stays what this process is, and its arguments name the host's paths.
        sys::process::set_title(reaper::TITLE).step(|| "name the init".into())?;
        let _ = rustix::thread::set_name(reaper::NAME);
    }
    if cgroup.fd().is_none() && plan.namespaces.new & ns::USER == 0 {
        // By itself: to be moved by another process takes a grace period of the kernel.
        cgroup.join()?;
    }
    let mut keep = vec![wire.as_fd(), rootfs(request)?];
    keep.extend(request.stdio);
    keep.extend(plan.fds());
    sys::process::close_all_but(&keep).step(|| "close descriptors".into())?;
    sys::process::reset_signals();
    rustix::process::umask(Mode::empty());
    if plan.namespaces.new & ns::USER != 0 {
        wire.await_word(Word::Mapped).step(|| "wait for the user mappings".into())?;
        become_root()?;
    }
    plan.namespaces.enter()?;
    if plan.namespaces.new & ns::TIME != 0 {
        enter_time(plan.spec)?;
    }

    let inside = Inside::attach(plan, request, wire)?;
    let console = inside.furnish()?;
    let labels = Labels::open(plan.process)?;
    inside.leave_host()?;

    set_stdio(request, console.as_ref(), request.init)?;
    labels.apply()?;
    if let Some(domain) = plan.personality {
        sys::process::personality(domain).step(|| "set the personality".into())?;
    }
    plan.launch.settle()?;
    wire.say_ready(console.as_ref().map(|c| c.master.as_fd())).step(|| "report".into())
}

/// From `Start` on.
fn finish(plan: &Plan<'_>, request: &CreateRequest<'_>, wire: &Wire) -> Result<Infallible, HullError> {
    wire.await_word(Word::Start).step(|| "wait for the start".into())?;
    hooks::start_container(plan.spec, request.id)?;
    if request.init {
        return reaper::run(&plan.launch, plan.terminal(), wire);
    }
    Ok(plan.launch.go()?)
}

/// Descriptors 0 to 2: those of the request, or the terminal, which becomes the controlling one.
fn set_stdio(request: &CreateRequest<'_>, console: Option<&Console>, init: bool) -> Result<(), HullError> {
    let fds = console.map_or(request.stdio, |c| [c.slave.as_fd(); 3]);
    sys::process::set_stdio(fds).step(|| "set the standard streams".into())?;
    if init {
        // The init's child opens the session, so that the terminal's signals reach it alone.
        return Ok(());
    }
    own_session(console.is_some())
}

/// A session of its own, with the terminal on descriptor 0 as the controlling one.
pub(super) fn own_session(terminal: bool) -> Result<(), HullError> {
    // Fails only for who leads a session already.
    let _ = rustix::process::setsid();
    if terminal {
        rustix::process::ioctl_tiocsctty(std::io::stdin()).step(|| "take the terminal".into())?;
    }
    Ok(())
}

/// The container's root while the host's tree is still there.
struct Inside<'a, 'r> {
    plan: &'a Plan<'a>,
    request: &'a CreateRequest<'r>,
    wire: &'a Wire,
    root: Root,
    host_proc: OwnedFd,
    null: OwnedFd,
    /// Filled when `Go` was heard.
    cgroups: OnceCell<View>,
}

impl<'a, 'r> Inside<'a, 'r> {
    /// Attaches the root filesystem in this process's mount namespace, of which nothing goes back to the host's.
    fn attach(plan: &'a Plan<'a>, request: &'a CreateRequest<'r>, wire: &'a Wire) -> Result<Self, HullError> {
        let handle = |path: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty()).step(|| format!("open {path}"))
        };
        let top = handle("/")?;
        set_attributes(&top, true, Change::propagation(propagation::PRIVATE))
            .step(|| "make the mounts private".into())?;
        let host_proc = handle("/proc")?;
        super::mounts::require_procfs(&host_proc)?;
        let null = devices::host_null()?;
        let rootfs = rootfs(request)?;
        sys::mount::attach(rootfs, &top).step(|| "attach the root filesystem".into())?;
        let root = rootfs.try_clone_to_owned().step(|| "attach the root filesystem".into())?;
        let root = Root::from_fd(root);
        Ok(Self { plan, request, wire, root, host_proc, null, cgroups: OnceCell::new() })
    }

    /// Waits until the hull has done its part (the network from outside), then does ours. Once.
    fn connect(&self) -> Result<&View, HullError> {
        if let Some(view) = self.cgroups.get() {
            return Ok(view);
        }
        self.wire.await_word(Word::Go).step(|| "wait for the network".into())?;
        let view = if self.plan.mounts.iter().any(|m| m.needs_cgroup()) {
            View::of_this_process()?
        } else {
            View::default()
        };
        if self.plan.namespaces.new & ns::CGROUP != 0 {
            sys::clone::unshare(ns::CGROUP).step(|| "make a cgroup namespace".into())?;
        }
        if self.plan.namespaces.new & ns::NET != 0 {
            (self.request.network_inside)()?;
        }
        Ok(self.cgroups.get_or_init(|| view))
    }

    /// Everything beneath the root; returns the terminal, where there is one.
    fn furnish(&self) -> Result<Option<Console>, HullError> {
        let (plan, root) = (self.plan, &self.root);
        let mut late = Vec::new();
        for mount in &plan.mounts {
            let view = if mount.needs_cgroup() { Some(self.connect()?) } else { None };
            late.extend(mount.mount(root, view)?);
        }
        if !plan.mounts.iter().any(|m| m.is_bound_dev()) {
            devices::make(root, &plan.devices, plan.namespaces.has(ns::USER))?;
        }
        let console = if plan.terminal() {
            let console = Console::open(root, self.request.console_size)?;
            console.bind(root)?;
            Some(console)
        } else {
            None
        };
        self.connect()?;
        if let Some(name) = plan.spec.hostname().as_deref().filter(|_| plan.namespaces.new & ns::UTS != 0) {
            rustix::system::sethostname(name.as_bytes()).step(|| format!("set the host name {name:?}"))?;
        }
        if let Some(name) = plan.spec.domainname().as_deref().filter(|_| plan.namespaces.new & ns::UTS != 0) {
            rustix::system::setdomainname(name.as_bytes())
                .step(|| format!("set the domain name {name:?}"))?;
        }
        if let Some(sysctls) = plan.sysctls {
            sysctl::write(self.host_proc.as_fd(), sysctls)?;
        }
        // A missing working directory is made while the root can still be written.
        let cwd = plan.process.cwd();
        if root.handle(cwd).is_err() {
            root.mkdir_all(cwd, Mode::from_raw_mode(0o755))
                .step(|| format!("make the working directory {}", cwd.display()))?;
        }
        paths::make_readonly(root, plan.readonly)?;
        paths::mask(root, plan.masked, self.null.as_fd())?;
        for mount in late {
            set_attributes(mount, false, Change::set(attr::RDONLY))
                .step(|| "make a tmpfs read-only".into())?;
        }
        Ok(console)
    }

    /// The root becomes the only one.
    fn leave_host(self) -> Result<(), HullError> {
        hooks::create_container(self.plan.spec, self.request.id)?;
        if self.plan.root_is_readonly() {
            set_attributes(&self.root, false, Change::set(attr::RDONLY))
                .step(|| "make the root filesystem read-only".into())?;
        }
        sys::mount::pivot(&self.root).step(|| "pivot into the root filesystem".into())?;
        let wanted = self.plan.spec.linux().as_ref().and_then(|l| l.rootfs_propagation().as_deref());
        let (to, all) = match wanted.unwrap_or_default() {
            "shared" | "rshared" => (propagation::SHARED, wanted == Some("rshared")),
            "slave" | "rslave" => (propagation::SLAVE, wanted == Some("rslave")),
            "unbindable" | "runbindable" => (propagation::UNBINDABLE, wanted == Some("runbindable")),
            // As it is.
            "" | "private" | "rprivate" => return Ok(()),
            other => {
                return Err(HullError::Invalid(format!(
                    "unknown propagation {other:?} of the root filesystem"
                )));
            }
        };
        set_attributes(&self.root, all, Change::propagation(to))
            .step(|| "set the propagation of the root filesystem".into())
    }
}
