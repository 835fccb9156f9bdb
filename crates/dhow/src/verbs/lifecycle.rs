//! Verbs that change the state of containers: `stop`, `restart`, `kill`, `pause`, `unpause`, `wait`, `rename`, `rm`,
//! `container prune`.

use super::common::{NoFlags, filters, print_pruned, print_reclaimed};
use crate::args::values;
use crate::cli::context::Context;
use crate::cli::failure::Outcome;
use crate::cli::verb::Run as Verb;
use engine::RemoveOptions;
use sandbox::client::WaitCondition;

/// Flags of `stop` and `restart`.
#[derive(clap::Args, Debug)]
pub struct StopFlags {
    /// Signal to send to the container
    #[arg(short, long, value_name = "string")]
    signal: Option<String>,
    /// Seconds to wait before killing the container
    #[arg(short, long, alias = "time", value_name = "int", value_parser = values::int)]
    timeout: Option<i64>,
}

/// `stop`.
#[derive(clap::Args, Debug)]
pub struct Stop {
    #[command(flatten)]
    flags: StopFlags,
}

impl Verb for Stop {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            engine.stop(name, self.flags.signal.as_deref(), self.flags.timeout)?;
            Ok(cx.out.line(name)?)
        })
    }
}

/// `restart`.
#[derive(clap::Args, Debug)]
pub struct Restart {
    #[command(flatten)]
    flags: StopFlags,
}

impl Verb for Restart {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            engine.restart(name, self.flags.signal.as_deref(), self.flags.timeout)?;
            Ok(cx.out.line(name)?)
        })
    }
}

/// `kill`.
#[derive(clap::Args, Debug)]
pub struct Kill {
    /// Signal to send to the container
    #[arg(short, long, value_name = "string")]
    signal: Option<String>,
}

impl Verb for Kill {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            engine.kill(name, self.signal.as_deref())?;
            Ok(cx.out.line(name)?)
        })
    }
}

/// `pause`.
#[derive(clap::Args, Debug)]
pub struct Pause {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Pause {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            engine.pause(name)?;
            Ok(cx.out.line(name)?)
        })
    }
}

/// `unpause`.
#[derive(clap::Args, Debug)]
pub struct Unpause {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Unpause {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            engine.unpause(name)?;
            Ok(cx.out.line(name)?)
        })
    }
}

/// `wait`.
#[derive(clap::Args, Debug)]
pub struct Wait {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Wait {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            let code = engine.wait(name, WaitCondition::NotRunning)?;
            Ok(cx.out.line(&code.to_string())?)
        })
    }
}

/// `rename`.
#[derive(clap::Args, Debug)]
pub struct Rename {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Rename {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let (old, new) = (words[0].trim(), words[1].trim());
        if old.is_empty() || new.is_empty() {
            return Err("neither the old nor the new name may be empty".into());
        }
        cx.engine()?.rename(old, new)?;
        Ok(0)
    }
}

/// `rm`.
#[derive(clap::Args, Debug)]
pub struct Remove {
    /// Force the removal of a running container (uses SIGKILL)
    #[arg(short, long)]
    force: bool,
    /// Remove the specified link (not supported)
    #[arg(short, long, hide = true)]
    link: bool,
    /// Remove anonymous volumes associated with the container
    #[arg(short, long)]
    volumes: bool,
}

impl Verb for Remove {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        if self.link {
            return Err("--link is not supported: it is a legacy feature".into());
        }
        let engine = cx.engine()?;
        let options = RemoveOptions { force: self.force, volumes: self.volumes };
        cx.for_each(&words, |name| {
            match engine.remove(name, options) {
                // What is gone already is what was asked for.
                Err(engine::EngineError::NoSuchContainer(_)) if self.force => {
                    cx.out.error(&format!("no such container: {name}"));
                    return Ok(());
                }
                other => other?,
            }
            Ok(cx.out.line(name)?)
        })
    }
}

/// `container prune`.
#[derive(clap::Args, Debug)]
pub struct Prune {
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

impl Verb for Prune {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let filters = filters(&self.filter)?;
        if !self.force && !cx.out.confirm("WARNING! This will remove all stopped containers.")? {
            return Ok(1);
        }
        let pruned = cx.engine()?.prune_containers(&filters)?;
        print_pruned(cx, "Deleted Containers:", &pruned.containers)?;
        print_reclaimed(cx, pruned.reclaimed)?;
        Ok(0)
    }
}
