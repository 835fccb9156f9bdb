//! Verbs that look into one container: `top`, `diff`, `port`, `export`, and `commit`.

use super::common::NoFlags;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::format::table;
use engine::CommitOptions;
use std::io::IsTerminal;
use types::docker;

/// `top`.
#[derive(clap::Args, Debug)]
pub struct Top {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Top {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let top = cx.engine()?.top(&words[0], &words[1..])?;
        let mut lines = vec![top.titles.unwrap_or_default().join("\t")];
        lines.extend(top.processes.unwrap_or_default().into_iter().map(|p| p.join("\t")));
        cx.out.raw(table::align(&lines).as_bytes())?;
        Ok(0)
    }
}

/// `diff`.
#[derive(clap::Args, Debug)]
pub struct Diff {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Diff {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let mut text = String::new();
        for change in cx.engine()?.changes(&words[0])? {
            text += match change.kind {
                docker::ChangeType::_0 => "C ",
                docker::ChangeType::_1 => "A ",
                docker::ChangeType::_2 => "D ",
            };
            text += &super::common::printable(&change.path);
            text.push('\n');
        }
        cx.out.raw(text.as_bytes())?;
        Ok(0)
    }
}

/// `port`.
#[derive(clap::Args, Debug)]
pub struct Port {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Port {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let map = cx.engine()?.ports(&words[0])?;
        let wanted = words.get(1).map(|w| match w.split_once('/') {
            Some((port, proto)) => format!("{port}/{}", proto.to_ascii_lowercase()),
            None => format!("{w}/tcp"),
        });
        if let Some(w) = &wanted
            && w.split('/').next().and_then(|p| p.parse::<u16>().ok()).is_none()
        {
            return Err(format!("invalid port '{}'", words[1]).into());
        }
        let mut ports: Vec<(String, Vec<docker::PortBinding>)> = map
            .into_iter()
            .filter(|(p, _)| wanted.as_ref().is_none_or(|w| w == p))
            .filter_map(|(p, b)| Some((p, b.filter(|b| !b.is_empty())?)))
            .collect();
        if wanted.is_some() && ports.is_empty() {
            return Err(format!("no public port '{}' published for {}", words[1], words[0]).into());
        }
        ports.sort_by_key(|(p, _)| {
            let (number, proto) = p.split_once('/').unwrap_or((p, ""));
            (number.parse::<u16>().unwrap_or(0), proto.to_owned())
        });
        for (port, bindings) in ports {
            for b in bindings {
                let ip = b.host_ip.filter(|i| !i.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
                let ip = if ip.contains(':') { format!("[{ip}]") } else { ip };
                let at = format!("{ip}:{}", b.host_port.unwrap_or_default());
                cx.out.line(&if wanted.is_some() { at } else { format!("{port} -> {at}") })?;
            }
        }
        Ok(0)
    }
}

/// Flags of `export`.
#[derive(clap::Args, Debug)]
pub struct Export {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "string")]
    output: Option<String>,
}

impl Verb for Export {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        super::archive::to_output(self.output.as_deref(), |out| Ok(engine.export(&words[0], out)?))
    }
}

/// Flags of `commit`.
#[derive(clap::Args, Debug)]
pub struct Commit {
    /// Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")
    #[arg(short, long, value_name = "string")]
    author: Option<String>,
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long, value_name = "list")]
    change: Vec<String>,
    /// Commit message
    #[arg(short, long, value_name = "string")]
    message: Option<String>,
    /// Pause container during commit
    #[arg(short, long, default_value = "true")]
    pause: bool,
}

impl Verb for Commit {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let options = CommitOptions {
            reference: words.get(1).cloned(),
            changes: self.change,
            author: self.author,
            message: self.message,
            pause: self.pause,
            ..Default::default()
        };
        let id = cx.engine()?.commit(&words[0], &options)?;
        cx.out.line(&id.to_string())?;
        Ok(0)
    }
}

/// Refuses to write an archive to a terminal.
pub fn refuse_terminal(what: &str) -> Result<(), Failure> {
    if std::io::stdout().is_terminal() {
        return Err(format!("cowardly refusing to {what} to a terminal: use the -o flag or redirect").into());
    }
    Ok(())
}
