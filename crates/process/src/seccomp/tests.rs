//! Compiled filters, run by an interpreter of classic BPF, and over real processes.

use super::*;
use crate::caps::docker_default;
use proptest::prelude::*;
use std::collections::HashSet;
use sys::process::BpfInstruction as Insn;
use types::oci::{
    Arch as OciArch, Capability, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg,
    LinuxSeccompArgBuilder, LinuxSeccompOperator as Op, LinuxSyscallBuilder,
};

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

/// Answer of a filter and how many instructions it took.
fn run(program: &[Insn], arch: Arch, number: u32, args: [u64; 6]) -> (u32, usize) {
    let bit = if arch == Arch::X32 { 0x4000_0000 } else { 0 };
    reach::answer(program, &reach::data(arch, number | bit, args)).expect("the kernel would refuse it")
}

fn ask(program: &[Insn], arch: Arch, name: &str, args: [u64; 6]) -> u32 {
    run(program, arch, arch.number(name).unwrap(), args).0
}

#[test]
fn the_default_policy() {
    let filter = compile(&default_profile(&docker_default())).unwrap().program;
    let started = std::time::Instant::now();
    let policy = default_profile(&docker_default());
    let made = started.elapsed();
    compile(&policy).unwrap();
    println!("{} instructions, policy {made:?}, compiled {:?}", filter.len(), started.elapsed() - made);
    let native = Arch::NATIVE;
    for name in ["read", "openat", "execve", "futex", "chroot", "ptrace", "seccomp", "statx", "socket"] {
        assert_eq!(ask(&filter, native, name, [0; 6]), ALLOW, "{name}");
    }
    for name in [
        "mount",
        "umount2",
        "unshare",
        "setns",
        "keyctl",
        "add_key",
        "request_key",
        "bpf",
        "perf_event_open",
        "init_module",
        "kexec_load",
        "reboot",
        "swapon",
        "userfaultfd",
        "io_uring_setup",
        "open_by_handle_at",
        "acct",
        "settimeofday",
        "clock_settime",
        "quotactl",
        "move_mount",
        "open_tree",
        "fsopen",
        "pivot_root",
        "nfsservctl",
        "process_vm_readv",
        "syslog",
        "vhangup",
        "mbind",
        "move_pages",
    ] {
        assert_eq!(ask(&filter, native, name, [0; 6]), EPERM, "{name}");
    }
    assert_eq!(ask(&filter, native, "clone3", [0; 6]), ENOSYS);
    assert_eq!(run(&filter, native, 9999, [0; 6]).0, ENOSYS);
    let first = |value: u64| [value, 0, 0, 0, 0, 0];
    assert_eq!(ask(&filter, native, "clone", first(0x0001_0011)), ALLOW);
    for flag in [0x1000_0000, 0x2000_0000, 0x4000_0000, 0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000] {
        assert_eq!(ask(&filter, native, "clone", first(flag | 0x11)), EPERM, "{flag:#x}");
    }
    for (value, answer) in [(0, ALLOW), (8, ALLOW), (0xffff_ffff, ALLOW), (0x40000, EPERM), (1 << 32, EPERM)]
    {
        assert_eq!(ask(&filter, native, "personality", first(value)), answer, "{value:#x}");
    }
    for (family, answer) in
        [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (38, EPERM), (40, EPERM), (39, ALLOW)]
    {
        assert_eq!(ask(&filter, native, "socket", first(family)), answer, "{family}");
        // The kernel reads 32 bits only.
        assert_eq!(ask(&filter, native, "socket", first(family | 7 << 32)), answer, "{family}");
    }
    #[cfg(target_arch = "x86_64")]
    {
        assert_eq!(ask(&filter, Arch::X86, "mount", [0; 6]), EPERM);
        assert_eq!(ask(&filter, Arch::X86, "waitpid", [0; 6]), ALLOW);
        assert_eq!(ask(&filter, Arch::X32, "ioctl", [0; 6]), ALLOW);
        assert_eq!(ask(&filter, Arch::X32, "mount", [0; 6]), EPERM);
        // x86-64's own number of a call that x32 has elsewhere.
        assert_eq!(run(&filter, Arch::X32, 16, [0; 6]).0, EPERM);
    }
    assert_eq!(run(&filter, other_arch(), 0, [0; 6]).0, KILL_PROCESS);
    let longest = (0..500).map(|n| run(&filter, native, n, [0; 6]).1).max().unwrap();
    assert!(longest <= 24, "{longest} instructions for one call");
}

