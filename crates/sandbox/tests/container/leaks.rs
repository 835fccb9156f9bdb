//! After hundreds of containers nothing of them is left.

use crate::support::*;
use dhow_sandbox::container::ContainerHull;
use dhow_sandbox::hull::Hull;

pub const TESTS: &[(&str, fn())] = &[
    ("failures_leave_nothing", failures_leave_nothing),
    ("cycles_leave_nothing", cycles_leave_nothing),
    ("the_dead_are_cleaned", the_dead_are_cleaned),
];

/// What could leak: our mounts, descriptors, children and cgroups.
fn footprint() -> (usize, usize, usize, usize) {
    let count = |path: &str| std::fs::read_dir(path).map_or(0, |d| d.count());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let children = std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id()));
    let children = children.unwrap_or_default().split_whitespace().count();
    let groups = ["memory", "pids", "."]
        .iter()
        .map(|c| count(&format!("/sys/fs/cgroup/{c}{}", cgroup_parent())))
        .sum();
    (mounts, count("/proc/self/fd"), children, groups)
}

fn cycles_leave_nothing() {
    let root = Rootfs::new();
    run(&root, &spec(&["true"])).unwrap();
    let before = footprint();
    let s = spec(&["true"]);
    let started = std::time::Instant::now();
    for _ in 0..300 {
        run(&root, &s).unwrap();
    }
    println!(
        "{:.2} ms for create, start, exit and destroy",
        started.elapsed().as_secs_f64() * 1000.0 / 300.0
    );
    assert_eq!(footprint(), before);
}

fn failures_leave_nothing() {
    let root = Rootfs::new();
    let _ = run(&root, &spec(&["true"]));
    let before = footprint();
    for i in 0..20 {
        let mut s = spec(&[if i % 2 == 0 { "nonesuch" } else { "true" }]);
        if i % 2 == 1 {
            s["process"]["cwd"] = "/etc/passwd/x".into();
        }
        assert!(run(&root, &s).is_err());
        // Created, never started.
        drop(create(&root, &spec(&["true"])).unwrap());
    }
    assert_eq!(footprint(), before);
}

fn the_dead_are_cleaned() {
    let root = Rootfs::new();
    let mut c = create(&root, &spec(&["sleep", "1000"])).unwrap();
    c.sandbox.start().unwrap();
    ContainerHull.clean("x", &c.cgroup).unwrap();
    wait_readable(&c.sandbox.pidfd());
    ContainerHull.clean("x", &c.cgroup).unwrap();
    c.sandbox.destroy().unwrap();
}
