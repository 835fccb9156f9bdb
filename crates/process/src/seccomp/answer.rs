//! What a compiled filter answers to a call, told without loading it.

use super::Arch;
use crate::Loadable;

/// `SECCOMP_RET_ALLOW` and `SECCOMP_RET_LOG`, seccomp(2).
const GRANTED: [u32; 2] = [0x7fff_0000, 0x7ffc_0000];

impl Loadable {
    /// Whether the filter lets this program make a call with these arguments.
    pub(crate) fn allows(&self, call: &str, args: [u64; 6]) -> bool {
        Arch::NATIVE.number(call).and_then(|n| self.answer(n, args)).is_some_and(|a| GRANTED.contains(&a))
    }

    /// `None`: it is no filter that we compile.
    fn answer(&self, number: u32, args: [u64; 6]) -> Option<u32> {
        let (mut a, mut at) = (0u32, 0usize);
        // It ends: jumps go forward only.
        loop {
            let i = self.program.get(at)?;
            at += 1;
            let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
            match i.code {
                // struct seccomp_data: number, architecture, instruction pointer, arguments.
                0x20 => {
                    a = match i.k {
                        0 => number,
                        4 => Arch::NATIVE.audit(),
                        k => {
                            let byte = usize::try_from(k.checked_sub(16)?).ok()?;
                            (args.get(byte / 8)? >> (8 * (byte % 8))) as u32
                        }
                    }
                }
                0x54 => a &= i.k,
                0x05 => at += usize::try_from(i.k).ok()?,
                0x15 => at += jump(a == i.k),
                0x25 => at += jump(a > i.k),
                0x35 => at += jump(a >= i.k),
                0x06 => return Some(i.k),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{built_in, compile};
    use crate::caps::docker_default;

    #[test]
    fn it_answers_as_the_policy_says() {
        let default = built_in(&docker_default()).unwrap();
        assert!(default.allows("clone", [0x8000, 0, 0, 0, 0, 0]));
        assert!(!default.allows("clone", [0x1000_0000, 0, 0, 0, 0, 0]));
        assert!(!default.allows("clone3", [0; 6]) && !default.allows("no such call", [0; 6]));
        let own = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_ERRNO"}]});
        let own = compile(&serde_json::from_value(own).unwrap()).unwrap();
        assert!(!own.allows("clone", [0; 6]) && own.allows("setsid", [0; 6]));
    }
}
