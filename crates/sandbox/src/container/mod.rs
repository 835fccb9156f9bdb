//! The container hull: a process behind the kernel's namespaces, with its own root, cgroups and few privileges.
//!
//! ```text
//! create:  Plan (checks, copies of bound trees) ─► Cgroup ─► clone3 ─► cgroups, mappings, network ─► Go … Ready
//! start:   Start ─► execve (the socket closes) or the reason why not
//! exec:    clone3 ─► setns by pidfd ─► the same last steps
//! ```
//!
//! The root filesystem and the workload are taken for attackers; each file here names what it defends against. What
//! happens inside is in `init`; what a process takes on itself last is the `process` crate's.

pub mod apparmor;
pub mod cgroup;
mod cgroup_view;
mod counters;
mod devices;
mod exec;
mod hooks;
mod init;
mod labels;
pub(crate) mod mounts;
mod namespaces;
pub(crate) mod options;
mod paths;
mod plan;
mod reaper;
pub(crate) mod running;
pub(crate) mod step;
mod sysctl;
pub(crate) mod wire;

use crate::hull::{AdoptRequest, CreateRequest, Created, Hull, HullError, Rootfs, Sandbox};
use cgroup::Cgroup;
pub use namespaces::user_namespace;
use plan::Plan;
use running::Container;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::DumpableBehavior;
use std::os::fd::{AsFd, OwnedFd};
use step::Step;
use sys::clone::{Child, ns};
use types::{ErrorKind, Kinded, oci};
use wire::{Heard, Wire, Word};

/// Isolates by namespaces and cgroups.
#[derive(Clone, Copy, Debug, Default)]
pub struct ContainerHull;

impl Hull for ContainerHull {
    fn create(&self, mut request: CreateRequest<'_>) -> Result<Created, HullError> {
        if !matches!(request.rootfs, Rootfs::Mount(_)) {
            return Err(HullError::Invalid("a container needs a mounted root filesystem".into()));
        }
        let mut plan = Plan::new(request.spec)?;
        let none = oci::LinuxResources::default();
        let resources = request.spec.linux().as_ref().and_then(|l| l.resources().as_ref()).unwrap_or(&none);
        let cgroup = Cgroup::create(request.cgroup, resources)?;
        match build(&mut plan, &mut request, &cgroup) {
            Ok((child, wire, console)) => {
                let cgroup = (cgroup, request.cgroup);
                let sandbox = Container::new(request.id, request.spec.clone(), child, cgroup, Some(wire));
                Ok(Created { sandbox: Box::new(sandbox), console, pending: None })
            }
            Err(e) => {
                // The first failure is the one to tell.
                let _ = cgroup.kill();
                let _ = cgroup.destroy();
                Err(e)
            }
        }
    }

    fn adopt(&self, request: AdoptRequest<'_>) -> Result<Box<dyn Sandbox>, HullError> {
        Ok(Box::new(Container::adopt(&request)?))
    }

    fn clean(&self, _id: &str, cgroup: &str) -> Result<(), HullError> {
        Cgroup::clean(cgroup)
    }
}

/// Makes the process and everything around it, up to `Ready`. On failure the process is gone.
fn build(
    plan: &mut Plan<'_>,
    request: &mut CreateRequest<'_>,
    cgroup: &Cgroup,
) -> Result<(Child, Wire, Option<OwnedFd>), HullError> {
    hide_from_containers()?;
    namespaces::give_stdio(request.spec, request.stdio);
    let (ours, theirs) = Wire::pair().step(|| "make a socket pair".into())?;
    let flags = plan.namespaces.at_clone();
    let joined_pid = plan.namespaces.joined(ns::PID);
    let home = joined_pid.map(enter_pid_namespace).transpose()?;
    let child = {
        let request = &*request;
        sys::clone::spawn(flags, cgroup.fd(), || init::run(plan, request, cgroup, theirs))
    };
    if let Some(home) = home {
        sys::clone::setns(home, ns::PID).step(|| "return to our PID namespace".into())?;
    }
    let child = child.step(|| "create the container's process".into())?;
    let done = accompany(request, cgroup, &child, &ours);
    match done {
        Ok(console) => Ok((child, ours, console)),
        Err(e) => {
            let _ = sys::process::pidfd_signal(&child.pidfd, 9);
            let _ = running::reap(&child.pidfd);
            Err(e)
        }
    }
}

