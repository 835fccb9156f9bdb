//! `stats`: a table that is drawn anew every second.

use super::common::short_id;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::format::table::{Columns, Layout, Row};
use engine::{EngineError, ListOptions};
use std::collections::HashMap;
use std::time::Duration;
use types::{docker, units};

/// Flags of `stats`.
#[derive(clap::Args, Debug)]
pub struct Stats {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Format output using a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Disable streaming stats and only pull the first result
    #[arg(long)]
    no_stream: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
}

const COLUMNS: Columns = Columns {
    headings: &[
        ("Container", "CONTAINER"),
        ("ID", "CONTAINER ID"),
        ("Name", "NAME"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("MemPerc", "MEM %"),
        ("GuestMemUsage", "GUEST MEM USAGE / LIMIT"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
    ],
};

const DEFAULT: &str =
    "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";

/// Between two readings; the first pair is closer, so that nobody waits for it.
const PERIOD: Duration = Duration::from_secs(1);
const FIRST: Duration = Duration::from_millis(300);

impl Verb for Stats {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let layout = Layout::new(self.format.as_deref(), DEFAULT, &COLUMNS)?;
        let mut before = HashMap::new();
        read(cx, &words, self.all, &mut before)?;
        std::thread::sleep(FIRST);
        loop {
            let rows = read(cx, &words, self.all, &mut before)?;
            let rows: Vec<Row> = rows.iter().map(|r| r.row(self.no_trunc)).collect();
            let mut text = layout.render(&rows)?;
            if !self.no_stream && cx.out.is_terminal() {
                // Home, each line cleared to its end, and the rest of the screen.
                text = format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"));
            }
            cx.out.raw(text.as_bytes())?;
            if self.no_stream {
                return Ok(0);
            }
            std::thread::sleep(PERIOD);
        }
    }
}

/// CPU time of a container and of the host.
type Cpu = (u64, u64);

struct Reading {
    container: String,
    id: String,
    name: String,
    figures: Option<Figures>,
}

struct Figures {
    cpu: f64,
    used: u64,
    limit: u64,
    /// What a microVM's guest says of its own.
    guest: Option<(u64, u64)>,
    net: (u64, u64),
    block: (u64, u64),
    pids: u64,
}

fn read(
    cx: &Context,
    words: &[String],
    all: bool,
    before: &mut HashMap<String, Cpu>,
) -> Result<Vec<Reading>, Failure> {
    let engine = cx.engine()?;
    let names: Vec<String> = if words.is_empty() {
        let list = engine.list(&ListOptions { all, ..ListOptions::default() })?;
        list.into_iter().filter_map(|c| c.id).collect()
    } else {
        words.to_vec()
    };
    let mut out = Vec::new();
    for name in names {
        let stats = match engine.stats(&name) {
            Ok(s) => s,
            // It went away between the list and now.
            Err(EngineError::NoSuchContainer(_)) if words.is_empty() => continue,
            Err(e) => return Err(e.into()),
        };
        let id = stats.id.clone().unwrap_or_default();
        out.push(Reading {
            container: if words.is_empty() { id.clone() } else { name },
            name: stats.name.clone().unwrap_or_default().trim_start_matches('/').to_owned(),
            figures: figures(&stats, before.get(&id).copied()),
            id: id.clone(),
        });
        before.insert(id, cpu(&stats));
    }
    Ok(out)
}

fn cpu(s: &docker::ContainerStatsResponse) -> Cpu {
    let cpu = s.cpu_stats.as_ref();
    let own = cpu.and_then(|c| c.cpu_usage.as_ref()).and_then(|u| u.total_usage).unwrap_or(0);
    (own, cpu.and_then(|c| c.system_cpu_usage).unwrap_or(0))
}

/// By the formulas of Docker's client. None for a container that does not run.
fn figures(s: &docker::ContainerStatsResponse, before: Option<Cpu>) -> Option<Figures> {
    let memory = s.memory_stats.as_ref()?;
    let usage = memory.usage?;
    let (now, then) = (cpu(s), before?);
    let cpus = s.cpu_stats.as_ref().and_then(|c| c.online_cpus).unwrap_or(1).max(1);
    let (own, system) = (now.0.saturating_sub(then.0) as f64, now.1.saturating_sub(then.1) as f64);
    // The page cache that can be dropped at once is not counted: v1, then v2.
    let cache =
        memory.stats.as_ref().and_then(|m| m.get("total_inactive_file").or_else(|| m.get("inactive_file")));
    let [used, all] = engine::GUEST_MEMORY;
    let net = s.networks.iter().flat_map(HashMap::values).fold((0u64, 0u64), |(rx, tx), n| {
        (rx.saturating_add(n.rx_bytes.unwrap_or(0)), tx.saturating_add(n.tx_bytes.unwrap_or(0)))
    });
    let entries =
        s.blkio_stats.as_ref().and_then(|b| b.io_service_bytes_recursive.as_deref()).unwrap_or_default();
    let sum = |op: &str| {
        entries
            .iter()
            .filter(|e| e.op.as_deref().is_some_and(|o| o.eq_ignore_ascii_case(op)))
            .fold(0u64, |n, e| n.saturating_add(e.value.unwrap_or(0)))
    };
    Some(Figures {
        cpu: if system > 0.0 { own / system * f64::from(cpus) * 100.0 } else { 0.0 },
        used: usage.saturating_sub(cache.copied().unwrap_or(0)),
        limit: memory.limit.unwrap_or(0),
        guest: memory.stats.as_ref().and_then(|m| Some((*m.get(used)?, *m.get(all)?))),
        net,
        block: (sum("read"), sum("write")),
        pids: s.pids_stats.as_ref().and_then(|p| p.current).unwrap_or(0),
    })
}

impl Reading {
    fn row(&self, whole: bool) -> Row {
        let none = || "--".to_owned();
        let pair =
            |(a, b): (u64, u64)| format!("{} / {}", units::human_size(a as f64), units::human_size(b as f64));
        let no_pair = || "-- / --".to_owned();
        let memory = |(used, all): (u64, u64)| {
            format!("{} / {}", units::binary_size(used as f64), units::binary_size(all as f64))
        };
        let f = self.figures.as_ref();
        Row::new([
            ("Container", self.container.clone()),
            ("ID", short_id(&self.id, whole)),
            ("Name", self.name.clone()),
            ("CPUPerc", f.map_or_else(none, |f| format!("{:.2}%", f.cpu))),
            ("MemUsage", f.map_or_else(no_pair, |f| memory((f.used, f.limit)))),
            ("GuestMemUsage", f.and_then(|f| f.guest).map_or_else(no_pair, memory)),
            (
                "MemPerc",
                f.map_or_else(none, |f| {
                    let part = if f.limit > 0 { f.used as f64 / f.limit as f64 * 100.0 } else { 0.0 };
                    format!("{part:.2}%")
                }),
            ),
            ("NetIO", f.map_or_else(none, |f| pair(f.net))),
            ("BlockIO", f.map_or_else(none, |f| pair(f.block))),
            ("PIDs", f.map_or_else(none, |f| f.pids.to_string())),
        ])
    }
}
