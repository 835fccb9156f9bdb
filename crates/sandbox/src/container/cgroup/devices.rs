//! Device rules: lines for v1's device controller, an eBPF program for v2 (`BPF_PROG_TYPE_CGROUP_DEVICE`).
//!
//! The rules of the OCI specification are ordered and may contradict each other. For v2 they are first played
//! through as v1's kernel code (security/device_cgroup.c) does: a default and a set of exceptions to it.

use crate::hull::HullError;
use std::collections::BTreeMap;
use sys::bpf::Insn;
use types::oci::{LinuxDeviceCgroup, LinuxDeviceType};

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ANY_ACCESS: u32 = MKNOD | READ | WRITE;

/// What a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Which {
    /// A block device, or else a character device.
    block: bool,
    major: Option<u32>,
    minor: Option<u32>,
}

/// A rule as read.
enum Rule {
    /// Of all devices; it also ends what the rules before it said.
    All,
    /// Of these, with these kinds of access.
    Some(Which, u32),
    /// Of what is no device.
    Nothing,
}

fn read(rule: &LinuxDeviceCgroup) -> Result<Rule, HullError> {
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(n) => u32::try_from(n).ok().filter(|n| *n <= i32::MAX as u32).map(Some).ok_or_else(|| {
            HullError::Invalid(format!("the device rule {rule} has an impossible device number {n}"))
        }),
    };
    let block = match rule.typ() {
        None | Some(LinuxDeviceType::A) => return Ok(Rule::All),
        Some(LinuxDeviceType::B) => true,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => false,
        Some(LinuxDeviceType::P) => return Ok(Rule::Nothing),
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => {
                return Err(HullError::Invalid(format!(
                    "the device rule {rule} has an unknown access {letter:?}: use r, w and m"
                )));
            }
        };
    }
    Ok(Rule::Some(Which { block, major: number(rule.major())?, minor: number(rule.minor())? }, access))
}

/// The writes that v1 needs: file and line.
pub(super) fn v1_lines(rules: &[LinuxDeviceCgroup]) -> Result<Vec<(&'static str, String)>, HullError> {
    let mut out: Vec<(&'static str, String)> = Vec::with_capacity(rules.len());
    for rule in rules {
        let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
        match read(rule)? {
            Rule::All => {
                // It makes all before it moot.
                out.clear();
                out.push((file, "a".into()));
            }
            Rule::Some(which, access) => {
                let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
                let mut line = format!(
                    "{} {}:{} ",
                    if which.block { 'b' } else { 'c' },
                    number(which.major),
                    number(which.minor)
                );
                for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
                    if access & bit != 0 {
                        line.push(letter);
                    }
                }
                if access != 0 {
                    out.push((file, line));
                }
            }
            Rule::Nothing => {}
        }
    }
    Ok(out)
}

/// A default, and the exceptions to it.
#[derive(Debug, Default)]
struct Policy {
    allow: bool,
    exceptions: BTreeMap<Which, u32>,
}

impl Policy {
    fn of(rules: &[LinuxDeviceCgroup]) -> Result<Self, HullError> {
        let mut policy = Self { allow: true, exceptions: BTreeMap::new() };
        for rule in rules {
            match read(rule)? {
                Rule::All => policy = Self { allow: rule.allow(), exceptions: BTreeMap::new() },
                Rule::Some(which, access) if rule.allow() != policy.allow => {
                    *policy.exceptions.entry(which).or_default() |= access;
                }
                Rule::Some(which, access) => {
                    if let Some(known) = policy.exceptions.get_mut(&which) {
                        *known &= !access;
                    }
                }
                Rule::Nothing => {}
            }
        }
        policy.exceptions.retain(|_, access| *access != 0);
        Ok(policy)
    }
}

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

