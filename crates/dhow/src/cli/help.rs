//! `--help`, drawn from the same descriptions that the flags are read by.

use super::context::Context;
use super::failure::Outcome;
use super::table::{COMMON, GROUPS, VERBS};
use super::verb::Verb;
use clap::Arg;

/// Help of one verb.
pub fn verb(cx: &Context, verb: &Verb) -> Outcome {
    let mut text = format!("Usage:  dhow {} {}\n\n{}\n", verb.name(), verb.usage, verb.about);
    if verb.names.len() > 1 {
        let names: Vec<String> = verb.names.iter().map(|n| format!("dhow {n}")).collect();
        text += &format!("\nAliases:\n  {}\n", names.join(", "));
    }
    let command = verb.command();
    let mut flags: Vec<&Arg> =
        command.get_arguments().filter(|a| !a.is_hide_set() && a.get_long().is_some()).collect();
    flags.sort_by_key(|a| a.get_long());
    if flags.len() > 1 || verb.usage.contains("OPTIONS") {
        text += "\nOptions:\n";
        text += &options(&flags);
    }
    cx.out.raw(text.as_bytes())?;
    Ok(0)
}

/// The list of all verbs.
pub fn overview() -> String {
    let mut text = String::from(
        "Usage:  dhow [OPTIONS] COMMAND\n\nRun any OCI image as a container, without a daemon\n\nCommon Commands:\n",
    );
    for v in COMMON.iter().filter_map(|name| VERBS.iter().find(|v| v.name() == *name)) {
        text += &line(v.name(), v.about);
    }
    text += "\nManagement Commands:\n";
    for (name, about) in GROUPS {
        text += &line(name, about);
    }
    text += "\nCommands:\n";
    let mut others: Vec<&Verb> =
        VERBS.iter().filter(|v| !v.name().contains(' ') && !COMMON.contains(&v.name())).collect();
    others.sort_by_key(|v| v.name());
    for v in others {
        text += &line(v.name(), v.about);
    }
    text += "\nGlobal Options:\n  -D, --debug         Say where the store lies and what took how long\n      --root string   Directory of images and containers, env DHOW_ROOT\n                      (default \"/var/lib/dhow\")\n      --run string    Directory of sockets, locks and mounts, env DHOW_RUN\n                      (default \"/run/dhow\")\n  -v, --version       Print version information and quit\n\nRun 'dhow COMMAND --help' for more information on a command.\n";
    text
}

/// The verbs of one group: `dhow container`.
pub fn group(name: &str) -> Option<String> {
    let about = GROUPS.iter().find(|(n, _)| *n == name)?.1;
    let mut text = format!("Usage:  dhow {name} COMMAND\n\n{about}\n\nCommands:\n");
    let mut lines: Vec<(&str, &str)> = VERBS
        .iter()
        .filter_map(|v| {
            v.names.iter().find_map(|n| n.strip_prefix(name)?.strip_prefix(' ')).map(|n| (n, v.about))
        })
        .collect();
    lines.sort_unstable();
    for (n, about) in lines {
        text += &line(n, about);
    }
    text += &format!("\nRun 'dhow {name} COMMAND --help' for more information on a command.\n");
    Some(text)
}

fn line(name: &str, about: &str) -> String {
    format!("  {name:<11} {about}\n")
}

fn options(flags: &[&Arg]) -> String {
    let heads: Vec<String> = flags.iter().map(|a| head(a)).collect();
    let indent = heads.iter().map(String::len).max().unwrap_or(0) + 3;
    let columns = crate::stream::terminal::columns().unwrap_or(80).max(indent + 30);
    let mut out = String::new();
    for (arg, head) in flags.iter().zip(heads) {
        let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
        if let Some(default) =
            arg.get_default_values().first().and_then(|d| d.to_str()).filter(|d| *d != "false")
        {
            let quoted = default == "true" || default.parse::<i64>().is_ok();
            text += &if quoted { format!(" (default {default})") } else { format!(" (default {default:?})") };
        }
        out += &format!("{head:<indent$}");
        let mut at = indent;
        for word in text.split_whitespace() {
            if at > indent && at + 1 + word.chars().count() > columns {
                out += &format!("\n{:indent$}", "");
                at = indent;
            } else if at > indent {
                out.push(' ');
                at += 1;
            }
            out += word;
            at += word.chars().count();
        }
        out.push('\n');
    }
    out
}

fn head(arg: &Arg) -> String {
    let short = arg.get_short().map_or("    ".to_owned(), |s| format!("-{s}, "));
    let long = arg.get_long().unwrap_or_default();
    let kind = arg
        .get_value_names()
        .and_then(|n| n.first())
        .map(|n| n.as_str())
        .filter(|n| *n != "bool" && arg.get_id() != "help");
    match kind {
        Some(kind) => format!("  {short}--{long} {kind}"),
        None => format!("  {short}--{long}"),
    }
}
