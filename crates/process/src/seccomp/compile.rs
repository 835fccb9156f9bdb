//! Compiles an OCI seccomp policy into classic BPF: per architecture a binary tree over the call's number, whose leaves
//! answer at once or look at the arguments.
//!
//! Where the OCI specification is silent it does what runc with libseccomp does: unknown names are passed over; of
//! conditions on one argument any suffices, of those on several all must hold; the first rule that matches answers;
//! calls newer than any that the policy names fail with `ENOSYS`, so that a C library falls back to older ones.

use super::SeccompError;
use super::arch::{Arch, X32_BIT};
use crate::Loadable;
use std::collections::BTreeMap;
use sys::process::BpfInstruction as Insn;
use types::oci::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as FilterFlag,
    LinuxSeccompOperator as Op,
};

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RETURN: u16 = 0x06;

// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

const FLAG_TSYNC: u32 = 1;
const FLAG_LOG: u32 = 2;
pub(super) const FLAG_SPEC_ALLOW: u32 = 4;

/// A rule of one call: conditions that must all hold, and the answer.
type Rule = (Vec<LinuxSeccompArg>, u32);

/// Compiles for the kernel that this program runs on.
pub fn compile(policy: &LinuxSeccomp) -> Result<Loadable, SeccompError> {
    let default = answer(policy.default_action(), policy.default_errno_ret())?;
    let mut arches = vec![Arch::NATIVE];
    for arch in policy.architectures().iter().flatten() {
        if let Some(arch) = Arch::from_oci(*arch).filter(|a| !arches.contains(a)) {
            arches.push(arch);
        }
    }
    let mut sections = Vec::new();
    for arch in arches {
        sections.push((arch, section(policy, arch, default)?));
    }
    let program = link(sections, default);
    // The kernel's BPF_MAXINSNS.
    if program.len() > 4096 {
        return Err(SeccompError::TooLarge(program.len()));
    }
    Ok(Loadable { program, flags: flags(policy)? })
}

fn flags(policy: &LinuxSeccomp) -> Result<u32, SeccompError> {
    // As runc: unless the policy names flags, no speculation control is forced on.
    let Some(flags) = policy.flags() else { return Ok(FLAG_SPEC_ALLOW) };
    flags.iter().try_fold(0, |bits, flag| match flag {
        FilterFlag::SeccompFilterFlagTsync => Ok(bits | FLAG_TSYNC),
        FilterFlag::SeccompFilterFlagLog => Ok(bits | FLAG_LOG),
        FilterFlag::SeccompFilterFlagSpecAllow => Ok(bits | FLAG_SPEC_ALLOW),
        FilterFlag::SeccompFilterFlagWaitKillableRecv => {
            Err(SeccompError::Unsupported("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV".into()))
        }
    })
}

/// The filter's return value of an action.
fn answer(action: Action, data: Option<u32>) -> Result<u32, SeccompError> {
    match action {
        Action::ScmpActNotify => Err(SeccompError::Unsupported("SCMP_ACT_NOTIFY".into())),
        Action::ScmpActErrno | Action::ScmpActTrace => {
            let data = data.unwrap_or(EPERM);
            if data > 4095 {
                return Err(SeccompError::Errno(data));
            }
            Ok(action.as_u32(Some(data)))
        }
        action => Ok(action.as_u32(None)),
    }
}

fn stmt(code: u16, k: u32) -> Insn {
    Insn { code, jt: 0, jf: 0, k }
}

/// The code for one architecture, entered with the call's number in the accumulator.
fn section(policy: &LinuxSeccomp, arch: Arch, default: u32) -> Result<Vec<Insn>, SeccompError> {
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for entry in policy.syscalls().iter().flatten() {
        let answer = answer(entry.action(), entry.errno_ret().or(policy.default_errno_ret()))?;
        let args = entry.args().as_deref().unwrap_or_default();
        if let Some(arg) = args.iter().find(|a| a.index() > 5) {
            return Err(SeccompError::Argument(arg.index()));
        }
        let repeats =
            args.iter().enumerate().any(|(at, a)| args.iter().skip(at + 1).any(|b| a.index() == b.index()));
        let alternatives: Vec<Vec<LinuxSeccompArg>> =
            if repeats { args.iter().map(|a| vec![*a]).collect() } else { vec![args.to_vec()] };
        for name in entry.names() {
            let Some(number) = arch.number(name) else { continue };
            let rules = rules.entry(number).or_default();
            // After a rule without conditions no other is reached.
            if rules.last().is_some_and(|(args, _)| args.is_empty()) {
                continue;
            }
            rules.extend(alternatives.iter().map(|args| (args.clone(), answer)));
        }
    }
    let bit = if arch == Arch::X32 { X32_BIT } else { 0 };
    // Where each stretch of numbers with one outcome begins.
    let mut stretches: Vec<(u32, Vec<Insn>)> = vec![(0, vec![stmt(RETURN, default)])];
    let mut begin = |number: u32, code: Vec<Insn>| match stretches.last_mut() {
        Some((_, last)) if *last == code => {}
        Some((at, last)) if *at == number => *last = code,
        _ => stretches.push((number, code)),
    };
    let mut next = 0;
    for (number, rules) in &rules {
        if next < *number {
            begin(next | bit, vec![stmt(RETURN, default)]);
        }
        begin(number | bit, leaf(rules, default));
        next = number + 1;
    }
    if next > 0 && !is_lenient(policy.default_action()) {
        begin(next | bit, vec![stmt(RETURN, ERRNO | ENOSYS)]);
    } else {
        begin(next | bit, vec![stmt(RETURN, default)]);
    }
    Ok(tree(&stretches))
}

