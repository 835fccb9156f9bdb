//! What microVMs need.

use super::probe::{Part, Probe, install, program};
use super::{Check, For};
use crate::Paths;
use crate::machine::{Virtualization, kernels, virtualization};
use types::Hypervisor;

/// The checks, and what carries microVMs here.
pub(super) fn checks(probe: &Probe, paths: &Paths, guest: &[u8]) -> (Vec<Check>, String) {
    let found = virtualization();
    let carrier = found.hypervisor();
    let mut all = vec![virtual_cpu(&found), qemu(carrier), tun(probe), mke2fs(), agent(guest)];
    all.extend(kernel(paths));
    let how = match found {
        Virtualization::Kvm => "on KVM".to_owned(),
        Virtualization::None(why) => format!("emulated by QEMU (slow): {why}"),
    };
    (all, how)
}

fn virtual_cpu(found: &Virtualization) -> Check {
    let name = "KVM";
    match found {
        Virtualization::Kvm => Check::ok(For::Vm, name, "the CPU carries microVMs"),
        Virtualization::None(why) => {
            let mend = match why.contains("load the module") {
                true => "modprobe kvm_intel || modprobe kvm_amd",
                false => "",
            };
            Check::note(For::Vm, name, format!("{why}: QEMU emulates microVMs, which is slow")).mend(mend)
        }
    }
}

fn qemu(carrier: Hypervisor) -> Check {
    let name = "QEMU";
    if let Some(path) = program("qemu-system-x86_64") {
        return Check::ok(For::Vm, name, path.display().to_string());
    }
    // With KVM it is only for --hypervisor qemu.
    let check = match carrier {
        Hypervisor::Kvm => Check::note(For::Vm, name, "not installed: --hypervisor qemu does not work"),
        Hypervisor::Qemu => {
            Check::missing(For::Vm, name, "qemu-system-x86_64 is not installed, and it carries microVMs here")
        }
    };
    check.mend(install("qemu-system-x86", "qemu-system-x86-core", "qemu-system-x86", "qemu-system-x86_64"))
}

fn tun(probe: &Probe) -> Check {
    let name = "tun device";
    match (std::path::Path::new("/dev/net/tun").exists(), probe.part("tun")) {
        (true, _) => Check::ok(For::Vm, name, "/dev/net/tun"),
        (false, Part::Absent) => {
            Check::missing(For::Vm, name, "not in this kernel: microVMs have no network").mend("modprobe tun")
        }
        (false, _) => Check::missing(For::Vm, name, "/dev/net/tun is not there: microVMs have no network")
            .mend("mkdir -p /dev/net && mknod /dev/net/tun c 10 200"),
    }
}

fn mke2fs() -> Check {
    let name = "mke2fs";
    match program("mke2fs") {
        Some(path) => Check::ok(For::Vm, name, path.display().to_string()),
        None => Check::missing(For::Vm, name, "not installed: it makes the disk of a microVM").mend(install(
            "e2fsprogs",
            "e2fsprogs",
            "e2fsprogs",
            "e2fsprogs",
        )),
    }
}

fn agent(guest: &[u8]) -> Check {
    let name = "guest agent";
    match guest.is_empty() {
        true => Check::missing(For::Vm, name, "this build of dhow has none"),
        false => Check::ok(For::Vm, name, "in the program"),
    }
}

/// Kernels in the store; where there is none, whether one can be installed.
fn kernel(paths: &Paths) -> Vec<Check> {
    let name = "guest kernel";
    let list = std::fs::read_dir(paths.root.join("kernels")).into_iter().flatten().flatten();
    let whole = list.filter(|e| {
        !e.file_name().to_string_lossy().starts_with('.') && e.path().join("kernel.json").is_file()
    });
    let mut names: Vec<String> = whole.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    if !names.is_empty() {
        return vec![Check::ok(For::Vm, name, names.join(", "))];
    }
    let tools = ["apt-get", "apt-cache", "dpkg-deb"];
    let lacks: Vec<&str> = tools.into_iter().filter(|t| program(t).is_none()).collect();
    if lacks.is_empty() {
        return vec![
            Check::missing(For::Vm, name, "this store has none").mend("dhow kernel install"),
            Check::ok(For::Vm, "kernel install", format!("apt is here to fetch {}", kernels::PACKAGE)),
        ];
    }
    vec![
        Check::missing(For::Vm, name, "this store has none").mend("dhow kernel import FILE --modules DIR"),
        Check::note(
            For::Vm,
            "kernel install",
            format!("needs {}, which is not here: import a kernel", lacks.join(", ")),
        ),
    ]
}
