//! The `dhow` command.
//!
//! A process is a command of a user or, internally, the supervisor of one container (`dhow supervise`) or a hand in
//! its user namespace (`dhow inside`), or the keeper of a microVM that shows its files (`dhow appliance`), or our virtual
//! machine monitor (`dhow vmm`), or a server of directories (`dhow shares`). These are looked for first: they are on the way of every start, and must have but one thread.
#![forbid(unsafe_code)]
// Doc comments of flags are their help texts, for terminals: `<key>` and `[:PORT]` are meant as they stand.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

mod args;
mod cli;
mod compare;
mod format;
mod printer;
mod progress;
mod stream;
mod verbs;

use sandbox::vm;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

fn main() {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let code = match args.split_first() {
        Some((first, rest)) if first == "supervise" => engine::supervise(rest, HELLO),
        Some((first, rest)) if first == "inside" => engine::inside(rest),
        Some((first, rest)) if first == "appliance" => engine::machine::appliance(rest),
        Some((first, _)) if first.as_bytes() == vm::MACHINE_VERB.to_bytes() => vm::carry(),
        Some((first, _)) if first.as_bytes() == vm::SHARES_VERB.to_bytes() => vm::serve_shares(),
        _ => cli::run(args),
    };
    std::process::exit(code);
}

/// The program of the embedded image `hello`.
const HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

/// The agent of microVMs.
const GUEST: engine::Agent =
    engine::Agent { program: include_bytes!(env!("DHOW_GUEST")), tag: env!("DHOW_GUEST_TAG") };

/// What this program is.
const BUILD: engine::BuildInfo = engine::BuildInfo {
    version: env!("CARGO_PKG_VERSION"),
    commit: match option_env!("DHOW_GIT_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    },
    compiler: env!("CARGO_PKG_RUST_VERSION"),
};

#[cfg(test)]
mod tests {
    /// Each microVM has it in its memory, and unpacks it at its start.
    #[test]
    fn the_agent_of_microvms_is_small() {
        let size = super::GUEST.program.len();
        assert!((1..2_000_000).contains(&size), "the agent has {size} bytes");
    }
}