/// Whether the action lets the call happen.
fn is_lenient(action: Action) -> bool {
    matches!(action, Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace)
}

/// A binary search for the stretch that the accumulator is in.
fn tree(stretches: &[(u32, Vec<Insn>)]) -> Vec<Insn> {
    let (low, high) = stretches.split_at(stretches.len() / 2);
    let (Some((pivot, code)), false) = (high.first(), low.is_empty()) else {
        return high.first().map(|(_, code)| code.clone()).unwrap_or_default();
    };
    debug_assert!(!code.is_empty());
    let (left, right) = (tree(low), tree(high));
    let mut out = Vec::with_capacity(left.len() + right.len() + 2);
    match u8::try_from(left.len()) {
        Ok(len) => out.push(Insn { code: JGE, jt: len, jf: 0, k: *pivot }),
        Err(_) => {
            out.push(Insn { code: JGE, jt: 0, jf: 1, k: *pivot });
            out.push(stmt(JUMP, left.len() as u32));
        }
    }
    out.extend(left);
    out.extend(right);
    out
}

/// Tests the rules of one call in their order.
fn leaf(rules: &[Rule], default: u32) -> Vec<Insn> {
    let mut out = Vec::new();
    for (args, answer) in rules {
        out.extend(rule(args, *answer));
        if args.is_empty() {
            return out;
        }
    }
    out.push(stmt(RETURN, default));
    out
}

/// Where a step of a condition goes.
#[derive(Clone, Copy, PartialEq)]
enum To {
    Next,
    /// The condition holds.
    Pass,
    /// The rule does not match.
    Fail,
}

enum Step {
    Do(u16, u32),
    Jump(u16, u32, To, To),
}

/// One rule: answers if all conditions hold, else falls through to what follows.
fn rule(args: &[LinuxSeccompArg], answer: u32) -> Vec<Insn> {
    let conditions: Vec<Vec<Step>> = args.iter().map(condition).collect();
    let mut left: usize = conditions.iter().map(Vec::len).sum();
    let mut out = Vec::with_capacity(left + 1);
    for steps in conditions {
        let len = steps.len();
        for (at, step) in steps.into_iter().enumerate() {
            left -= 1;
            // From the next instruction: to the end of this condition, and past the answer. Six conditions of
            // six steps stay far below 255.
            let offset = |to: To| match to {
                To::Next => 0,
                To::Pass => (len - at - 1) as u8,
                To::Fail => (left + 1) as u8,
            };
            out.push(match step {
                Step::Do(code, k) => stmt(code, k),
                Step::Jump(code, k, yes, no) => Insn { code, jt: offset(yes), jf: offset(no), k },
            });
        }
    }
    out.push(stmt(RETURN, answer));
    out
}

/// A comparison of a 64-bit argument, in halves (both of our architectures are little-endian).
fn condition(arg: &LinuxSeccompArg) -> Vec<Step> {
    use Step::{Do, Jump};
    use To::{Fail, Next, Pass};
    let at = ARGS + 8 * arg.index() as u32;
    let (load_low, load_high) = (Do(LOAD, at), Do(LOAD, at + 4));
    let (low, high) = (arg.value() as u32, (arg.value() >> 32) as u32);
    match arg.op() {
        Op::ScmpCmpEq => {
            vec![load_high, Jump(JEQ, high, Next, Fail), load_low, Jump(JEQ, low, Pass, Fail)]
        }
        Op::ScmpCmpNe => {
            vec![load_high, Jump(JEQ, high, Next, Pass), load_low, Jump(JEQ, low, Fail, Pass)]
        }
        Op::ScmpCmpMaskedEq => {
            let value = arg.value_two().unwrap_or(0);
            vec![
                load_high,
                Do(AND, high),
                Jump(JEQ, (value >> 32) as u32, Next, Fail),
                load_low,
                Do(AND, low),
                Jump(JEQ, value as u32, Pass, Fail),
            ]
        }
        op => {
            let (last, pass, fail) = match op {
                Op::ScmpCmpGt => (JGT, Pass, Fail),
                Op::ScmpCmpGe => (JGE, Pass, Fail),
                Op::ScmpCmpLe => (JGT, Fail, Pass),
                _ => (JGE, Fail, Pass),
            };
            vec![
                load_high,
                Jump(JGT, high, pass, Next),
                Jump(JEQ, high, Next, fail),
                load_low,
                Jump(last, low, pass, fail),
            ]
        }
    }
}

/// Puts the sections behind the choice of the architecture. A call of an architecture that the policy does not name
/// ends the process, an x32 call is treated as unknown.
fn link(sections: Vec<(Arch, Vec<Insn>)>, default: u32) -> Vec<Insn> {
    let x32 = sections
        .iter()
        .find(|(arch, _)| *arch == Arch::X32)
        .map_or_else(|| vec![stmt(RETURN, default)], |(_, code)| code.clone());
    let mut out = vec![stmt(LOAD, ARCH)];
    for (arch, code) in sections {
        let body = match arch {
            Arch::X32 => continue,
            Arch::X86_64 => {
                let mut body = vec![stmt(LOAD, NUMBER)];
                body.push(Insn { code: JGE, jt: 0, jf: 1, k: X32_BIT });
                body.push(stmt(JUMP, code.len() as u32));
                body.extend(code);
                body.extend(x32.iter().copied());
                body
            }
            _ => [vec![stmt(LOAD, NUMBER)], code].concat(),
        };
        out.push(Insn { code: JEQ, jt: 1, jf: 0, k: arch.audit() });
        out.push(stmt(JUMP, body.len() as u32));
        out.extend(body);
    }
    out.push(stmt(RETURN, KILL_PROCESS));
    out
}
