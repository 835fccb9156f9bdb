//! Groups on the host's own cgroups, whichever version it has; as root.

use super::*;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use types::oci::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxPids, LinuxResources,
    LinuxThrottleDeviceBuilder,
};

const MIB: i64 = 1 << 20;

/// A path that no other test and no other run has; its group is removed whatever happens.
struct Unique(String);

impl Unique {
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() || Hierarchies::get().is_err() {
            println!("skipped: needs root and a cgroup mount");
            return None;
        }
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Some(Self(format!("/dhow-test-{}-{n}/{n}", std::process::id())))
    }

    fn parent(&self) -> &str {
        self.0.trim_start_matches('/').split('/').next().unwrap()
    }
}

impl Drop for Unique {
    fn drop(&mut self) {
        let _ = Cgroup::clean(&self.0);
        Cgroup::clean(self.parent()).expect("nothing stays behind");
    }
}

fn memory(limit: i64, swap: i64) -> LinuxResources {
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit)).set_swap(Some(swap));
    let mut resources = LinuxResources::default();
    resources.set_devices(None).set_memory(Some(memory));
    resources
}

fn cpu(change: impl FnOnce(&mut LinuxCpu)) -> LinuxResources {
    let mut cpu = LinuxCpu::default();
    change(&mut cpu);
    let mut resources = LinuxResources::default();
    resources.set_devices(None).set_cpu(Some(cpu));
    resources
}

fn nothing() -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources
}

/// A child in the group.
fn spawn(group: &Arc<Cgroup>, script: &str) -> Child {
    // It waits until it is in the group.
    let script = format!("read go; exec 0</dev/null; {script}");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.process_group(0).spawn().unwrap();
    group.add(child.id() as i32).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child
}

/// Moves the calling thread out of all groups of v1.
fn leave() {
    for hierarchy in &Hierarchies::get().unwrap().v1 {
        files::write(&hierarchy.root, "tasks", "0").unwrap();
    }
}

fn output(mut child: Child) -> String {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    text
}

/// Reads a file of the group, by its name in v1 (with its controller) or in v2.
fn file(group: &Cgroup, controller: &str, v1: &str, v2: &str) -> String {
    let host = Hierarchies::get().unwrap();
    let (root, name) = match &group.inner {
        Inner::V1(_) => (&host.v1(controller).unwrap().root, v1),
        Inner::V2(_) => (&host.v2.as_ref().unwrap().root, v2),
    };
    files::read(root, &format!("{}/{name}", group.path)).unwrap().trim().to_owned()
}

fn v2(group: &Cgroup) -> bool {
    matches!(group.inner, Inner::V2(_))
}

#[test]
fn paths() {
    assert_eq!(relative("/dhow/abc").unwrap(), "dhow/abc");
    assert_eq!(relative("system.slice/x").unwrap(), "system.slice/x");
    for bad in ["", "/", "/../x", "/a/../b", "/a//b", "/./a", "/a\nb"] {
        assert!(relative(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_life() {
    let Some(path) = Unique::new() else { return };
    let mut group = Cgroup::create(&path.0, &memory(64 * MIB, 64 * MIB)).unwrap();
    assert!(group.processes().unwrap().is_empty());
    let group_arc = Arc::new(group);
    let mut child = spawn(&group_arc, "sleep 1000 & sleep 1001");
    let group2 = Cgroup::open(&path.0).unwrap();
    while group2.processes().unwrap().len() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(group2.processes().unwrap().contains(&(child.id() as i32)));
    let stats = group2.stats().unwrap();
    assert_eq!(stats.memory_limit, 64 * MIB as u64);
    assert_eq!(stats.pids, 3);
    assert!(stats.memory_usage > 0 && stats.cpu_total_ns > 0 && stats.host_cpu_ns > stats.cpu_total_ns);
    assert!(stats.online_cpus >= 1 && !stats.memory_stat.is_empty());

    group_arc.freeze().unwrap();
    let pid = child.id();
    let state = |pid| std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    println!("frozen in {}", state(pid));
    // Killed while frozen.
    group_arc.kill().unwrap();
    child.wait().unwrap();
    group_arc.thaw().unwrap();
    group = Arc::into_inner(group_arc).unwrap();
    group.destroy().unwrap();
    group.destroy().unwrap();
    assert!(Cgroup::open(&path.0).is_err());
    Cgroup::clean(&path.0).unwrap();
}

#[test]
fn a_child_joins_by_itself() {
    let Some(path) = Unique::new() else { return };
    let group = Cgroup::create(&path.0, &nothing()).unwrap();
    // A thread has a pid of its own on v1's `tasks`; on v2 the whole process moves, so not there.
    if v2(&group) {
        assert!(group.fd().is_some());
        return;
    }
    assert!(group.fd().is_none());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let started = Instant::now();
            group.join().unwrap();
            println!("joined in {:?}", started.elapsed());
            let text = std::fs::read_to_string("/proc/thread-self/cgroup").unwrap();
            leave();
            assert!(text.lines().filter(|l| l.ends_with(&path.0)).count() >= 5, "{text}");
        });
    });
}

