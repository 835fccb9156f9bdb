//! `completion`: scripts for shells, made from the same tables as everything else.

use super::common::NoFlags;
use crate::cli::context::Context;
use crate::cli::failure::Outcome;
use crate::cli::table::{GROUPS, VERBS};
use crate::cli::verb::Run as Verb;
use clap::Command;
use clap_complete::Shell;

/// `completion`.
#[derive(clap::Args, Debug)]
pub struct Completion {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Completion {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let shell = match words[0].as_str() {
            "bash" => Shell::Bash,
            "zsh" => Shell::Zsh,
            "fish" => Shell::Fish,
            other => return Err(format!("no completion for {other:?}: use bash, zsh or fish").into()),
        };
        let mut out = Vec::new();
        clap_complete::generate(shell, &mut tree(), "dhow", &mut out);
        cx.out.raw(&out)?;
        Ok(0)
    }
}

/// All verbs as one command.
pub fn tree() -> Command {
    let mut root = Command::new("dhow").disable_help_subcommand(true);
    for (group, about) in GROUPS {
        let mut sub = Command::new(*group).about(*about).disable_help_subcommand(true);
        for v in VERBS {
            let name = v.names.iter().find_map(|n| n.strip_prefix(group)?.strip_prefix(' '));
            if let Some(name) = name {
                sub = sub.subcommand(v.command().name(name));
            }
        }
        root = root.subcommand(sub);
    }
    for v in VERBS.iter().filter(|v| !v.name().contains(' ')) {
        root = root.subcommand(v.command());
    }
    root
}