fn other_arch() -> Arch {
    if Arch::NATIVE == Arch::Aarch64 { Arch::X86 } else { Arch::Aarch64 }
}

#[test]
fn what_filters_let_through_is_counted() {
    assert!(reachable(&[]).len() > 300, "nothing holds a process without filters");
    let default = compile(&default_profile(&docker_default())).unwrap().program;
    let calls = reachable(std::slice::from_ref(&default));
    let has = |name| calls.contains(&Arch::NATIVE.number(name).unwrap());
    assert!(has("read") && has("openat") && !has("bpf") && !has("kexec_load"), "{calls:?}");
    // A second filter only takes away.
    let deny = vec![Insn { code: 6, jt: 0, jf: 0, k: EPERM }];
    assert!(reachable(&[deny, default]).is_empty());
    assert!(reachable(&[vec![Insn { code: 0xff, jt: 0, jf: 0, k: 0 }]]).is_empty(), "no filter at all");
}

#[test]
fn capabilities_open_calls() {
    let mut capabilities = docker_default();
    capabilities.insert(Capability::SysAdmin);
    let filter = compile(&default_profile(&capabilities)).unwrap().program;
    for name in ["mount", "unshare", "setns", "clone3", "bpf"] {
        assert_eq!(ask(&filter, Arch::NATIVE, name, [0; 6]), ALLOW, "{name}");
    }
    assert_eq!(ask(&filter, Arch::NATIVE, "clone", [0x1000_0000, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(ask(&filter, Arch::NATIVE, "init_module", [0; 6]), EPERM);
    let none = compile(&default_profile(&HashSet::new())).unwrap().program;
    assert_eq!(ask(&none, Arch::NATIVE, "chroot", [0; 6]), EPERM);
}

#[test]
fn docker_profiles() {
    let json = br#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {}},
            {"name": "write", "action": "SCMP_ACT_LOG"},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["kcmp"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.1"}},
            {"names": ["no_such_call"], "action": "SCMP_ACT_KILL"},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}}
        ]}"#;
    let policy = parse_docker_profile(json, &docker_default(), "6.1.0-18-amd64").unwrap();
    let filter = compile(&policy).unwrap().program;
    let answer = |name| ask(&filter, Arch::NATIVE, name, [0; 6]);
    assert_eq!(
        ["read", "write", "mount", "chroot", "ptrace", "kcmp", "bpf"].map(answer),
        [ALLOW, 0x7ffc_0000, ENOSYS, ALLOW, ALLOW, ENOSYS, ENOSYS]
    );
    for (bad, says) in [
        (&b"{"[..], "cannot be read"),
        (br#"{"defaultAction":"SCMP_ACT_NONSENSE"}"#, "SCMP_ACT_NONSENSE"),
        (br#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}"#, "a listener"),
        (
            br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_LOG","includes":{"minKernel":"new"}}]}"#,
            "new",
        ),
    ] {
        let error = parse_docker_profile(bad, &docker_default(), "6.1").unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let notify =
        parse_docker_profile(br#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, &docker_default(), "6.1").unwrap();
    assert!(compile(&notify).unwrap_err().to_string().contains("SCMP_ACT_NOTIFY"));
}

/// Where podman's profile is installed, ours is held against it: it may be stricter where Docker is.
#[test]
fn against_the_profile_of_podman() {
    let Ok(json) = std::fs::read("/usr/share/containers/seccomp.json") else {
        println!("skipped: no /usr/share/containers/seccomp.json here");
        return;
    };
    let theirs = compile(&parse_docker_profile(&json, &docker_default(), "6.1").unwrap()).unwrap().program;
    let ours = compile(&default_profile(&docker_default())).unwrap().program;
    let names = if Arch::NATIVE == Arch::Aarch64 { arm64::AARCH64 } else { x86::X86_64 };
    let (mut looser, mut stricter) = (Vec::new(), Vec::new());
    for (name, number) in names {
        let answer = |filter| run(filter, Arch::NATIVE, *number, [0; 6]).0;
        match (answer(&ours) == ALLOW, answer(&theirs) == ALLOW) {
            (true, false) => looser.push(*name),
            (false, true) => stricter.push(*name),
            _ => {}
        }
    }
    println!("allowed by us only: {looser:?}\nallowed by podman only: {stricter:?}");
    for name in looser {
        assert!(
            !["mount", "unshare", "setns", "bpf", "keyctl", "kexec_load", "init_module", "userfaultfd"]
                .contains(&name),
            "{name}"
        );
    }
}

/// A real process under the filter: the calls of a shell pass, those of `unshare` and `mount` do not.
#[test]
fn over_a_real_process() {
    let filter = compile(&default_profile(&docker_default())).unwrap();
    // The filter is for good and for this thread only, whose children inherit it.
    std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        sys::process::load_seccomp(&filter.program, filter.flags).unwrap();
        let run = |script: &str| {
            let done = std::process::Command::new("/bin/sh").args(["-c", script]).output().unwrap();
            (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
        };
        assert!(run("ls / | sort >/dev/null && sleep 0.01 && (echo a; echo b) | cat").0);
        for script in ["unshare -U true", "unshare -n true", "mount -t tmpfs none /mnt"] {
            let (worked, says) = run(script);
            assert!(!worked, "{script}");
            println!("{script}: {says}");
        }
    })
    .join()
    .unwrap();
}

fn one_rule(args: Vec<LinuxSeccompArg>) -> LinuxSeccomp {
    let rule = LinuxSyscallBuilder::default()
        .names(vec!["read".to_owned()])
        .action(Action::ScmpActErrno)
        .errno_ret(7u32)
        .args(args)
        .build()
        .unwrap();
    let mut policy = LinuxSeccomp::default();
    policy.set_default_action(Action::ScmpActAllow);
    policy.set_architectures(Some(vec![OciArch::ScmpArchNative]));
    policy.set_syscalls(Some(vec![rule]));
    policy
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..4,
        Just(u64::MAX),
        (0u64..4).prop_map(|n| n << 32),
        (0u64..4).prop_map(|n| u64::from(u32::MAX) + n)
    ]
}

proptest! {
    #[test]
    fn comparisons(op in 1u32..8, index in 0usize..6, wanted in value(), two in value(), given in value()) {
        let (op, holds) = match op {
            1 => (Op::ScmpCmpNe, given != wanted),
            2 => (Op::ScmpCmpLt, given < wanted),
            3 => (Op::ScmpCmpLe, given <= wanted),
            4 => (Op::ScmpCmpEq, given == wanted),
            5 => (Op::ScmpCmpGe, given >= wanted),
            6 => (Op::ScmpCmpGt, given > wanted),
            _ => (Op::ScmpCmpMaskedEq, given & wanted == two),
        };
        let arg = LinuxSeccompArgBuilder::default().index(index).op(op).value(wanted).value_two(two).build().unwrap();
        let filter = compile(&one_rule(vec![arg])).unwrap().program;
        let mut args = [0; 6];
        args[index] = given;
        prop_assert_eq!(ask(&filter, Arch::NATIVE, "read", args) == 0x0005_0007, holds);
        prop_assert_eq!(ask(&filter, Arch::NATIVE, "write", args), ALLOW);
    }

    #[test]
    fn conditions_on_several_arguments_join(a in 0u64..3, b in 0u64..3, x in 0u64..3, y in 0u64..3) {
        let arg = |index, value| LinuxSeccompArgBuilder::default().index(index).op(Op::ScmpCmpEq).value(value).build().unwrap();
        let all = compile(&one_rule(vec![arg(0usize, a), arg(3, b)])).unwrap().program;
        prop_assert_eq!(ask(&all, Arch::NATIVE, "read", [x, 0, 0, y, 0, 0]) != ALLOW, a == x && b == y);
        let any = compile(&one_rule(vec![arg(0, a), arg(0, b)])).unwrap().program;
        prop_assert_eq!(ask(&any, Arch::NATIVE, "read", [x, 0, 0, 0, 0, 0]) != ALLOW, a == x || b == x);
    }

    #[test]
    fn profiles_never_panic(json in "\\PC*") {
        let _ = parse_docker_profile(json.as_bytes(), &HashSet::new(), &json);
    }
}