#[test]
fn limits_change_in_any_direction() {
    let Some(path) = Unique::new() else { return };
    let mut group = Cgroup::create(&path.0, &memory(64 * MIB, 128 * MIB)).unwrap();
    let limit = |g: &Cgroup| file(g, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit(&group), (64 * MIB).to_string());
    // Up beyond the old sum, down below the old limit.
    for mib in [256, 32, 512, 16] {
        group.update(&memory(mib * MIB, mib * 2 * MIB)).unwrap();
        assert_eq!(limit(&group), (mib * MIB).to_string());
    }
    // The rest stays.
    group.update(&cpu(|c| drop(c.set_shares(Some(512)).clone()))).unwrap();
    assert_eq!(limit(&group), (16 * MIB).to_string());
    assert_eq!(file(&group, "cpu", "cpu.shares", "cpu.weight"), if v2(&group) { "59" } else { "512" });
    group.update(&cpu(|c| drop(c.set_quota(Some(50_000)).set_period(Some(100_000)).clone()))).unwrap();
    group.update(&cpu(|c| drop(c.set_quota(Some(150_000)).clone()))).unwrap();
    if v2(&group) {
        assert_eq!(file(&group, "cpu", "", "cpu.max"), "150000 100000");
    } else {
        assert_eq!(file(&group, "cpu", "cpu.cfs_quota_us", ""), "150000");
        assert_eq!(file(&group, "cpu", "cpu.cfs_period_us", ""), "100000");
        let only_limit = {
            let mut r = memory(0, 0);
            r.memory_mut().as_mut().unwrap().set_limit(Some(640 * MIB)).set_swap(None);
            r
        };
        let swap_kept = files::exists(
            &Hierarchies::get().unwrap().v1("memory").unwrap().root,
            "memory.memsw.limit_in_bytes",
        );
        if swap_kept {
            let refused = group.update(&only_limit).unwrap_err().to_string();
            assert!(refused.contains("--memory-swap"), "{refused}");
        }
    }
    // No limit at all.
    group.update(&memory(-1, -1)).unwrap();
    assert_eq!(group.stats().unwrap().memory_limit, host_memory());
    group.update(&cpu(|c| drop(c.set_quota(Some(-1)).clone()))).unwrap();
    group.update(&cpu(|c| drop(c.set_cpus(Some("0".into())).clone()))).unwrap();
    assert_eq!(file(&group, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    let mut pids = nothing();
    pids.set_pids(Some(LinuxPids::default()));
    pids.pids_mut().as_mut().unwrap().set_limit(17);
    group.update(&pids).unwrap();
    assert_eq!(file(&group, "pids", "pids.max", "pids.max"), "17");
}

#[test]
fn impossible_limits_leave_nothing() {
    let Some(path) = Unique::new() else { return };
    let mut pids = nothing();
    let mut too_many = LinuxPids::default();
    too_many.set_limit(5_000_000);
    pids.set_pids(Some(too_many));
    let mut io = nothing();
    let mut block_io = LinuxBlockIo::default();
    let device = LinuxThrottleDeviceBuilder::default().major(4000).minor(7).rate(1u64 << 20).build().unwrap();
    block_io.set_throttle_read_bps_device(Some(vec![device]));
    io.set_block_io(Some(block_io));
    for (resources, says) in [
        (memory(4 * MIB, 0), "minimum is 6MiB"),
        (memory(64 * MIB, 32 * MIB), "below the memory limit"),
        (cpu(|c| drop(c.set_cpus(Some("0-4000".into())).clone())), "requested 0-4000, available: "),
        (cpu(|c| drop(c.set_mems(Some("77".into())).clone())), "requested 77, available: "),
        (cpu(|c| drop(c.set_cpus(Some("x".into())).clone())), "no list of numbers"),
        (cpu(|c| drop(c.set_period(Some(10)).clone())), "CPU period 10 "),
        (cpu(|c| drop(c.set_shares(Some(1)).clone())), "CPU shares 1 "),
        (pids, "process limit 5000000"),
        (io, "4000:7"),
    ] {
        let error = Cgroup::create(&path.0, &resources).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!error.contains('\n'));
        assert!(Cgroup::open(&path.0).is_err(), "{says}");
    }
}

#[test]
fn the_limit_of_processes_holds() {
    let Some(path) = Unique::new() else { return };
    let mut resources = nothing();
    let mut pids = LinuxPids::default();
    pids.set_limit(4);
    resources.set_pids(Some(pids));
    let group = Arc::new(Cgroup::create(&path.0, &resources).unwrap());
    let text = output(spawn(&group, "for i in 1 2 3 4 5 6; do sleep 0.3 & done; echo all; wait"));
    assert_eq!(text, "");
}

#[test]
fn a_fork_bomb_dies() {
    let Some(path) = Unique::new() else { return };
    let mut resources = nothing();
    let mut pids = LinuxPids::default();
    pids.set_limit(60);
    resources.set_pids(Some(pids));
    let group = Arc::new(Cgroup::create(&path.0, &resources).unwrap());
    let mut child = spawn(&group, "f() { f 2>/dev/null & f 2>/dev/null & wait; }; while :; do f; done");
    std::thread::sleep(Duration::from_millis(200));
    group.destroy().unwrap();
    child.wait().unwrap();
}

#[test]
fn nested_groups_go_too() {
    let Some(path) = Unique::new() else { return };
    let group = Arc::new(Cgroup::create(&path.0, &nothing()).unwrap());
    let host = Hierarchies::get().unwrap();
    let roots: Vec<_> = match &group.inner {
        Inner::V1(_) => host.v1("freezer").into_iter().chain(host.v1("memory")).map(|h| &h.root).collect(),
        Inner::V2(_) => vec![&host.v2.as_ref().unwrap().root],
    };
    for root in &roots {
        for below in ["a", "a/b", "c"] {
            rustix::fs::mkdirat(root, format!("{}/{below}", group.path), 0o755.into()).unwrap();
        }
    }
    let mut child = spawn(&group, "exec sleep 1000");
    let pid = child.id().to_string();
    files::write(roots[0], &format!("{}/a/b/cgroup.procs", group.path), &pid).unwrap();
    assert!(group.processes().unwrap().contains(&(child.id() as i32)));
    Cgroup::clean(&path.0).unwrap();
    child.wait().unwrap();
    assert!(Cgroup::open(&path.0).is_err());
}

#[test]
fn an_oom_kill_is_told() {
    let Some(path) = Unique::new() else { return };
    let group = Arc::new(Cgroup::create(&path.0, &memory(8 * MIB, 8 * MIB)).unwrap());
    assert_eq!(group.oom_kills(), 0);
    let notifier = group.oom_notifier().unwrap();
    let child = spawn(&group, "a=0123456789; while :; do a=$a$a; done");
    let mut fds = [rustix::event::PollFd::new(&notifier, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&patience)).unwrap(), 1);
    output(child);
    assert!(group.oom_kills() >= 1);
    let mut buffer = [0u8; 4096];
    assert!(rustix::io::read(notifier, &mut buffer).unwrap() >= 8);
}

