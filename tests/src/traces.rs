//! What a store leaves on the host, and the means to harm it.

use crate::Store;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;

/// `kill -9`, and the time that dying takes where others have the processors; who is gone already is.
pub fn kill(pid: i32) {
    let process = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
    until("the death of what was killed", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // What follows the name in brackets: Z is dead, and waits for its parent.
        stat.rsplit(')')
            .next()
            .is_none_or(|rest| !rest.starts_with(" R") && !rest.starts_with(" S") && !rest.starts_with(" D"))
    });
}

pub use crate::said::until;

/// Whether to take long: `DHOW_SOAK=1`.
pub fn soak() -> bool {
    std::env::var_os("DHOW_SOAK").is_some()
}

/// Numbers that are the same in each run (xorshift64).
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Random {
    /// One of so many.
    pub fn below(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % count
    }
}

/// A process of a store.
#[derive(Debug)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its command line, with spaces between the arguments.
    pub command: String,
}

/// Those whose command line names the store, commands, supervisors and monitors; and its hypervisors.
pub fn processes(store: &Store) -> Vec<Process> {
    let dir = store.root().parent().unwrap().display().to_string();
    let mut found: Vec<_> = all().filter(|process| process.command.contains(&dir)).collect();
    found.extend(hypervisors(store));
    found
}

/// QEMU and our own have what they open as descriptors: they are known by their container's id.
pub fn hypervisors(store: &Store) -> Vec<Process> {
    let dirs = std::fs::read_dir(store.root().join("sandboxes")).into_iter().flatten().flatten();
    let ids: Vec<_> = dirs.map(|d| d.file_name().to_string_lossy().into_owned()).collect();
    let is_ours = |p: &Process| {
        let is = |id: &String| {
            let qemu = p.command.contains("qemu") && p.command.contains(&format!(" -name {id} "));
            qemu || p.command.contains(&format!("dhow vmm {id}"))
        };
        ids.iter().any(is)
    };
    all().filter(is_ours).collect()
}

fn all() -> impl Iterator<Item = Process> {
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(Process { pid, command: String::from_utf8_lossy(&command).replace('\0', " ") })
    })
}

/// What a store leaves on the host.
pub fn traces(store: &Store) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let dir = store.root().parent().unwrap().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    out.extend(mounts.lines().filter(|l| l.contains(&dir)).map(|l| format!("mount {l}")));
    out.extend(processes(store).iter().map(|p| format!("process {} {}", p.pid, p.command)));
    for sub in ["root/sandboxes", "run/sandboxes", "run/layers"] {
        for entry in
            std::fs::read_dir(store.root().parent().unwrap().join(sub)).into_iter().flatten().flatten()
        {
            out.insert(format!("file {sub}/{}", entry.file_name().display()));
        }
    }
    let tag = tag_of(store);
    let groups = groups(Path::new("/sys/fs/cgroup"), 3).into_iter().filter(|g| g.contains(&tag));
    out.extend(groups.map(|g| format!("cgroup {g}")));
    for link in std::fs::read_dir("/sys/class/net").unwrap().flatten() {
        let name = link.file_name().display().to_string();
        let master = std::fs::read_link(link.path().join("master")).unwrap_or_default();
        if mine(store, &master) {
            out.insert(format!("interface {name}"));
        }
    }
    out.extend(firewall(store));
    out
}

/// Elements of our firewall tables that lead into this store's network, and its bridge's subnet.
fn firewall(store: &Store) -> Vec<String> {
    let bridge = format!("dhow-{}", tag_of(store));
    let said = |program: &str, args: &[&str]| {
        let out = std::process::Command::new(program).args(args).output();
        out.map_or_else(|_| String::new(), |out| String::from_utf8_lossy(&out.stdout).into_owned())
    };
    // `7: dhow-0123  inet 172.17.0.1/16 …`: what its containers have lies in there, what others' have does not.
    let address = said("ip", &["-o", "-4", "addr", "show", "dev", &bridge]);
    let subnet = address.split_whitespace().find_map(|w| {
        let (gateway, bits) = w.split_once('/')?;
        let bits = 32 - bits.parse::<u32>().ok().filter(|b| (1..=32).contains(b))?;
        Some((u32::from(gateway.parse::<Ipv4Addr>().ok()?) >> bits, bits))
    });
    let is_within = |e: &str| {
        let words = e.split(|c: char| !c.is_ascii_digit() && c != '.');
        let mut addresses = words.filter_map(|w| w.parse::<Ipv4Addr>().ok());
        subnet.is_some_and(|(net, bits)| addresses.any(|a| u32::from(a) >> bits == net))
    };
    let rules = said("nft", &["list", "table", "ip", "dhow"]);
    let elements = rules.split([',', '{', '}', '\n', '=']).map(str::trim);
    let ours = elements.filter(|e| e.contains(&bridge) || is_within(e));
    ours.map(|e| format!("firewall {e}")).collect()
}

/// Whether a bridge is this store's: its name has the tag that the store's cgroups have.
fn mine(store: &Store, bridge: &Path) -> bool {
    let Some(name) = bridge.file_name().map(|n| n.display().to_string()) else { return false };
    let tag = name.strip_prefix("dhow-").unwrap_or_default().to_owned();
    !tag.is_empty() && tag == tag_of(store)
}

/// FNV-1a of the root's path, as the engine names what is a store's own.
fn tag_of(store: &Store) -> String {
    let bytes = store.root().into_os_string().into_encoded_bytes();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{:08x}", (hash ^ (hash >> 32)) as u32)
}

fn groups(dir: &Path, depth: u32) -> Vec<String> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let name = entry.file_name().display().to_string();
        // Groups of containers: 64 digits below the store's own.
        if name.len() == 64 && dir.display().to_string().contains("dhow-") {
            out.push(entry.path().display().to_string());
        } else if depth > 0 {
            out.extend(groups(&entry.path(), depth - 1));
        }
    }
    out
}

/// Its traces once the last supervisor and the interface of the last container are gone: a `run` waits for neither,
/// and the kernel takes an interface down in its own time.
pub fn at_rest(store: &Store) -> BTreeSet<String> {
    let mut now = BTreeSet::new();
    until("everything at rest", || {
        now = traces(store);
        !now.iter().any(|t| t.starts_with("process") || t.starts_with("interface"))
    });
    now
}

/// Says what is left, and fails, if that stays so.
pub fn back_to(store: &Store, before: &BTreeSet<String>) {
    let mut last = String::new();
    until("nothing left", || {
        let now = traces(store);
        let more: Vec<_> = now.difference(before).collect();
        let change = format!("more: {more:?}, less: {:?}", before.difference(&now).collect::<Vec<_>>());
        if now != *before && change != last {
            eprintln!("{change}");
        }
        last = change;
        now == *before
    });
}
