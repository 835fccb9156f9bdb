//! Other limits for a running microVM.
//!
//! CPU time is the host's to give, by the machine's cgroup. Memory is taken from the guest by its balloon; once the guest
//! has given it, its machine's cgroup sees to it that it stays given. What the machine was started with is the most that it
//! can have.

use super::qmp::{self, Qmp};
use super::{connect, qemu, spec};
use crate::container::running::Container;
use crate::container::step::Step;
use crate::hull::{HullError, Sandbox};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use types::{Hypervisor, oci};
use vmm::config::DiskRate;
use vmm::control::{Answer, Request, ask};

/// How long the guest may take to give memory: the supervisor does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may give nothing more: it has nothing left then, and every moment of that may bring its OOM killer.
const STALLED: Duration = Duration::from_secs(2);
/// More than any machine has.
const MAX_DISKS: usize = 64;
/// How often is looked how far it is.
const LOOK: Duration = Duration::from_millis(20);
/// Microseconds of a period of CPU time where none is given (cgroups(7)).
const PERIOD: u64 = 100_000;

/// Applies limits to the machine whose sockets lie in `dir`.
pub(super) fn apply(dir: &Path, host: &Container, wanted: &oci::LinuxResources) -> Result<(), HullError> {
    let mut hypervisor = Orders::connect(dir).step(|| "ask the hypervisor".into())?;
    let machine = hypervisor.look().step(|| "ask the hypervisor what the machine has".into())?;
    let memory = wanted.memory().and_then(|m| m.limit()).and_then(|m| u64::try_from(m).ok()).map(|m| m >> 20);
    machine.check(cpus(wanted), memory)?;
    if wanted.block_io().is_some() {
        hypervisor.limit(&machine, spec::disk_rate(wanted)).step(|| "limit the disks".into())?;
    }
    let mut resources = spec::shared_with_host(wanted);
    match memory {
        None => host.update(&resources),
        Some(mib) => {
            resources.set_memory(Some(spec::host_memory(mib, hypervisor.kind())));
            let give = machine.memory_mib.saturating_sub(mib);
            // What is taken is taken by the guest first, and what is given by the host.
            if give > machine.given_mib {
                hypervisor.take(&machine, give)?;
                return host.update(&resources);
            }
            host.update(&resources)?;
            if give < machine.given_mib {
                hypervisor.balloon(give).step(|| "give memory back to the guest".into())?;
            }
            Ok(())
        }
    }
}

/// How many CPUs the quota is worth, rounded up.
fn cpus(wanted: &oci::LinuxResources) -> Option<u64> {
    let cpu = wanted.cpu().as_ref()?;
    let quota = u64::try_from(cpu.quota()?).ok()?;
    Some(quota.div_ceil(cpu.period().filter(|p| *p > 0).unwrap_or(PERIOD)))
}

/// What a machine has.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    vcpus: u64,
    /// That it was started with.
    memory_mib: u64,
    /// That the guest has given of it.
    given_mib: u64,
    /// How many our own VMM has, which tells them apart by numbers.
    disks: usize,
}

impl Machine {
    /// Refuses more than it was started with.
    fn check(&self, cpus: Option<u64>, memory_mib: Option<u64>) -> Result<(), HullError> {
        let refuse = |what: &str, has: String| {
            Err(HullError::Invalid(format!(
                "a running microVM cannot have more {what} than it was started with, {has}: stop it, update it, and start it again"
            )))
        };
        if cpus.is_some_and(|cpus| cpus > self.vcpus) {
            return refuse("CPUs", self.vcpus.to_string());
        }
        if memory_mib.is_some_and(|mib| mib > self.memory_mib) {
            return refuse("memory", format!("{} MiB", self.memory_mib));
        }
        Ok(())
    }
}

/// The way to a hypervisor.
pub(super) enum Orders {
    Kvm {
        /// By which the path leads to the socket.
        _dir: OwnedFd,
        socket: PathBuf,
    },
    Qemu(Qmp),
}

impl Orders {
    pub(super) fn connect(dir: &Path) -> io::Result<Self> {
        if dir.join(qmp::SOCKET).exists() {
            return Ok(Self::Qemu(Qmp::connect(dir)?));
        }
        let (open, short) = connect::short(dir)?;
        Ok(Self::Kvm { _dir: open, socket: short.join(super::kvm::CONTROL) })
    }

    fn kind(&self) -> Hypervisor {
        match self {
            Self::Kvm { .. } => Hypervisor::Kvm,
            Self::Qemu(_) => Hypervisor::Qemu,
        }
    }

