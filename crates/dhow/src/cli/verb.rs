//! What a verb is, and how its part of the command line is read.
//!
//! `clap` reads the flags; the words that are no flags are taken as one list and counted here, since their rules are
//! simple and Docker's sentences about them are well known. Only the verb that was asked for is ever built.

use super::context::Context;
use super::failure::{Failure, Outcome};
use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// One command of the command line.
pub struct Verb {
    /// `run`, then other names: `container run`.
    pub names: &'static [&'static str],
    /// One line for the list of verbs.
    pub about: &'static str,
    /// What follows the name.
    pub usage: &'static str,
    /// How few and how many words that are no flags it takes.
    pub words: (usize, Option<usize>),
    /// Whether flags may follow the first word; they may not where a command line is given.
    pub interspersed: bool,
    /// Exit code when it fails before its work begins.
    pub failure: i32,
    augment: fn(Command) -> Command,
    execute: fn(&Context, &mut ArgMatches, Vec<String>) -> Outcome,
}

/// Flags that clap derives.
pub trait Flags: clap::Args {
    /// Takes them out of what clap matched.
    fn from_matches(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
        Self::from_arg_matches_mut(matches)
    }
}

impl<T: clap::Args> Flags for T {}

/// A verb's flags, and what it does.
pub trait Run: Flags {
    /// Does it; the answer is the exit code.
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome;
}

impl Verb {
    /// Describes a verb.
    pub const fn new<R: Run>(
        names: &'static [&'static str],
        usage: &'static str,
        words: (usize, Option<usize>),
        about: &'static str,
    ) -> Self {
        fn augment<R: Run>(command: Command) -> Command {
            R::augment_args(command)
        }
        fn execute<R: Run>(cx: &Context, matches: &mut ArgMatches, words: Vec<String>) -> Outcome {
            R::from_matches(matches).map_err(|e| Failure::from(e.to_string()))?.run(cx, words)
        }
        Self {
            names,
            about,
            usage,
            words,
            interspersed: true,
            failure: 1,
            augment: augment::<R>,
            execute: execute::<R>,
        }
    }

    /// Everything after the first word belongs to the workload.
    pub const fn takes_command(mut self) -> Self {
        self.interspersed = false;
        self
    }

    /// Fails with 125, so that the workload's own codes stay apart.
    pub const fn fails_apart(mut self) -> Self {
        self.failure = 125;
        self
    }

    /// The verb's first name.
    pub fn name(&self) -> &'static str {
        self.names[0]
    }

    /// Its part of the command line.
    pub fn command(&self) -> Command {
        finish((self.augment)(Command::new(self.name()).about(self.about)), !self.interspersed)
    }

    /// Reads `args` and does it.
    pub fn run(&self, cx: &Context, args: &[String]) -> Outcome {
        let command = self.command();
        let short_help = !command.get_arguments().any(|a| a.get_short() == Some('h'));
        let mut matches = match command
            .try_get_matches_from(std::iter::once(self.name()).chain(args.iter().map(String::as_str)))
        {
            Ok(m) => m,
            Err(e) if short_help && asks_help(&e) => return super::help::verb(cx, self),
            Err(e) => return Err(Failure::usage(sentence(&e, &self.command()), self)),
        };
        if matches.get_flag("help") {
            return super::help::verb(cx, self);
        }
        let words = positional(&mut matches);
        let (min, max) = self.words;
        if words.len() < min || max.is_some_and(|m| words.len() > m) {
            return Err(Failure::arguments(self));
        }
        (self.execute)(cx, &mut matches, words)
    }
}

/// Gives a derived command pflag's ways: `--flag=false`, the last of several wins, any word may be a value.
pub fn finish(command: Command, trailing: bool) -> Command {
    command
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args_override_self(true)
        .mut_args(|a| match a.get_action() {
            ArgAction::SetTrue => {
                let default = if a.get_default_values().is_empty() { "false" } else { "true" };
                a.action(ArgAction::Set)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .default_value(default)
                    .value_name("bool")
                    .value_parser(ValueParser::from(crate::args::values::boolean as fn(&str) -> _))
            }
            _ => a.allow_hyphen_values(true),
        })
        .arg(Arg::new("help").long("help").help("Print usage").action(ArgAction::SetTrue))
        .arg(Arg::new("words").num_args(0..).action(ArgAction::Append).trailing_var_arg(trailing).hide(true))
}

/// The words that are no flags.
pub fn positional(matches: &mut ArgMatches) -> Vec<String> {
    matches.remove_many("words").map(Iterator::collect).unwrap_or_default()
}

fn asks_help(e: &clap::Error) -> bool {
    e.kind() == ErrorKind::UnknownArgument && text(e, ContextKind::InvalidArg).as_deref() == Some("-h")
}

/// One sentence for what clap found wrong, in Docker's words.
fn sentence(e: &clap::Error, command: &Command) -> String {
    let arg = text(e, ContextKind::InvalidArg).unwrap_or_default();
    let flag = arg.split([' ', '=', '[']).next().unwrap_or(&arg).to_owned();
    let value = text(e, ContextKind::InvalidValue).unwrap_or_default();
    match e.kind() {
        ErrorKind::UnknownArgument => match (flag.strip_prefix("--"), flag.strip_prefix('-')) {
            (Some(_), _) => {
                let tip = text(e, ContextKind::SuggestedArg)
                    .map(|s| format!(" (did you mean {s}?)"))
                    .unwrap_or_default();
                format!("unknown flag: {flag}{tip}")
            }
            (None, Some(short)) => format!("unknown shorthand flag: '{short}' in {flag}"),
            _ => format!("unexpected argument: {flag}"),
        },
        ErrorKind::InvalidValue if value.is_empty() => format!("flag needs an argument: {flag}"),
        _ => {
            use std::error::Error;
            let why = e.source().map_or_else(|| "not understood".to_owned(), ToString::to_string);
            format!("invalid argument {value:?} for \"{}\" flag: {why}", both(command, &flag))
        }
    }
}

/// `-m, --memory` for `--memory`.
fn both(command: &Command, flag: &str) -> String {
    let found =
        command.get_arguments().find(|a| a.get_long().is_some_and(|l| flag.strip_prefix("--") == Some(l)));
    match found.and_then(Arg::get_short) {
        Some(short) => format!("-{short}, {flag}"),
        None => flag.to_owned(),
    }
}

fn text(e: &clap::Error, kind: ContextKind) -> Option<String> {
    match e.get(kind)? {
        ContextValue::String(s) => Some(s.clone()),
        ContextValue::Strings(s) => s.first().cloned(),
        _ => None,
    }
}
