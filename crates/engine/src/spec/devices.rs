//! Device nodes and the rules that let a workload use them.

use crate::spec::{invalid, is_privileged};
use crate::{EngineError, Result};
use rustix::fs::{FileType, major, minor};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use types::docker::{DeviceMapping, HostConfig};
use types::oci::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

/// The nodes that every container gets come from the hull; these are the ones asked for, or, privileged, all.
pub(super) fn nodes(host: &HostConfig) -> Result<Vec<LinuxDevice>> {
    let mut out = Vec::new();
    if is_privileged(host) {
        walk(Path::new("/dev"), Path::new("/dev"), &mut out);
    }
    for mapping in host.devices.iter().flatten() {
        for device in mapped(mapping)? {
            out.retain(|d| d.path() != device.path());
            out.push(device);
        }
    }
    Ok(out)
}

fn mapped(mapping: &DeviceMapping) -> Result<Vec<LinuxDevice>> {
    let source = PathBuf::from(mapping.path_on_host.as_deref().unwrap_or(""));
    let target = PathBuf::from(
        mapping
            .path_in_container
            .as_deref()
            .filter(|p| !p.is_empty())
            .unwrap_or_else(|| source.to_str().unwrap_or("")),
    );
    let wrong = |why: &str| {
        EngineError::Invalid(format!(
            "error gathering device information while adding device {:?}: {why}",
            source.display().to_string()
        ))
    };
    let meta = std::fs::metadata(&source).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => wrong("no such file or directory"),
        _ => wrong(&e.to_string()),
    })?;
    if meta.is_dir() {
        let mut all = Vec::new();
        walk(&source, &target, &mut all);
        return if all.is_empty() { Err(wrong("no device in that directory")) } else { Ok(all) };
    }
    node(&meta, &target).map(|d| vec![d]).ok_or_else(|| wrong("not a device node"))
}

fn walk(dir: &Path, target: &Path, out: &mut Vec<LinuxDevice>) {
    // The terminals, queues and shared memory of the host are not its devices.
    const SKIP: &[&str] = &["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx"];
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if SKIP.iter().any(|s| name == *s) {
            continue;
        }
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        let inside = target.join(&name);
        if meta.is_dir() {
            walk(&entry.path(), &inside, out);
        } else if let Some(device) = node(&meta, &inside) {
            out.push(device);
        }
    }
}

fn node(meta: &std::fs::Metadata, target: &Path) -> Option<LinuxDevice> {
    let kind = match FileType::from_raw_mode(meta.mode()) {
        FileType::CharacterDevice => LinuxDeviceType::C,
        FileType::BlockDevice => LinuxDeviceType::B,
        _ => return None,
    };
    debug_assert!(meta.file_type().is_char_device() || meta.file_type().is_block_device());
    LinuxDeviceBuilder::default()
        .path(target)
        .typ(kind)
        .major(i64::from(major(meta.rdev())))
        .minor(i64::from(minor(meta.rdev())))
        .file_mode(meta.permissions().mode() & 0o777)
        .uid(meta.uid())
        .gid(meta.gid())
        .build()
        .ok()
}

/// The device rules: nothing, then Docker's standard devices, then the ones asked for. Privileged: everything.
pub(super) fn rules(host: &HostConfig) -> Result<Vec<LinuxDeviceCgroup>> {
    use LinuxDeviceType::{B, C};
    if is_privileged(host) {
        return Ok(vec![rule(true, None, None, None, "rwm")?]);
    }
    let mut out = vec![rule(false, None, None, None, "rwm")?];
    // Nodes may be made, of any device; opening them is another matter.
    out.push(rule(true, Some(C), None, None, "m")?);
    out.push(rule(true, Some(B), None, None, "m")?);
    for (major, minor) in [
        (1, Some(3)),
        (1, Some(8)),
        (1, Some(7)),
        (5, Some(0)),
        (1, Some(5)),
        (1, Some(9)),
        (5, Some(1)),
        (136, None),
        (5, Some(2)),
    ] {
        out.push(rule(true, Some(C), Some(major), minor, "rwm")?);
    }
    for mapping in host.devices.iter().flatten() {
        let access =
            access(mapping.cgroup_permissions.as_deref().filter(|a| !a.is_empty()).unwrap_or("rwm"))?;
        for device in mapped(mapping)? {
            out.push(rule(true, Some(device.typ()), Some(device.major()), Some(device.minor()), access)?);
        }
    }
    for text in host.device_cgroup_rules.iter().flatten() {
        out.push(parse_rule(text)?);
    }
    Ok(out)
}

fn access(text: &str) -> Result<&str> {
    let ok = !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| matches!(b, b'r' | b'w' | b'm'));
    if ok { Ok(text) } else { Err(invalid(format!("invalid device access {text:?}: letters of rwm"))) }
}

/// Reads `c 10:200 rwm`, `b *:* r`.
fn parse_rule(text: &str) -> Result<LinuxDeviceCgroup> {
    let wrong = || invalid(format!("invalid device cgroup format {text:?}: for example \"c 10:200 rwm\""));
    let mut parts = text.split_ascii_whitespace();
    let (kind, numbers, letters) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(k), Some(n), Some(a), None) => (k, n, a),
        _ => return Err(wrong()),
    };
    let kind = match kind {
        "a" => None,
        "b" => Some(LinuxDeviceType::B),
        "c" => Some(LinuxDeviceType::C),
        _ => return Err(wrong()),
    };
    let number = |s: &str| match s {
        "*" => Ok(None),
        n => n.parse::<u32>().map(|n| Some(i64::from(n))).map_err(|_| wrong()),
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
    rule(true, kind, number(major)?, number(minor)?, access(letters)?)
}

fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> Result<LinuxDeviceCgroup> {
    let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).access(access);
    rule = rule.typ(kind.unwrap_or(LinuxDeviceType::A));
    if let Some(major) = major {
        rule = rule.major(major);
    }
    if let Some(minor) = minor {
        rule = rule.minor(minor);
    }
    rule.build().map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read() {
        let r = parse_rule("c 10:* rw").unwrap();
        assert_eq!((r.major(), r.minor(), r.access().as_deref()), (Some(10), None, Some("rw")));
        for bad in ["", "c", "c 1:2", "x 1:2 r", "c 1 r", "c 1:2 q", "c 1:2 r r", "c -1:2 r"] {
            assert!(parse_rule(bad).is_err(), "{bad}");
        }
    }
}
