//! `compare`: the same workload in each hull, side by side.

use super::common::value;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::compare::measure::{Bench, Kind};
use crate::compare::{Comparison, Hull, Plan, html, probe, text};
use crate::format::pretty;
use crate::progress;
use crate::stream::signals::Signals;
use std::io::IsTerminal;
use std::time::Duration;
use types::units;

/// Flags of `compare`.
#[derive(clap::Args, Debug)]
pub struct Compare {
    /// Write a page with plots to this file
    #[arg(long, value_name = "file")]
    html: Option<String>,
    /// The workload serves HTTP at this port: measure the time to its first answer
    #[arg(long, value_name = "port")]
    http: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Seconds after which a workload that has not ended is removed
    #[arg(long, value_name = "seconds", default_value = "60")]
    limit: u64,
    /// Measured runs in each hull
    #[arg(long, value_name = "int", default_value = "3")]
    runs: u32,
}

impl Verb for Compare {
    fn run(self, cx: &Context, mut words: Vec<String>) -> Outcome {
        if !(1..=1000).contains(&self.runs) {
            return Err(format!("invalid --runs {}: use 1 to 1000", self.runs).into());
        }
        if self.http == Some(0) || self.limit == 0 {
            return Err("--http and --limit are at least 1".into());
        }
        let image = words.remove(0);
        let plan = Plan {
            image,
            command: words,
            runs: self.runs,
            port: self.http,
            limit: Duration::from_secs(self.limit),
        };
        let comparison = compare(cx, &plan)?;
        if let Some(file) = &self.html {
            std::fs::write(file, html::page(&comparison))
                .map_err(|e| Failure::from(format!("cannot write {file}: {e}")))?;
        }
        if self.json {
            cx.out.line(&pretty::pretty(&value(&comparison)?))?;
        } else {
            cx.out.raw(text::table(&comparison, cx.out.is_terminal()).as_bytes())?;
        }
        Ok(i32::from(comparison.hulls.iter().all(|h| h.error.is_some())))
    }
}

fn compare(cx: &Context, plan: &Plan) -> Result<Comparison, Failure> {
    let signals = Signals::catch(false, false)?;
    let report = engine::doctor::examine(cx.options());
    let engine = cx.engine()?;
    // A pull is no part of what is measured.
    if plan.image != image::HELLO {
        engine.ensure_image(&plan.image, &*progress::on_stderr(false))?;
    }
    let told = |text: &str| {
        if std::io::stderr().is_terminal() {
            cx.out.note(text);
        }
    };
    told("this host without a wall");
    let bare = probe::host(crate::HELLO)
        .map_err(|e| Failure::from(format!("cannot run the embedded program on this host: {e}")))?;
    let mut bench = Bench { engine, signals, host: bare, told: &told };
    let mut hulls = Vec::new();
    for kind in Kind::both() {
        let verdict = match kind {
            Kind::Container => &report.container,
            Kind::Vm(_) => &report.vm,
        };
        hulls.push(match verdict.ready {
            true => bench.hull(plan, kind)?,
            false => Hull {
                error: Some(format!("this host {}; see dhow doctor", verdict.text)),
                ..kind.unmeasured()
            },
        });
    }
    Ok(Comparison {
        image: plan.image.clone(),
        command: plan.command.clone(),
        runs: plan.runs,
        host: host(),
        hulls,
    })
}

/// Kernel, CPUs, memory.
fn host() -> String {
    let uname = rustix::system::uname();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = units::binary_size(sandbox::container::cgroup::host_memory() as f64);
    let plural = if cpus == 1 { "" } else { "s" };
    format!("Linux {}, {cpus} CPU{plural}, {memory}", uname.release().to_string_lossy())
}
