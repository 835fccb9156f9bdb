//! Questions to the host that change nothing: files below `/proc` and `/sys`, the list of modules, programs in `PATH`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Whether the kernel has a part of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It is there.
    Present,
    /// The module is on the disk; the kernel loads it when it is first used.
    Loadable,
    /// It is not there.
    Absent,
}

/// What was read once.
pub(super) struct Probe {
    pub release: String,
    symbols: HashSet<String>,
    filesystems: HashSet<String>,
    modules: HashSet<String>,
}

/// A function that is there if the part is built in or loaded.
const SYMBOLS: [(&str, &str); 6] = [
    ("nf_tables", "nft_do_chain"),
    ("nft_nat", "nft_nat_eval"),
    ("bridge", "br_dev_queue_push_xmit"),
    ("veth", "veth_xmit"),
    ("tun", "tun_chr_open"),
    ("loop", "loop_queue_rq"),
];

impl Probe {
    pub fn of_this_host() -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let known: HashSet<&str> = SYMBOLS.iter().map(|(_, s)| *s).collect();
        // proc_kallsyms(5): address, type, name, and the module in brackets.
        let symbols = read("/proc/kallsyms")
            .lines()
            .filter_map(|l| l.split_ascii_whitespace().nth(2))
            .filter(|s| known.contains(s))
            .map(str::to_owned)
            .collect();
        let filesystems = read("/proc/filesystems")
            .lines()
            .filter_map(|l| l.split('\t').nth(1))
            .map(str::to_owned)
            .collect();
        let dir = Path::new("/lib/modules").join(&release);
        let listed = ["modules.dep", "modules.builtin"].map(|f| read(dir.join(f)));
        let modules = listed.iter().flat_map(|t| t.lines()).filter_map(module_name).collect();
        Self { release, symbols, filesystems, modules }
    }

    /// A module by its name (modules.dep(5)), or what it brings if it is built in.
    pub fn part(&self, module: &str) -> Part {
        let symbol = SYMBOLS.iter().find(|(m, _)| *m == module).map(|(_, s)| *s);
        let loaded = Path::new("/sys/module").join(module).exists();
        if loaded || symbol.is_some_and(|s| self.symbols.contains(s)) {
            return Part::Present;
        }
        self.on_disk(module)
    }

    /// A filesystem by its name.
    pub fn filesystem(&self, name: &str) -> Part {
        if self.filesystems.contains(name) { Part::Present } else { self.on_disk(name) }
    }

    fn on_disk(&self, module: &str) -> Part {
        if self.modules.contains(module) { Part::Loadable } else { Part::Absent }
    }

    /// Version as numbers: 6.12 is `(6, 12)`.
    pub fn version(&self) -> (u32, u32) {
        version(&self.release)
    }
}

/// The file as text; empty if it cannot be read.
pub(super) fn read(path: impl AsRef<Path>) -> String {
    std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// `kernel/fs/erofs/erofs.ko.xz: …` is `erofs`; names have underscores in `/sys/module`.
fn module_name(line: &str) -> Option<String> {
    let path = line.split(':').next()?;
    let file = path.rsplit('/').next()?;
    Some(file.split(".ko").next()?.replace('-', "_"))
}

/// A capability set of `/proc/self/status` (proc_pid_status(5)).
pub(super) fn capabilities(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|v| u64::from_str_radix(v.trim(), 16).ok()).unwrap_or(0)
}

/// Where a program is, as executing it by its name finds it.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// The command that installs a package here; `debian`, `fedora`, `arch`, `alpine` are the package's names there.
pub(super) fn install(debian: &str, fedora: &str, arch: &str, alpine: &str) -> String {
    installer(&read("/etc/os-release"), [debian, fedora, arch, alpine])
}

fn installer(os_release: &str, [debian, fedora, arch, alpine]: [&str; 4]) -> String {
    let like = |names: &[&str]| {
        os_release
            .lines()
            .filter_map(|l| l.strip_prefix("ID=").or_else(|| l.strip_prefix("ID_LIKE=")))
            .flat_map(|v| v.trim_matches('"').split(' '))
            .any(|id| names.contains(&id))
    };
    if like(&["debian", "ubuntu"]) {
        format!("apt-get install {debian}")
    } else if like(&["fedora", "rhel", "centos"]) {
        format!("dnf install {fedora}")
    } else if like(&["arch"]) {
        format!("pacman -S {arch}")
    } else if like(&["alpine"]) {
        format!("apk add {alpine}")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(version("6.12.3-amd64"), (6, 12));
        assert_eq!(version("odd"), (0, 0));
        assert_eq!(module_name("kernel/net/netfilter/nf_tables.ko.xz: a.ko").unwrap(), "nf_tables");
        assert_eq!(module_name("kernel/drivers/vhost/vhost-net.ko").unwrap(), "vhost_net");
        assert_eq!(capabilities("Name:\tx\nCapEff:\t0000000000200000\n", "CapEff"), 1 << 21);
        assert_eq!(capabilities("Name:\tx\n", "CapEff"), 0);
    }

    #[test]
    fn the_distribution_decides_who_installs() {
        let names = ["qemu-system-x86", "qemu-system-x86-core", "qemu-system-x86", "qemu-system-x86_64"];
        let of = |text: &str| installer(text, names);
        assert_eq!(of("ID=debian\n"), "apt-get install qemu-system-x86");
        assert_eq!(of("ID=rocky\nID_LIKE=\"rhel centos fedora\"\n"), "dnf install qemu-system-x86-core");
        assert_eq!(of("ID=alpine\n"), "apk add qemu-system-x86_64");
        assert_eq!(of("ID=other\n"), "");
    }
}
