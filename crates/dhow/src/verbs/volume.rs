//! `volume ls`, `volume inspect`, `volume rm`, `volume prune`: what containers left behind.

use super::common::{filters, inspect_all};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::format::table::{Columns, Layout, Row};
use engine::VolumeInfo;
use serde_json::{Value, json};
use types::units;

const COLUMNS: Columns = Columns {
    headings: &[
        ("Driver", "DRIVER"),
        ("Name", "VOLUME NAME"),
        ("Mountpoint", "MOUNTPOINT"),
        ("Scope", "SCOPE"),
        ("Links", "LINKS"),
        ("Size", "SIZE"),
        ("Labels", "LABELS"),
    ],
};

/// Flags of `volume ls`.
#[derive(clap::Args, Debug)]
pub struct List {
    /// Provide filter values (e.g. "dangling=true")
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// Format output using a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Only display volume names
    #[arg(short, long)]
    quiet: bool,
}

impl Verb for List {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let format =
            if self.quiet && self.format.is_none() { Some("{{.Name}}") } else { self.format.as_deref() };
        let layout = Layout::new(format, "{{.Driver}}\t{{.Name}}", &COLUMNS)?;
        let filters = filters(&self.filter)?;
        for key in filters.keys() {
            if !matches!(key.as_str(), "dangling" | "name" | "driver") {
                return Err(format!("invalid filter '{key}': use dangling, name or driver").into());
            }
        }
        let any = |key: &str, test: &dyn Fn(&str) -> bool| {
            filters.get(key).is_none_or(|values| values.iter().any(|v| test(v)))
        };
        let rows: Vec<Row> = cx
            .engine()?
            .volumes()?
            .iter()
            .filter(|v| any("name", &|n| v.name.contains(n)))
            .filter(|_| any("driver", &|d| d == "local"))
            .filter(|v| any("dangling", &|d| matches!(d, "true" | "1") == v.users.is_empty()))
            .map(|v| {
                Row::new([
                    ("Driver", "local".into()),
                    ("Name", v.name.clone()),
                    ("Mountpoint", mountpoint(cx, v)),
                    ("Scope", "local".into()),
                    ("Links", v.users.len().to_string()),
                    ("Size", "N/A".into()),
                    ("Labels", String::new()),
                ])
            })
            .collect();
        cx.out.raw(layout.render(&rows)?.as_bytes())?;
        Ok(0)
    }
}

fn mountpoint(cx: &Context, v: &VolumeInfo) -> String {
    cx.engine().map(|e| e.paths().volume(&v.name).display().to_string()).unwrap_or_default()
}

/// Flags of `volume inspect`.
#[derive(clap::Args, Debug)]
pub struct Inspect {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
}

impl Verb for Inspect {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        inspect_all(cx, &words, self.format.as_deref(), |name| look(cx, name))
    }
}

/// One volume as JSON.
pub fn look(cx: &Context, name: &str) -> Result<Value, Failure> {
    let found = cx.engine()?.volumes()?.into_iter().find(|v| v.name == name);
    let v = found.ok_or_else(|| Failure::from(format!("get {name}: no such volume")))?;
    let labels = if v.anonymous { json!({"com.docker.volume.anonymous": ""}) } else { json!({}) };
    Ok(json!({
        "CreatedAt": units::rfc3339(v.created_ns), "Driver": "local", "Labels": labels, "Mountpoint": mountpoint(cx, &v),
        "Name": v.name, "Options": null, "Scope": "local",
    }))
}

/// Flags of `volume rm`.
#[derive(clap::Args, Debug)]
pub struct Remove {
    /// Do not complain about volumes that are not there
    #[arg(short, long)]
    force: bool,
}

impl Verb for Remove {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            match engine.remove_volume(name) {
                Err(engine::EngineError::NoSuchVolume(_)) if self.force => {}
                other => other?,
            }
            Ok(cx.out.line(name)?)
        })
    }
}

/// Flags of `volume prune`.
#[derive(clap::Args, Debug)]
pub struct Prune {
    /// Remove all unused volumes, not just anonymous ones
    #[arg(short, long)]
    all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

impl Verb for Prune {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let kind = if self.all { "all" } else { "anonymous" };
        let question =
            format!("WARNING! This will remove {kind} local volumes not used by at least one container.");
        if !self.force && !cx.out.confirm(&question)? {
            return Ok(1);
        }
        let pruned = cx.engine()?.prune_volumes(self.all)?;
        super::common::print_pruned(cx, "Deleted Volumes:", &pruned.volumes)?;
        super::common::print_reclaimed(cx, pruned.reclaimed)?;
        Ok(0)
    }
}
