//! Docker's default policy for its default capabilities, compiled ahead: what nearly every container runs under, at
//! the cost of a comparison. A test holds the stored program against the compiler.

use super::{SeccompError, compile, default_profile};
use crate::Loadable;
use crate::caps::docker_default;
use sys::process::BpfInstruction;
use types::oci::Capabilities;

/// The program: for each instruction code, both jumps and constant, little-endian. None where no machine of that kind
/// has made one.
const STORED: Option<&[u8]> =
    if cfg!(target_arch = "x86_64") { Some(include_bytes!("default-x86_64.bpf")) } else { None };

/// The filter of Docker's default policy for a container with these capabilities.
pub fn built_in(capabilities: &Capabilities) -> Result<Loadable, SeccompError> {
    match STORED {
        // The flags are those of a policy that names none, see `compile`.
        Some(stored) if *capabilities == docker_default() => {
            Ok(Loadable { program: decode(stored), flags: super::compile::FLAG_SPEC_ALLOW })
        }
        _ => compile(&default_profile(capabilities)),
    }
}

fn decode(stored: &[u8]) -> Vec<BpfInstruction> {
    let insn = |bytes: &[u8; 8]| BpfInstruction {
        code: u16::from_le_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    stored.as_chunks::<8>().0.iter().map(insn).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `BLESS=1 cargo test -p dhow-process precompiled` writes the program anew after the policy or the compiler changed.
    #[test]
    fn the_stored_program_is_the_compiled_one() {
        let policy = default_profile(&docker_default());
        let compiled = compile(&policy).unwrap();
        if std::env::var_os("BLESS").is_some() {
            let encode = |i: &BpfInstruction| {
                let mut out = i.code.to_le_bytes().to_vec();
                out.extend([i.jt, i.jf]);
                out.extend(i.k.to_le_bytes());
                out
            };
            let bytes: Vec<u8> = compiled.program.iter().flat_map(encode).collect();
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp/");
            std::fs::write(format!("{dir}default-{}.bpf", std::env::consts::ARCH), bytes).unwrap();
            return;
        }
        let fast = built_in(&docker_default()).unwrap();
        assert_eq!((fast.program, fast.flags), (compiled.program, compiled.flags));
    }
}
