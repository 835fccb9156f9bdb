//! What containers need, and what both hulls do.

use super::probe::{Part, Probe, capabilities, program, read};
use super::{Check, For};
use crate::Paths;
use std::path::Path;
use types::units;

/// Capabilities (capabilities(7)) without which no container can be made.
const NEEDED: [(u32, &str); 7] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
];
/// Those whose lack takes something away.
const WANTED: [(u32, &str, &str); 3] = [
    (24, "CAP_SYS_RESOURCE", "limits cannot be raised above this shell's, OOM scores cannot be lowered"),
    (27, "CAP_MKNOD", "containers get no device nodes of their own"),
    (19, "CAP_SYS_PTRACE", "processes of other users cannot be looked at"),
];
/// Below this many free bytes the next image may not fit.
const LITTLE: u64 = 1 << 30;
/// mount_setattr(2), the youngest call that nothing replaces.
const OLDEST: (u32, u32) = (5, 12);

pub(super) fn checks(probe: &Probe, paths: &Paths) -> Vec<Check> {
    let mut all = vec![root()];
    all.extend(powers());
    all.push(kernel(probe));
    all.push(overlay(probe));
    all.push(erofs(probe, paths));
    all.push(cgroups());
    all.extend(network(probe));
    all.push(forwarding());
    all.push(seccomp());
    all.push(security_module());
    all.push(users());
    all.push(disk(paths));
    all
}

fn root() -> Check {
    let name = "root";
    match rustix::process::geteuid().is_root() {
        true => Check::ok(For::Both, name, "runs as root"),
        false => Check::missing(For::Both, name, "namespaces, mounts and networks need root")
            .mend("sudo dhow doctor"),
    }
}

fn powers() -> Vec<Check> {
    let name = "capabilities";
    let held = capabilities(&read("/proc/self/status"), "CapEff");
    let lacks = |bit: u32| held & (1 << bit) == 0;
    let needed: Vec<&str> = NEEDED.iter().filter(|(bit, _)| lacks(*bit)).map(|(_, name)| *name).collect();
    let mut all = Vec::new();
    if !needed.is_empty() {
        let text = format!("no {}: neither hull can be made", needed.join(", "));
        all.push(Check::missing(For::Both, name, text));
    }
    let wanted = WANTED.iter().filter(|(bit, ..)| lacks(*bit));
    all.extend(wanted.map(|(_, cap, follows)| Check::note(For::Both, name, format!("no {cap}: {follows}"))));
    if all.is_empty() {
        all.push(Check::ok(For::Both, name, "all that are needed"));
    }
    all
}

fn kernel(probe: &Probe) -> Check {
    let name = "kernel";
    let release = &probe.release;
    match probe.version() {
        v if v < OLDEST => Check::missing(
            For::Both,
            name,
            format!(
                "Linux {release} is older than {}.{}, and lacks system calls that mounting needs",
                OLDEST.0, OLDEST.1
            ),
        ),
        v if v < (6, 15) => Check::ok(
            For::Both,
            name,
            format!("Linux {release}; exit codes outlive a killed supervisor from 6.15 on"),
        ),
        _ => Check::ok(For::Both, name, format!("Linux {release}")),
    }
}

fn overlay(probe: &Probe) -> Check {
    let name = "overlayfs";
    match probe.filesystem("overlay") {
        Part::Present => Check::ok(For::Container, name, "joins layers and changes"),
        Part::Loadable => Check::ok(For::Container, name, "a module, loaded when it is first used"),
        Part::Absent => Check::missing(
            For::Container,
            name,
            "the kernel does not have it: no root filesystem can be made",
        )
        .mend("modprobe overlay"),
    }
}

fn erofs(probe: &Probe, paths: &Paths) -> Check {
    let name = "EROFS";
    // What the store found out by mounting one.
    if read(paths.run.join("layer-format")).trim() == "dir" {
        return Check::note(
            For::Container,
            name,
            "cannot be mounted here: layers are unpacked into directories",
        );
    }
    match probe.filesystem("erofs") {
        Part::Absent => Check::note(
            For::Container,
            name,
            "the kernel does not have it: layers are unpacked into directories, which takes longer and more inodes",
        )
        .mend("modprobe erofs"),
        _ if probe.version() >= (6, 12) => Check::ok(For::Container, name, "layers are files, mounted as they are"),
        _ if probe.part("loop") != Part::Absent => {
            Check::ok(For::Container, name, "layers are files, mounted by loop devices (without them from Linux 6.12 on)")
        }
        _ => Check::note(For::Container, name, "no loop devices: layers are unpacked into directories").mend("modprobe loop"),
    }
}