/// The hull's part while the child builds.
fn accompany(
    request: &mut CreateRequest<'_>,
    cgroup: &Cgroup,
    child: &Child,
    wire: &Wire,
) -> Result<Option<OwnedFd>, HullError> {
    let spec = request.spec;
    // The child may have failed already and closed its end: what it says is better than that we cannot tell it.
    let mut prepare = || -> Result<(), HullError> {
        let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
        let new = |kind| namespaces.iter().any(|n| n.typ() == kind && n.path().is_none());
        if new(oci::LinuxNamespaceType::User) {
            namespaces::map_users(child.pid, spec)?;
            wire.say(Word::Mapped).step(|| "speak to the container's process".into())?;
        }
        if new(oci::LinuxNamespaceType::User) && cgroup.fd().is_none() {
            // Without the host's privileges it cannot do so itself.
            cgroup.add(child.pid)?;
        }
        if let Some(score) = spec.process().as_ref().and_then(|p| p.oom_score_adj()) {
            set_oom_score(child.pid, score)?;
        }
        if new(oci::LinuxNamespaceType::Network) {
            let path = format!("/proc/{}/ns/net", child.pid);
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let netns =
                openat(CWD, path, flags, Mode::empty()).step(|| "open the network namespace".into())?;
            (request.network_outside)(netns.as_fd())?;
        }
        hooks::create_runtime(spec, request.id, child.pid)?;
        wire.say(Word::Go).step(|| "speak to the container's process".into())?;
        (request.meanwhile)();
        Ok(())
    };
    let prepared = prepare();
    if prepared.is_err() && !running::has_ended(&child.pidfd) {
        return prepared.map(|()| None);
    }
    match wire.hear_from(Some(child.pid), None).step(|| "listen to the container's process".into())? {
        Heard::Ready(console) => Ok(console),
        Heard::Stopped => Err(Heard::stopped()),
        Heard::Failed(e) => Err(e),
        Heard::Closed | Heard::Born(_) => {
            prepared?;
            Err(running::ended_early(&child.pidfd))
        }
    }
}

/// Keeps this process, and those that it makes, from being traced or looked into by who shares their namespaces or
/// users (CVE-2016-9962).
fn hide_from_containers() -> Result<(), HullError> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .step(|| "make this process undumpable".into())
}

/// Lets the next child be born into another PID namespace; returns the way back.
fn enter_pid_namespace(target: impl AsFd) -> Result<OwnedFd, HullError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let home =
        openat(CWD, "/proc/self/ns/pid", flags, Mode::empty()).step(|| "open our PID namespace".into())?;
    sys::clone::setns(target, ns::PID).step(|| "enter the PID namespace".into())?;
    Ok(home)
}

/// Sets the score from outside. To lower it below ours needs CAP_SYS_RESOURCE: without, ours is what it gets.
fn set_oom_score(pid: i32, score: i32) -> Result<(), HullError> {
    let path = format!("/proc/{pid}/oom_score_adj");
    match std::fs::write(&path, score.to_string()) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            let ours = std::fs::read_to_string(&path).unwrap_or_default();
            if ours.trim().parse() == Ok(score) {
                return Ok(());
            }
            Err(HullError::Unsupported(format!(
                "the OOM score {score} is lower than this host lets us give ({}): CAP_SYS_RESOURCE is missing",
                ours.trim()
            )))
        }
        done => done.step(|| format!("set the OOM score {score}")),
    }
}

/// Annotation that asks for the built-in seccomp policy for the bounding capabilities, so that some 400 system calls
/// need not be written into each specification, read from it and compiled.
pub const SECCOMP_ANNOTATION: &str = "dhow.seccomp";

/// The specification's seccomp policy, compiled.
fn seccomp(spec: &oci::Spec) -> Result<Option<process::Loadable>, HullError> {
    let policy = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    let built_in = spec.annotations().as_ref().is_some_and(|a| a.contains_key(SECCOMP_ANNOTATION));
    let compiled = match policy {
        None if built_in => {
            let process = spec.process().as_ref().and_then(|p| p.capabilities().as_ref());
            let bounding = process.and_then(|c| c.bounding().clone()).unwrap_or_default();
            process::seccomp::built_in(&bounding).map(Some)
        }
        policy => policy.map(process::seccomp::compile).transpose(),
    };
    compiled.map_err(|e| match e.kind() {
        ErrorKind::Unsupported => HullError::Unsupported(e.to_string()),
        _ => HullError::Invalid(e.to_string()),
    })
}