#[test]
fn lowering_below_use_is_refused() {
    let Some(path) = Unique::new() else { return };
    let mut group = Cgroup::create(&path.0, &memory(256 * MIB, 256 * MIB)).unwrap();
    let arc = Arc::new(group);
    // 40 MB of anonymous memory, held.
    let mut child = spawn(&arc, "a=$(head -c 40000000 /dev/zero | tr '\\0' x); echo held; sleep 1000");
    let mut held = [0u8; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut held).unwrap();
    group = Arc::into_inner(arc).unwrap();
    let error = group.update(&memory(8 * MIB, 8 * MIB)).unwrap_err().to_string();
    assert!(error.contains("cannot be lowered to 8MiB: the container uses"), "{error}");
    assert!(child.try_wait().unwrap().is_none(), "it lives on");
    group.destroy().unwrap();
    child.wait().unwrap();
}

#[test]
fn device_rules_hold_and_are_replaced() {
    let Some(path) = Unique::new() else { return };
    let rule = |allow, device: Option<(i64, i64)>| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_access(Some("rwm".into()));
        if let Some((major, minor)) = device {
            rule.set_typ(Some(LinuxDeviceType::C)).set_major(Some(major)).set_minor(Some(minor));
        }
        rule
    };
    let mut resources = nothing();
    let null_only = vec![rule(false, None), rule(true, Some((1, 3)))];
    resources.set_devices(Some(null_only));
    let mut group = Cgroup::create(&path.0, &resources).unwrap();
    let script = "head -c 1 /dev/zero >/dev/null && echo zero; echo x 2>/dev/null >/dev/null && echo null";
    let run = |group: Cgroup, script: &str| {
        let group = Arc::new(group);
        let text = output(spawn(&group, script));
        (Arc::into_inner(group).unwrap(), text)
    };
    let text;
    (group, text) = run(group, script);
    assert_eq!(text, "null\n");
    for _ in 0..3 {
        resources.set_devices(Some(vec![
            rule(false, None),
            rule(true, Some((1, 3))),
            rule(true, Some((1, 5))),
        ]));
        group.update(&resources).unwrap();
    }
    let (_, text) = run(group, script);
    assert_eq!(text, "zero\nnull\n");
}

