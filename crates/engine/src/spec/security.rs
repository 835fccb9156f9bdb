//! Capabilities, seccomp, AppArmor, SELinux, hidden and read-only paths: Docker's defaults, and what was asked for.

use crate::spec::{invalid, is_privileged};
use crate::{EngineError, Result};
use process::caps;
use types::docker::HostConfig;
use types::oci::{Capabilities, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxSeccomp};

/// Annotation of the specification that asks the hull for its built-in seccomp policy: the policy is compiled once,
/// instead of being written into each bundle and read from it.
pub(super) const BUILT_IN: &str = sandbox::container::SECCOMP_ANNOTATION;

/// Paths that Docker hides (moby, `oci/defaults.go`).
pub const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Paths that Docker makes read-only.
pub const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// The largest seccomp profile that is read.
const MAX_PROFILE: u64 = 4 << 20;

/// `--security-opt`, read.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub no_new_privileges: bool,
    /// `unconfined`, a file, or the built-in policy.
    pub seccomp: Option<String>,
    pub apparmor: Option<String>,
    pub selinux_label: Option<String>,
    /// `systempaths=unconfined`.
    pub unmasked: bool,
}

pub(super) fn options(host: &HostConfig) -> Result<Options> {
    let mut out = Options::default();
    let mut label = [const { String::new() }; 4];
    let mut labelled = false;
    for option in host.security_opt.iter().flatten() {
        let wrong = || invalid(format!("invalid --security-opt {option:?}"));
        let (key, value) = option.split_once('=').or_else(|| option.split_once(':')).unwrap_or((option, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => out.no_new_privileges = true,
            ("no-new-privileges", "false") => out.no_new_privileges = false,
            ("seccomp", v) if !v.is_empty() => out.seccomp = Some(v.to_owned()),
            ("apparmor", v) if !v.is_empty() => out.apparmor = Some(v.to_owned()),
            ("systempaths", "unconfined") => out.unmasked = true,
            ("label", "disable") => labelled = false,
            ("label", v) => {
                let (part, value) = v.split_once(':').ok_or_else(wrong)?;
                let at = match part {
                    "user" => 0,
                    "role" => 1,
                    "type" => 2,
                    "level" => 3,
                    _ => return Err(wrong()),
                };
                label[at] = value.to_owned();
                labelled = true;
            }
            _ => return Err(wrong()),
        }
    }
    if labelled {
        for (at, default) in ["system_u", "system_r", "container_t", "s0"].iter().enumerate() {
            if label[at].is_empty() {
                label[at] = (*default).to_owned();
            }
        }
        out.selinux_label = Some(label.join(":"));
    }
    Ok(out)
}

/// What the workload may have at most: as asked, less what this host cannot give.
pub(super) fn capabilities(host: &HostConfig, warnings: &mut Vec<String>) -> Result<Capabilities> {
    let privileged = is_privileged(host);
    let none = Vec::new();
    if privileged {
        warnings.push(
            "--privileged gives the workload every capability and device of this host, without seccomp, AppArmor, masked or read-only paths: whoever controls it controls the host".into(),
        );
    }
    let wanted = if privileged {
        caps::all()
    } else {
        caps::tweak(host.cap_add.as_ref().unwrap_or(&none), host.cap_drop.as_ref().unwrap_or(&none))
            .map_err(invalid)?
    };
    let available = caps::available();
    let mut missing: Vec<String> = wanted.difference(&available).map(|c| caps::name(*c)).collect();
    missing.sort_unstable();
    // Kernels differ in their newest capabilities: only what was asked for is worth a word.
    if !missing.is_empty() && (privileged || host.cap_add.is_some()) {
        warnings.push(format!(
            "this host's own bounding set lacks {}: the container runs without",
            missing.join(", ")
        ));
    }
    Ok(wanted.intersection(&available).copied().collect())
}

/// The five sets for a user: root holds all of them, another user none but the bounding ones (Docker's rule since
/// CVE-2022-24769: nothing is inheritable).
pub(super) fn for_user(set: &Capabilities, user: &str) -> LinuxCapabilities {
    let name = user.split(':').next().unwrap_or("");
    let root = matches!(name, "" | "0" | "root");
    let held = if root { set.clone() } else { Capabilities::new() };
    LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(held.clone())
        .permitted(held)
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
        .unwrap_or_default()
}

/// A profile that goes into the specification; `None` for the built-in one and for no confinement.
pub(super) fn seccomp(
    options: &Options,
    set: &Capabilities,
    privileged: bool,
) -> Result<Option<LinuxSeccomp>> {
    match options.seccomp.as_deref() {
        Some("unconfined" | "builtin" | "default") | None => Ok(None),
        Some(_) if privileged => Ok(None),
        Some(path) => {
            let json = read_profile(path)?;
            let release = rustix::system::uname().release().to_string_lossy().into_owned();
            process::seccomp::parse_docker_profile(&json, set, &release)
                .map(Some)
                .map_err(|e| invalid(format!("seccomp profile {path:?}: {e}")))
        }
    }
}

/// Whether the built-in policy is to be used.
pub(super) fn built_in_seccomp(options: &Options, privileged: bool) -> bool {
    !privileged && matches!(options.seccomp.as_deref(), None | Some("builtin" | "default"))
}

/// A path, or, as the `docker` client sends it, the profile itself.
fn read_profile(path: &str) -> Result<Vec<u8>> {
    if path.trim_start().starts_with('{') {
        return Ok(path.as_bytes().to_vec());
    }
    let io = EngineError::io("cannot read the seccomp profile", path.as_ref());
    let read = || {
        use std::io::Read;
        let mut out = Vec::new();
        std::fs::File::open(path)?.take(MAX_PROFILE + 1).read_to_end(&mut out)?;
        Ok(out)
    };
    let out = read().map_err(io)?;
    if out.len() as u64 > MAX_PROFILE {
        return Err(invalid(format!("the seccomp profile {path:?} is larger than 4 MiB")));
    }
    Ok(out)
}

/// The AppArmor profile: as asked, else the default one where the host enforces AppArmor.
pub(super) fn apparmor(options: &Options, privileged: bool) -> Option<String> {
    match options.apparmor.as_deref() {
        Some(profile) => Some(profile.to_owned()),
        None if privileged => None,
        None => sandbox::container::apparmor::ensure_default()
            .is_ok_and(|loaded| loaded)
            .then(|| sandbox::container::apparmor::DEFAULT_PROFILE.to_owned()),
    }
}

pub(super) fn masked(host: &HostConfig, options: &Options) -> Vec<String> {
    paths(&host.masked_paths, MASKED, is_privileged(host) || options.unmasked)
}

pub(super) fn readonly(host: &HostConfig, options: &Options) -> Vec<String> {
    paths(&host.readonly_paths, READONLY, is_privileged(host) || options.unmasked)
}

fn paths(asked: &Option<Vec<String>>, default: &[&str], open: bool) -> Vec<String> {
    match asked {
        _ if open => Vec::new(),
        Some(paths) => paths.clone(),
        None => default.iter().map(|p| (*p).to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[&str]) -> Result<Options> {
        options(&HostConfig {
            security_opt: Some(list.iter().map(|s| (*s).to_owned()).collect()),
            ..Default::default()
        })
    }

    #[test]
    fn options_are_read() {
        let o = of(&["no-new-privileges", "seccomp=unconfined", "apparmor:x", "label=type:t_t"]).unwrap();
        assert!(o.no_new_privileges && !built_in_seccomp(&o, false));
        assert_eq!(o.apparmor.as_deref(), Some("x"));
        assert_eq!(o.selinux_label.as_deref(), Some("system_u:system_r:t_t:s0"));
        for bad in ["", "x=y", "seccomp", "label=x", "no-new-privileges=maybe"] {
            assert!(of(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_root_holds_capabilities() {
        let set = caps::docker_default();
        assert_eq!(for_user(&set, "root:x").effective().as_ref(), Some(&set));
        assert_eq!(for_user(&set, "1000").effective().as_ref().map(|s| s.len()), Some(0));
        assert_eq!(for_user(&set, "1000").bounding().as_ref(), Some(&set));
    }
}