// Operations of eBPF (kernel: bpf/standardization/instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const AND32: u8 = 0x54;
const SHIFT_RIGHT32: u8 = 0x74;
const COPY32: u8 = 0xbc;
const SET: u8 = 0xb7;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const JUMP_UNLESS_EQUAL_REG: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// The program for v2. Its context is `struct bpf_cgroup_dev_ctx`: access and type, major, minor.
pub(super) fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Insn>, HullError> {
    let policy = Policy::of(rules)?;
    let mut out = vec![
        // r2: type, r3: access, r4: major, r5: minor
        Insn::new(LOAD_WORD, 2, 1, 0, 0),
        Insn::new(AND32, 2, 0, 0, 0xffff),
        Insn::new(LOAD_WORD, 3, 1, 0, 0),
        Insn::new(SHIFT_RIGHT32, 3, 0, 0, 16),
        Insn::new(LOAD_WORD, 4, 1, 4, 0),
        Insn::new(LOAD_WORD, 5, 1, 8, 0),
    ];
    for (which, access) in &policy.exceptions {
        let mut block =
            vec![Insn::new(JUMP_UNLESS_EQUAL, 2, 0, 0, if which.block { BLOCK } else { CHARACTER })];
        if *access != ANY_ACCESS {
            block.push(Insn::new(COPY32, 1, 3, 0, 0));
            block.push(Insn::new(AND32, 1, 0, 0, *access as i32));
            block.push(if policy.allow {
                // Denied if any access is.
                Insn::new(JUMP_IF_EQUAL, 1, 0, 0, 0)
            } else {
                // Allowed if all access is.
                Insn::new(JUMP_UNLESS_EQUAL_REG, 1, 3, 0, 0)
            });
        }
        for (register, number) in [(4, which.major), (5, which.minor)] {
            if let Some(number) = number {
                block.push(Insn::new(JUMP_UNLESS_EQUAL, register, 0, 0, number as i32));
            }
        }
        block.push(Insn::new(SET, 0, 0, 0, i32::from(!policy.allow)));
        block.push(Insn::new(EXIT, 0, 0, 0, 0));
        let len = block.len();
        for (at, insn) in block.iter_mut().enumerate() {
            if [JUMP_IF_EQUAL, JUMP_UNLESS_EQUAL, JUMP_UNLESS_EQUAL_REG].contains(&insn.code) {
                insn.off = (len - at - 1) as i16;
            }
        }
        out.extend(block);
    }
    out.push(Insn::new(SET, 0, 0, 0, i32::from(policy.allow)));
    out.push(Insn::new(EXIT, 0, 0, 0, 0));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(
        allow: bool,
        typ: Option<char>,
        major: Option<i64>,
        minor: Option<i64>,
        access: &str,
    ) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow);
        rule.set_typ(typ.map(|t| match t {
            'b' => LinuxDeviceType::B,
            'c' => LinuxDeviceType::C,
            _ => LinuxDeviceType::A,
        }));
        rule.set_major(major);
        rule.set_minor(minor);
        rule.set_access(Some(access.into()));
        rule
    }

    /// Runs a program as the kernel would.
    fn run(program: &[Insn], kind: i32, access: u32, major: u32, minor: u32) -> bool {
        let mut r = [0u64; 11];
        let mut at = 0usize;
        loop {
            let i = program[at];
            let (dst, src) = ((i.regs & 15) as usize, (i.regs >> 4) as usize);
            at += 1;
            let taken = match i.code {
                LOAD_WORD => {
                    r[dst] = match i.off {
                        0 => u64::from(access << 16 | kind as u32),
                        4 => major.into(),
                        8 => minor.into(),
                        _ => panic!("reads beyond the context"),
                    };
                    false
                }
                AND32 => {
                    r[dst] = u64::from(r[dst] as u32 & i.imm as u32);
                    false
                }
                SHIFT_RIGHT32 => {
                    r[dst] = u64::from(r[dst] as u32 >> i.imm);
                    false
                }
                COPY32 => {
                    r[dst] = u64::from(r[src] as u32);
                    false
                }
                SET => {
                    r[dst] = i.imm as i64 as u64;
                    false
                }
                JUMP_IF_EQUAL => r[dst] == i.imm as i64 as u64,
                JUMP_UNLESS_EQUAL => r[dst] != i.imm as i64 as u64,
                JUMP_UNLESS_EQUAL_REG => r[dst] != r[src],
                EXIT => return r[0] != 0,
                code => panic!("unknown operation {code:#x}"),
            };
            if taken {
                at = at.checked_add_signed(i.off.into()).unwrap();
            }
        }
    }

    #[test]
    fn docker_like_rules() {
        let rules = [
            rule(false, None, None, None, "rwm"),
            rule(true, Some('c'), None, None, "m"),
            rule(true, Some('b'), None, None, "m"),
            rule(true, Some('c'), Some(1), Some(3), "rwm"),
            rule(true, Some('c'), Some(136), None, "rwm"),
        ];
        let program = program(&rules).unwrap();
        assert!(run(&program, CHARACTER, READ | WRITE, 1, 3));
        assert!(run(&program, CHARACTER, MKNOD, 9, 9));
        assert!(run(&program, BLOCK, MKNOD, 9, 9));
        assert!(!run(&program, BLOCK, READ, 8, 0));
        assert!(!run(&program, CHARACTER, READ, 1, 1));
        assert!(run(&program, CHARACTER, WRITE, 136, 77));
        let lines = v1_lines(&rules).unwrap();
        assert_eq!(lines[0], ("devices.deny", "a".into()));
        assert_eq!(lines[3], ("devices.allow", "c 1:3 rwm".into()));
        assert_eq!(lines[4], ("devices.allow", "c 136:* rwm".into()));
    }

    #[test]
    fn bad_rules_are_named() {
        let bad = rule(true, Some('c'), Some(1), Some(3), "rx");
        assert!(program(std::slice::from_ref(&bad)).unwrap_err().to_string().contains("unknown access 'x'"));
        assert!(v1_lines(&[bad]).is_err());
        assert!(v1_lines(&[rule(true, Some('c'), Some(-7), None, "r")]).is_err());
    }

    fn rules() -> impl Strategy<Value = Vec<LinuxDeviceCgroup>> {
        let one = (
            any::<bool>(),
            prop_oneof![1 => Just(None), 5 => Just(Some('c')), 5 => Just(Some('b'))],
            prop_oneof![Just(None), (0i64..3).prop_map(Some)],
            prop_oneof![Just(None), (0i64..3).prop_map(Some)],
            prop_oneof![Just("r"), Just("w"), Just("rw"), Just("rwm"), Just("m"), Just("")],
        )
            .prop_map(|(allow, typ, major, minor, access)| rule(allow, typ, major, minor, access));
        proptest::collection::vec(one, 0..12)
    }

    proptest! {
        #[test]
        fn the_program_does_what_the_policy_says(
            rules in rules(), block: bool, access in 1u32..8, major in 0u32..4, minor in 0u32..4,
        ) {
            let policy = Policy::of(&rules).unwrap();
            let hit = policy.exceptions.iter().any(|(w, a)| {
                w.block == block
                    && w.major.is_none_or(|m| m == major)
                    && w.minor.is_none_or(|m| m == minor)
                    && if policy.allow { access & a != 0 } else { access & !a == 0 }
            });
            let kind = if block { BLOCK } else { CHARACTER };
            prop_assert_eq!(run(&program(&rules).unwrap(), kind, access, major, minor), hit != policy.allow);
        }
    }
}
