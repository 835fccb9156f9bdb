//! The microVM hull: the same process behind a kernel of its own.
//!
//! ```text
//! create:  cgroup ─► tap ─► monitor process … vsock, hypervisor ─► guest kernel ─► agent ─► Boot ─► prepared
//! start:   … the agent starts the workload, which it supervises by the container hull, inside
//! exec:    a process per session … that copies between the session's descriptors and the agent
//! shares:  a process of their own serves the host's directories that the specification binds, by virtio-fs
//! files:   the agent serves them on a port of their own; of a stopped one, in an [`Appliance`]
//! end:     the agent syncs, tells the exit code, powers off; the monitor exits with that code
//! ```
//!
//! For the supervisor the monitor is the main process: its streams, its exit code, its cgroup with all that the microVM
//! costs the host. What the dots stand for it does not wait for idly ([`pending`]), nor for what it asks the agent
//! ([`question`]). The guest is taken for an attacker: what it says is bounded and checked ([`crate::protocol`]), what it
//! never says is waited for with a deadline.

mod appliance;
mod beside;
mod carrier;
mod connect;
mod exec;
mod files;
mod grow;
mod kvm;
mod limiting;
mod limits;
mod machine;
mod monitor;
mod patience;
mod pending;
mod pump;
mod qemu;
mod qmp;
mod question;
mod shares;
mod spec;
mod trouble;
mod walls;

use crate::boot::Boot;
use crate::container::cgroup::Cgroup;
use crate::container::running::{self, Container};
use crate::container::step::Step;
use crate::container::wire::Wire;
use crate::hull::{AdoptRequest, CreateRequest, Created, Hull, HullError, Rootfs, Sandbox};
use machine::MicroVm;
use monitor::Monitor;
use pending::{Awaited, End};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use shares::Share;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use types::{MachinePlan, oci};
use vmm::config::DiskRate;

pub use appliance::{Appliance, Order, serve};
pub use connect::listen_for_guest;
pub use files::Files;
pub use grow::{GrowError, Growth};
pub use kvm::{MACHINE_VERB, carry};
pub use shares::{SHARES_VERB, serve as serve_shares};

/// Directory in a sandbox's run directory with the sockets of its microVM.
pub const DIR: &str = "vm";
/// How much longer the monitor, which explains a guest's silence, is waited for.
const MONITOR_WAIT: Duration = Duration::from_secs(20);

/// Isolates by a virtual machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmHull;

impl Hull for VmHull {
    fn create(&self, request: CreateRequest<'_>) -> Result<Created, HullError> {
        let Rootfs::Machine { plan, layers, network } = request.rootfs else {
            return Err(HullError::Invalid("a microVM needs a machine plan".into()));
        };
        let (boot, shares) = spec::boot(&request, network, plan, layers.len())?;
        let resources = spec::host_resources(request.resources(), plan);
        let make = Make {
            plan,
            layers,
            shares: &shares,
            rate: request.resources().map(spec::disk_rate).unwrap_or_default(),
            boot: &boot,
            cgroup: request.cgroup,
            run: request.run,
            stdio: request.stdio,
        };
        let (machine, console, boots) = make.make(&resources, request.taps)?;
        (request.meanwhile)();
        Ok(Created { sandbox: Box::new(machine), console, pending: Some(Box::new(boots)) })
    }

    fn adopt(&self, request: AdoptRequest<'_>) -> Result<Box<dyn Sandbox>, HullError> {
        let dir = request.run.join(DIR);
        Ok(Box::new(MicroVm::new(Container::adopt(&request)?, dir)))
    }

    fn clean(&self, _id: &str, cgroup: &str) -> Result<(), HullError> {
        Cgroup::clean(cgroup)
    }
}

/// What a microVM is made of.
struct Make<'a> {
    plan: &'a MachinePlan,
    layers: &'a [PathBuf],
    rate: DiskRate,
    shares: &'a [Share],
    boot: &'a Boot,
    cgroup: &'a str,
    run: &'a Path,
    stdio: [BorrowedFd<'a>; 3],
}

impl Make<'_> {
    /// Makes it; it boots then, up to the agent's word that it is prepared. On failure nothing remains.
    fn make(
        &self,
        resources: &oci::LinuxResources,
        taps: &mut dyn FnMut() -> Result<Vec<OwnedFd>, HullError>,
    ) -> Result<(MicroVm, Option<OwnedFd>, Awaited), HullError> {
        let Self { plan, layers, shares, rate, boot, .. } = *self;
        let cgroup = Cgroup::create(self.cgroup, resources)?;
        let dir = self.run.join(DIR);
        let mut make = || -> Result<(sys::clone::Child, Wire, Option<OwnedFd>, Awaited), HullError> {
            // Before whoever connects the taps listens there for the guest.
            connect::fresh_dir(&dir)?;
            let taps = taps()?;
            let (console, inner) = if boot.terminal() { console()? } else { (None, None) };
            let (ours, theirs) = Wire::pair().step(|| "make a socket pair".into())?;
            let stdio = inner.as_ref().map_or(self.stdio, |fd| [fd.as_fd(); 3]);
            let monitor =
                Monitor { plan, layers, shares, dir: &dir, taps: &taps, rate, boot, stdio, wire: &theirs };
            let child = sys::clone::spawn(sys::clone::ns::NET, cgroup.fd(), || monitor.main(&cgroup))
                .step(|| "create the monitor of the microVM".into())?;
            let limit = monitor::boot_wait(plan.hypervisor) + MONITOR_WAIT;
            let late = format!(
                "the microVM's guest did not answer within {} s: try another kernel",
                limit.as_secs()
            );
            let boots = ours
                .try_clone()
                .and_then(|wire| Awaited::new(wire, child.pidfd.as_fd(), End::Ready, limit, late));
            match boots {
                Ok(boots) => Ok((child, ours, console, boots)),
                Err(source) => {
                    let _ = cgroup.kill();
                    let _ = running::reap(&child.pidfd);
                    Err(HullError::Step { step: "duplicate a descriptor".into(), source })
                }
            }
        };
        match make() {
            Ok((child, wire, console, boots)) => {
                let group = (cgroup, self.cgroup);
                let container = Container::new(&boot.id, oci::Spec::default(), child, group, Some(wire));
                Ok((MicroVm::new(container, dir), console, boots))
            }
            Err(e) => {
                let _ = cgroup.kill();
                let _ = cgroup.destroy();
                Err(e)
            }
        }
    }
}

/// A console that is a pair of sockets: ours and the monitor's end.
fn console() -> Result<(Option<OwnedFd>, Option<OwnedFd>), HullError> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (a, b) = pair.step(|| "make a socket pair".into())?;
    Ok((Some(a), Some(b)))
}