    fn look(&mut self) -> io::Result<Machine> {
        match self {
            Self::Kvm { socket, .. } => match ask(socket, &Request::Status)? {
                Answer::Status { vcpus, memory_mib, balloon_mib, disks, .. } => {
                    Ok(Machine { vcpus: vcpus.into(), memory_mib, given_mib: balloon_mib, disks })
                }
                Answer::Refused { why } => Err(io::Error::other(why)),
                Answer::Done => Err(io::ErrorKind::InvalidData.into()),
            },
            Self::Qemu(qmp) => {
                let memory = qmp.memory()?;
                let given = memory.saturating_sub(qmp.left()?);
                let vcpus = qmp.vcpus()?;
                Ok(Machine { vcpus, memory_mib: memory >> 20, given_mib: given >> 20, disks: 0 })
            }
        }
    }

    /// Asks the guest to give so much in all.
    fn balloon(&mut self, mib: u64) -> io::Result<()> {
        match self {
            Self::Kvm { socket, .. } => match ask(socket, &Request::Balloon { mib })? {
                Answer::Refused { why } => Err(io::Error::other(why)),
                _ => Ok(()),
            },
            Self::Qemu(qmp) => {
                let left = qmp.memory()?.saturating_sub(mib << 20);
                qmp.leave(left)
            }
        }
    }

    /// Sets the limits of all its disks: the layers', the writable one, those that are volumes.
    fn limit(&mut self, machine: &Machine, rate: DiskRate) -> io::Result<()> {
        match self {
            Self::Kvm { socket, .. } => {
                for number in 0..machine.disks.min(MAX_DISKS) {
                    if let Answer::Refused { why } = ask(socket, &Request::LimitDisk { number, rate })? {
                        return Err(io::Error::other(why));
                    }
                }
                Ok(())
            }
            Self::Qemu(qmp) => {
                let drives = qmp.drives()?;
                drives.iter().take(MAX_DISKS).try_for_each(|drive| qmp.limit(drive, &rate))
            }
        }
    }

    /// Has a disk that is the volume of this number, and of that one among all disks, take all of its file.
    pub(super) fn grow(&mut self, volume: usize, disk: usize, bytes: u64) -> io::Result<()> {
        match self {
            Self::Kvm { socket, .. } => match ask(socket, &Request::GrowDisk { number: disk })? {
                Answer::Refused { why } => Err(io::Error::other(why)),
                _ => Ok(()),
            },
            Self::Qemu(qmp) => qmp.resize(&qemu::volume_disk(volume), bytes),
        }
    }

    /// Takes memory, so much in all, and waits for it. If the guest cannot spare it, all is as before.
    fn take(&mut self, before: &Machine, mib: u64) -> Result<(), HullError> {
        let begin = Instant::now();
        let step = || "take memory from the guest".to_owned();
        self.balloon(mib).step(step)?;
        let (mut most, mut moved) = (before.given_mib, None);
        loop {
            let given = self.look().step(step)?.given_mib;
            if given >= mib {
                return Ok(());
            }
            if given > most {
                (most, moved) = (given, Some(Instant::now()));
            }
            // It may be slow to begin.
            let stalled = moved.is_some_and(|moved: Instant| moved.elapsed() >= STALLED);
            if stalled || begin.elapsed() >= PATIENCE {
                self.balloon(before.given_mib).step(step)?;
                // What is told now must find the guest with its memory: it may have nothing left to start a process with.
                let begin = Instant::now();
                while self.look().step(step)?.given_mib > before.given_mib && begin.elapsed() < PATIENCE {
                    std::thread::sleep(LOOK);
                }
                return Err(HullError::Invalid(format!(
                    "the guest has given only {} of the {} MiB that were to be taken from it: its kernel and its processes use the rest",
                    given.saturating_sub(before.given_mib),
                    mib - before.given_mib
                )));
            }
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_at_the_start_is_refused_with_the_number() {
        let machine = Machine { vcpus: 2, memory_mib: 256, given_mib: 0, disks: 2 };
        machine.check(Some(2), Some(256)).unwrap();
        machine.check(None, None).unwrap();
        let text = machine.check(Some(3), None).unwrap_err().to_string();
        assert!(text.contains("more CPUs than it was started with, 2:"), "{text}");
        let text = machine.check(None, Some(257)).unwrap_err().to_string();
        assert!(text.contains("started with, 256 MiB:"), "{text}");
    }

    #[test]
    fn a_quota_is_worth_its_cpus() {
        let of = |quota: i64, period: Option<u64>| {
            let mut cpu = oci::LinuxCpu::default();
            cpu.set_quota(Some(quota)).set_period(period);
            let mut resources = oci::LinuxResources::default();
            resources.set_cpu(Some(cpu));
            cpus(&resources)
        };
        assert_eq!(of(150_000, Some(100_000)), Some(2));
        assert_eq!(of(100_000, None), Some(1));
        assert_eq!(of(-1, None), None);
    }
}
