//! What is to be built, read from the specification and checked before anything is made.

use super::devices::{self, Device};
use super::mounts::{self, Planned};
use super::namespaces::{self, Namespaces};
use super::sysctl;
use crate::hull::HullError;
use process::Launch;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use types::oci;

/// A container to build.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub spec: &'a oci::Spec,
    pub process: &'a oci::Process,
    pub namespaces: Namespaces,
    pub mounts: Vec<Planned>,
    pub devices: Vec<Device>,
    pub launch: Launch,
    pub sysctls: Option<&'a HashMap<String, String>>,
    pub masked: &'a [String],
    pub readonly: &'a [String],
    pub personality: Option<u32>,
}

impl<'a> Plan<'a> {
    /// Reads the specification, and copies the host's trees that it binds.
    pub(super) fn new(spec: &'a oci::Spec) -> Result<Self, HullError> {
        let Some(process) = spec.process().as_ref() else {
            return Err(HullError::Invalid("the specification has no process".into()));
        };
        let linux = spec.linux().as_ref();
        let sysctls = linux.and_then(|l| l.sysctl().as_ref());
        if let Some(sysctls) = sysctls {
            sysctl::check(sysctls, namespaces::apart(spec))?;
        }
        let devices = linux.and_then(|l| l.devices().as_deref()).unwrap_or_default();
        let launch = Launch::new(process, super::seccomp(spec)?)?;
        let personality = linux.and_then(|l| l.personality().as_ref()).map(|p| match p.domain() {
            oci::LinuxPersonalityDomain::PerLinux => 0,
            oci::LinuxPersonalityDomain::PerLinux32 => 8,
        });
        Ok(Self {
            spec,
            process,
            namespaces: Namespaces::new(spec)?,
            devices: devices::plan(devices)?,
            launch,
            sysctls,
            masked: linux.and_then(|l| l.masked_paths().as_deref()).unwrap_or_default(),
            readonly: linux.and_then(|l| l.readonly_paths().as_deref()).unwrap_or_default(),
            personality,
            mounts: mounts::plan(spec)?,
        })
    }

    /// Whether the root filesystem is read-only.
    pub(super) fn root_is_readonly(&self) -> bool {
        self.spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false)
    }

    /// Whether the process has a terminal.
    pub(super) fn terminal(&self) -> bool {
        self.process.terminal().unwrap_or(false)
    }

    /// Descriptors that the child needs of ours.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let joined = self.namespaces.joined.iter().map(|(_, fd)| fd.as_fd());
        joined.chain(self.mounts.iter().filter_map(Planned::fd))
    }
}
