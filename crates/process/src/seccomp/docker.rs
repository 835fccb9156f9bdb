//! Docker's JSON form of a policy (`--security-opt seccomp=FILE`), which depends on capabilities, architecture and
//! kernel, into the OCI form, which depends on nothing.

use super::SeccompError;
use super::arch::Arch;
use serde::Deserialize;
use std::collections::HashSet;
use types::oci::{
    Arch as OciArch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSyscall, LinuxSyscallBuilder,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<OciArch>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: OciArch,
    #[serde(default)]
    sub_architectures: Option<Vec<OciArch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Option<When>,
    #[serde(default)]
    excludes: Option<When>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct When {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// Reads a profile of Docker's for a container with these capabilities on this `kernel` (as `uname -r` has it).
pub fn parse_docker_profile(
    json: &[u8],
    capabilities: &HashSet<Capability>,
    kernel: &str,
) -> Result<LinuxSeccomp, SeccompError> {
    let profile: Profile = serde_json::from_slice(json).map_err(SeccompError::Syntax)?;
    if profile.listener_path.is_some_and(|p| !p.is_empty()) {
        return Err(SeccompError::Unsupported("a listener".into()));
    }
    if profile.architectures.is_some() && profile.arch_map.is_some() {
        return Err(SeccompError::Unsupported("both architectures and archMap".into()));
    }
    let architectures = match profile.arch_map {
        Some(map) => map
            .into_iter()
            .find(|m| Arch::from_oci(m.architecture) == Some(Arch::NATIVE))
            .map(|m| [vec![m.architecture], m.sub_architectures.unwrap_or_default()].concat()),
        None => profile.architectures,
    };
    let running = version(kernel).unwrap_or((u32::MAX, 0));
    let holds = |when: &When, any: bool| -> Result<(bool, bool, bool), SeccompError> {
        let has = |name: &String| capabilities.iter().any(|c| same_capability(&c.to_string(), name));
        let caps = when.caps.as_deref().unwrap_or_default();
        let arches = when.arches.as_deref().unwrap_or_default();
        let native = |a: &String| a == Arch::NATIVE.docker_name();
        let new_enough = match when.min_kernel.as_deref().filter(|k| !k.is_empty()) {
            Some(text) => {
                let least = version(text).ok_or_else(|| SeccompError::Kernel(text.into()))?;
                running >= least
            }
            None => !any,
        };
        Ok(if any {
            (caps.iter().any(has), arches.iter().any(native), new_enough)
        } else {
            (caps.iter().all(has), arches.is_empty() || arches.iter().any(native), new_enough)
        })
    };
    let mut rules: Vec<LinuxSyscall> = Vec::new();
    for entry in profile.syscalls.unwrap_or_default() {
        let (caps, arches, kernel) = holds(&entry.includes.unwrap_or_default(), false)?;
        let (no_caps, no_arches, no_kernel) = holds(&entry.excludes.unwrap_or_default(), true)?;
        if !(caps && arches && kernel) || no_caps || no_arches || no_kernel {
            continue;
        }
        let mut names = entry.names.unwrap_or_default();
        names.extend(entry.name.filter(|n| !n.is_empty()));
        let mut rule = LinuxSyscallBuilder::default().names(names).action(entry.action);
        if let Some(errno) = entry.errno_ret {
            rule = rule.errno_ret(errno);
        }
        if let Some(args) = entry.args.filter(|a| !a.is_empty()) {
            rule = rule.args(args);
        }
        rules.push(rule.build().unwrap_or_default());
    }
    let mut out = LinuxSeccomp::default();
    out.set_default_action(profile.default_action);
    out.set_default_errno_ret(profile.default_errno_ret);
    out.set_architectures(architectures);
    out.set_flags(profile.flags);
    out.set_syscalls(Some(rules));
    Ok(out)
}

/// `SYS_ADMIN`, `CAP_SYS_ADMIN` and `cap_sys_admin` are one.
fn same_capability(a: &str, b: &str) -> bool {
    let bare = |name: &str| name.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
    bare(a) == bare(b)
}

/// Major and minor version of `6.1.0-18-amd64`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
