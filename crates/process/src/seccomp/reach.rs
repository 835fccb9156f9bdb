//! Which system calls a filter lets through, found by running it: an interpreter of classic BPF for one question.
//!
//! Sources: seccomp(2), the kernel's networking/filter.rst ("The BPF classic and interpreter").

use super::Arch;
use super::arch::native_calls;
use sys::process::BpfInstruction;

/// `SECCOMP_RET_ACTION_FULL`.
const ACTION: u32 = 0xffff_0000;
/// `SECCOMP_RET_LOG` and `SECCOMP_RET_ALLOW`: the call is carried out.
const ALLOWED: [u32; 2] = [0x7ffc_0000, 0x7fff_0000];
/// More instructions than any filter has (`BPF_MAXINSNS`): jumps only lead forward.
const MAX_STEPS: usize = 4096;

/// The numbers of this architecture's system calls that every one of the filters lets through with all arguments 0.
pub fn reachable(filters: &[Vec<BpfInstruction>]) -> Vec<u32> {
    let allows = |filter: &[BpfInstruction], number| {
        answer(filter, &data(Arch::NATIVE, number, [0; 6]))
            .is_some_and(|(a, _)| ALLOWED.contains(&(a & ACTION)))
    };
    native_calls().filter(|number| filters.iter().all(|f| allows(f, *number))).collect()
}

/// `struct seccomp_data` in words.
pub(super) fn data(arch: Arch, number: u32, args: [u64; 6]) -> [u32; 16] {
    let mut words = [0; 16];
    let args = args.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]);
    let all = [number, arch.audit(), 0, 0].into_iter().chain(args);
    words.iter_mut().zip(all).for_each(|(to, from)| *to = from);
    words
}

/// What a filter answers, and after how many instructions; none if it is not one that the kernel would have taken.
pub(super) fn answer(program: &[BpfInstruction], data: &[u32; 16]) -> Option<(u32, usize)> {
    let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
    for steps in 1..=MAX_STEPS {
        let i = program.get(at)?;
        at += 1;
        let cell = i.k as usize;
        match i.code {
            0x20 if i.k.is_multiple_of(4) => a = *data.get(cell / 4)?,
            0x80 => a = 64,
            0x81 => x = 64,
            0x00 => a = i.k,
            0x01 => x = i.k,
            0x60 => a = *memory.get(cell)?,
            0x61 => x = *memory.get(cell)?,
            0x02 => *memory.get_mut(cell)? = a,
            0x03 => *memory.get_mut(cell)? = x,
            0x07 => x = a,
            0x87 => a = x,
            0x05 => at = at.checked_add(cell)?,
            0x06 => return Some((i.k, steps)),
            0x16 => return Some((a, steps)),
            // BPF_ALU and BPF_JMP, each with the constant or the index register.
            code if code & 7 == 4 => a = calculate(code & 0xf0, a, if code & 8 == 0 { i.k } else { x })?,
            code if code & 7 == 5 => {
                let other = if code & 8 == 0 { i.k } else { x };
                let yes = match code & 0xf0 {
                    0x10 => a == other,
                    0x20 => a > other,
                    0x30 => a >= other,
                    0x40 => a & other != 0,
                    _ => return None,
                };
                at += usize::from(if yes { i.jt } else { i.jf });
            }
            _ => return None,
        }
    }
    None
}

fn calculate(operation: u16, a: u32, b: u32) -> Option<u32> {
    Some(match operation {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b)?,
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a.checked_shl(b)?,
        0x70 => a.checked_shr(b)?,
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ b,
        _ => return None,
    })
}
