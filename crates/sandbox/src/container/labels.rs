//! The label under which a workload runs, where the host has a security module that knows labels: AppArmor's profile
//! or SELinux's context, set for the next `execve`.

use super::mounts::require_procfs;
use super::step::Step;
use crate::hull::HullError;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::os::fd::OwnedFd;
use std::path::Path;
use types::oci::Process;

/// Whether the host enforces AppArmor.
pub(super) fn apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|v| v.first() == Some(&b'Y'))
}

/// Whether the host runs SELinux with a policy.
pub(super) fn selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists() && Path::new("/etc/selinux/config").exists()
}

/// Labels for the next `execve` of this process, and the files to write them to.
#[derive(Debug, Default)]
pub(super) struct Labels(Vec<(OwnedFd, String)>);

impl Labels {
    /// Opens the files in the host's procfs, so that what the container mounts on its own `/proc` has no say
    /// (CVE-2019-16884, CVE-2025-52881). A label that the host cannot enforce is refused.
    pub(super) fn open(process: &Process) -> Result<Self, HullError> {
        let mut labels = Vec::new();
        let profile = process.apparmor_profile().as_deref().filter(|p| !p.is_empty() && *p != "unconfined");
        if let Some(profile) = profile {
            if !apparmor() {
                let text =
                    format!("AppArmor profile {profile:?} was asked for, but this host has no AppArmor");
                return Err(HullError::Unsupported(text));
            }
            let file = attribute("apparmor/exec").or_else(|_| attribute("exec"))?;
            labels.push((file, format!("exec {profile}")));
        }
        if let Some(label) = process.selinux_label().as_deref().filter(|l| !l.is_empty())
            && selinux()
        {
            labels.push((attribute("exec")?, label.to_owned()));
        }
        Ok(Self(labels))
    }

    /// Sets them for the next `execve`.
    pub(super) fn apply(self) -> Result<(), HullError> {
        for (file, label) in self.0 {
            rustix::io::write(file, label.as_bytes()).step(|| format!("set the label {label:?}"))?;
        }
        Ok(())
    }
}

fn attribute(name: &str) -> Result<OwnedFd, HullError> {
    let path = format!("/proc/thread-self/attr/{name}");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(CWD, &path, flags, Mode::empty()).step(|| format!("open {path}"))?;
    require_procfs(&file)?;
    Ok(file)
}
