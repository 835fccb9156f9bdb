//! From the words of a command line to one verb, and from its outcome to an exit code.

pub mod context;
pub mod failure;
pub mod globals;
pub mod help;
pub mod table;
pub mod verb;

use context::Context;
use failure::{Failure, Outcome};
use std::ffi::OsString;

/// Exit code of a program that SIGPIPE ended.
const BROKEN_PIPE: i32 = 128 + 13;

/// Runs one command line (without the program's name).
pub fn run(args: Vec<OsString>) -> i32 {
    let (globals, words) = match globals::parse(args) {
        Ok(parsed) => parsed,
        Err(text) => {
            eprintln!("dhow: {text}");
            return 125;
        }
    };
    let (version, help) = (globals.version, globals.help);
    let cx = Context::new(globals);
    if version {
        let line = format!("Dhow version {}, build {}", crate::BUILD.version, crate::BUILD.commit);
        return exit_code(&cx, cx.out.line(&line).map(|()| 0).map_err(Failure::from), 1);
    }
    if help || words.is_empty() {
        return exit_code(&cx, cx.out.raw(help::overview().as_bytes()).map(|()| 0).map_err(Failure::from), 1);
    }
    match table::find(&words) {
        table::Found::Verb(verb, used) => {
            let began = std::time::Instant::now();
            let outcome = verb.run(&cx, words.get(used..).unwrap_or_default());
            if cx.debug {
                let detail = cx.describe();
                cx.out.note(&format!("dhow: {} took {:?} ({detail})", verb.name(), began.elapsed()));
            }
            exit_code(&cx, outcome, verb.failure)
        }
        table::Found::Group(text) => {
            exit_code(&cx, cx.out.raw(text.as_bytes()).map(|()| 0).map_err(Failure::from), 1)
        }
        table::Found::Help(rest) => help_for(&cx, &rest),
        table::Found::Unknown(name, tip) => {
            let tip = tip.map(|t| format!(" (did you mean '{t}'?)")).unwrap_or_default();
            cx.out.error(&format!(
                "unknown command: dhow {name}{tip}\n\nRun 'dhow --help' for more information"
            ));
            1
        }
    }
}

/// `dhow help VERB`.
fn help_for(cx: &Context, words: &[String]) -> i32 {
    let mut words = words.to_vec();
    if words.is_empty() {
        return exit_code(cx, cx.out.raw(help::overview().as_bytes()).map(|()| 0).map_err(Failure::from), 1);
    }
    words.push("--help".into());
    match table::find(&words) {
        table::Found::Verb(verb, _) => exit_code(cx, help::verb(cx, verb), 1),
        table::Found::Group(text) => {
            exit_code(cx, cx.out.raw(text.as_bytes()).map(|()| 0).map_err(Failure::from), 1)
        }
        _ => {
            cx.out.error(&format!("no help for {:?}: run 'dhow --help' for the list of commands", words[0]));
            1
        }
    }
}

/// Says what went wrong; the answer is the exit code.
fn exit_code(cx: &Context, outcome: Outcome, default: i32) -> i32 {
    match outcome {
        Ok(code) | Err(Failure::Said(code)) => code,
        Err(Failure::BrokenPipe) => BROKEN_PIPE,
        Err(Failure::Message { text, code }) => {
            cx.out.error(&text);
            code.unwrap_or(default)
        }
        Err(Failure::Usage { text, verb, usage, code }) => {
            cx.out.error(&format!(
                "{text}\n\nUsage:  dhow {verb} {usage}\n\nRun 'dhow {verb} --help' for more information"
            ));
            code
        }
    }
}