fn cgroups() -> Check {
    use sandbox::container::cgroup::{Version, info};
    let name = "cgroups";
    let mount = "mount -t cgroup2 cgroup2 /sys/fs/cgroup";
    let info = match info() {
        Ok(info) => info,
        Err(e) => return Check::missing(For::Both, name, format!("{e}: no limits, no freezing")).mend(mount),
    };
    let version = match info.version {
        Version::V1 => "v1",
        Version::V2 => "v2",
    };
    let has = |c: &str| info.controllers.iter().any(|have| have == c);
    let lacks: Vec<&str> = ["cpu", "cpuset", "memory", "pids"].into_iter().filter(|c| !has(c)).collect();
    match (info.controllers.is_empty(), lacks.is_empty()) {
        (true, _) => {
            Check::note(For::Both, name, format!("{version} without controllers: no limit can be set"))
        }
        (_, true) => Check::ok(For::Both, name, format!("{version} with {}", info.controllers.join(" "))),
        _ => Check::note(
            For::Both,
            name,
            format!("{version} without {}: these cannot be limited", lacks.join(", ")),
        ),
    }
}

fn network(probe: &Probe) -> Vec<Check> {
    let needs = [
        ("nftables", "nf_tables", For::Both),
        ("bridge", "bridge", For::Both),
        ("veth", "veth", For::Container),
    ];
    let one = |(name, module, hull): (&'static str, &str, For)| match probe.part(module) {
        Part::Present => Check::ok(hull, name, "there"),
        Part::Loadable => Check::ok(hull, name, "a module, loaded when it is first used"),
        Part::Absent => {
            let text = "not in this kernel, as far as can be told: only --network none and host work";
            Check::missing(hull, name, text).mend(format!("modprobe {module}"))
        }
    };
    needs.map(one).into()
}

fn forwarding() -> Check {
    let name = "IPv4 forwarding";
    match read("/proc/sys/net/ipv4/ip_forward").trim() {
        "1" => Check::ok(For::Both, name, "on"),
        _ if writable("/proc/sys/net/ipv4/ip_forward") => {
            Check::note(For::Both, name, "off: the first sandbox on the bridge turns it on")
        }
        _ => Check::missing(
            For::Both,
            name,
            "off, and cannot be turned on from here: the bridge does not work",
        )
        .mend("sysctl -w net.ipv4.ip_forward=1"),
    }
}

/// Whether root could write it, as far as its mount goes.
fn writable(path: &str) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

fn seccomp() -> Check {
    let name = "seccomp";
    match read("/proc/sys/kernel/seccomp/actions_avail").contains("errno") {
        true => Check::ok(For::Container, name, "system calls are filtered"),
        false => Check::missing(
            For::Container,
            name,
            "the kernel has no seccomp filters: only --security-opt seccomp=unconfined works",
        ),
    }
}

fn security_module() -> Check {
    let name = "AppArmor, SELinux";
    if read("/sys/module/apparmor/parameters/enabled").starts_with('Y') {
        return match program("apparmor_parser") {
            Some(_) => Check::ok(For::Container, name, "AppArmor is on"),
            None => Check::note(
                For::Container,
                name,
                "AppArmor is on, its parser is not installed: no profile of ours can be loaded",
            )
            .mend(super::probe::install("apparmor", "apparmor-parser", "apparmor", "apparmor")),
        };
    }
    match read("/sys/fs/selinux/enforce").trim() {
        "1" => Check::ok(For::Container, name, "SELinux enforces"),
        "0" => Check::note(For::Container, name, "SELinux is permissive: it holds nothing back"),
        _ => Check::note(
            For::Container,
            name,
            "neither is on: namespaces, capabilities and seccomp stand alone",
        ),
    }
}

fn users() -> Check {
    let name = "user namespaces";
    let max: u64 = read("/proc/sys/user/max_user_namespaces").trim().parse().unwrap_or(0);
    match Path::new("/proc/self/ns/user").exists() && max > 0 {
        true => Check::ok(For::Container, name, "run --userns private works"),
        false => Check::note(For::Container, name, "off: run --userns private does not work")
            .mend("sysctl -w user.max_user_namespaces=65536"),
    }
}

fn disk(paths: &Paths) -> Check {
    let name = "disk";
    let Some(dir) = paths.root.ancestors().find(|p| p.exists()) else {
        return Check::note(For::Both, name, format!("{} cannot be looked at", paths.root.display()));
    };
    let free = match rustix::fs::statvfs(dir) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(e) => return Check::note(For::Both, name, format!("{} cannot be looked at: {e}", dir.display())),
    };
    let text = format!("{} free for {}", units::human_size(free as f64), paths.root.display());
    match free < LITTLE {
        true => Check::note(For::Both, name, format!("{text}: the next image may not fit"))
            .mend("dhow system prune"),
        false => Check::ok(For::Both, name, text),
    }
}