#[test]
fn what_is_missing_is_told() {
    if Hierarchies::get().is_err() {
        return;
    }
    let info = info().unwrap();
    println!("{info:?}");
    assert!(!info.controllers.is_empty());
    let warnings = Cgroup::unsupported(&memory(64 * MIB, 128 * MIB));
    assert_eq!(warnings.is_empty(), info.swap_limit, "{warnings:?}");
    assert!(Cgroup::unsupported(&memory(64 * MIB, 64 * MIB)).is_empty());
}

#[test]
#[ignore = "a measurement"]
fn cost_of_a_group() {
    let Some(path) = Unique::new() else { return };
    let mut resources = memory(64 * MIB, 64 * MIB);
    let mut pids = LinuxPids::default();
    pids.set_limit(100);
    resources.set_pids(Some(pids));
    // The parent stays, as /dhow does.
    let _parent = Cgroup::create(path.parent(), &nothing()).unwrap();
    let (mut made, mut joined, mut removed) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for _ in 0..50 {
        let started = Instant::now();
        let group = Cgroup::create(&path.0, &resources).unwrap();
        made += started.elapsed();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if !v2(&group) {
                    let started = Instant::now();
                    group.join().unwrap();
                    joined += started.elapsed();
                    leave();
                }
            });
        });
        let started = Instant::now();
        group.destroy().unwrap();
        removed += started.elapsed();
    }
    println!("create {:?}, join {:?}, destroy {:?}", made / 50, joined / 50, removed / 50);
}
