//! `ps`.

use super::common::{ago, ellipsis, filters, short_id, timestamp};
use crate::args::values;
use crate::cli::context::Context;
use crate::cli::failure::Outcome;
use crate::cli::verb::Run as Verb;
use crate::format::table::{Columns, Layout, Row};
use engine::ListOptions;
use types::{docker, units};

/// Flags of `ps`.
#[derive(clap::Args, Debug)]
pub struct Ps {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// Format output using a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Show n last created containers (includes all states)
    #[arg(short = 'n', long, value_name = "int", default_value = "-1", value_parser = values::int)]
    last: i64,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    latest: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only display container IDs
    #[arg(short, long)]
    quiet: bool,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
}

const COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("CreatedAt", "CREATED AT"),
        ("RunningFor", "CREATED"),
        ("Ports", "PORTS"),
        ("State", "STATE"),
        ("Status", "STATUS"),
        ("Size", "SIZE"),
        ("Names", "NAMES"),
        ("Labels", "LABELS"),
        ("Mounts", "MOUNTS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Networks", "NETWORKS"),
    ],
};

impl Verb for Ps {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let default = if self.quiet {
            "{{.ID}}"
        } else if self.size {
            "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}"
        } else {
            "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
        };
        let format =
            if self.quiet && self.format.is_none() { Some("{{.ID}}") } else { self.format.as_deref() };
        let layout = Layout::new(format, default, &COLUMNS)?;
        let limit = if self.latest { Some(1) } else { usize::try_from(self.last).ok().filter(|n| *n > 0) };
        let size = self.size || self.format.as_deref().is_some_and(|f| f.contains(".Size"));
        let options =
            ListOptions { all: self.all || limit.is_some(), limit, size, filters: filters(&self.filter)? };
        let list = cx.engine()?.list(&options)?;
        let rows: Vec<Row> = list.into_iter().map(|c| row(c, self.no_trunc)).collect();
        cx.out.raw(layout.render(&rows)?.as_bytes())?;
        Ok(0)
    }
}

fn row(c: docker::ContainerSummary, whole: bool) -> Row {
    let command = c.command.unwrap_or_default();
    let image = match c.image.unwrap_or_default() {
        i if i.is_empty() => "<no image>".into(),
        i if !whole && i.starts_with("sha256:") => short_id(&i, false),
        i => i,
    };
    let created = c.created.unwrap_or(0);
    let labels = c.labels.unwrap_or_default();
    let mut pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.sort_unstable();
    let mounts = c.mounts.unwrap_or_default();
    let volumes = mounts.iter().filter(|m| m.typ.as_deref() == Some("volume")).count();
    let mounts: Vec<String> = mounts
        .into_iter()
        .map(|m| m.name.filter(|n| !n.is_empty()).or(m.source).unwrap_or_default())
        .map(|m| if whole { m } else { ellipsis(&m, 15) })
        .collect();
    let mut networks: Vec<String> =
        c.network_settings.and_then(|n| n.networks).unwrap_or_default().into_keys().collect();
    networks.sort_unstable();
    let size = units::human_size(c.size_rw.unwrap_or(0) as f64);
    let size = match c.size_root_fs {
        Some(all) if all > 0 => format!("{size} (virtual {})", units::human_size(all as f64)),
        _ => size,
    };
    let names: Vec<String> =
        c.names.unwrap_or_default().iter().map(|n| n.strip_prefix('/').unwrap_or(n).to_owned()).collect();
    let mut row = Row::new([
        ("ID", short_id(&c.id.unwrap_or_default(), whole)),
        ("Image", image),
        ("Command", format!("{:?}", if whole { command } else { ellipsis(&command, 20) })),
        ("CreatedAt", timestamp(created)),
        ("RunningFor", ago(created)),
        ("Ports", ports(c.ports.unwrap_or_default())),
        ("State", c.state.map(|s| s.to_string()).unwrap_or_default()),
        ("Status", c.status.unwrap_or_default()),
        ("Size", size),
        ("Names", names.join(",")),
        ("Labels", pairs.join(",")),
        ("Mounts", mounts.join(",")),
        ("LocalVolumes", volumes.to_string()),
        ("Networks", networks.join(",")),
    ]);
    row.labels = labels;
    row
}

/// Docker's `DisplayablePorts`: neighbours that map to themselves become ranges.
fn ports(mut list: Vec<docker::PortSummary>) -> String {
    let kind = |p: &docker::PortSummary| p.typ.map(|t| t.to_string()).unwrap_or_default();
    list.sort_by_key(|p| (p.private_port, p.ip.clone(), p.public_port, kind(p)));
    let mut ranges: Vec<(Option<String>, String, u16, u16, bool)> = Vec::new();
    let mut mapped = Vec::new();
    for p in &list {
        let public = p.public_port.filter(|n| *n > 0);
        let ip = p.ip.clone().filter(|i| !i.is_empty() && public.is_some());
        if let Some(n) = public.filter(|n| *n != p.private_port) {
            mapped.push(format!("{}->{}/{}", on(ip.as_deref(), &n.to_string()), p.private_port, kind(p)));
            continue;
        }
        let last = ranges.iter_mut().rev().find(|r| r.0 == ip && r.1 == kind(p) && r.4 == public.is_some());
        match last {
            Some(r) if p.private_port == r.3 => {}
            Some(r) if r.3.checked_add(1) == Some(p.private_port) => r.3 = p.private_port,
            _ => ranges.push((ip, kind(p), p.private_port, p.private_port, public.is_some())),
        }
    }
    let range = |a: u16, b: u16| if a == b { a.to_string() } else { format!("{a}-{b}") };
    let mut out: Vec<String> = ranges
        .into_iter()
        .map(|(ip, kind, a, b, public)| {
            let inside = range(a, b);
            if public {
                format!("{}->{inside}/{kind}", on(ip.as_deref(), &inside))
            } else {
                format!("{inside}/{kind}")
            }
        })
        .collect();
    out.extend(mapped);
    out.join(", ")
}

fn on(ip: Option<&str>, port: &str) -> String {
    match ip {
        Some(ip) if ip.contains(':') => format!("[{ip}]:{port}"),
        Some(ip) => format!("{ip}:{port}"),
        None => port.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use docker::PortSummaryTypeEnum::TCP;

    fn p(ip: &str, private_port: u16, public_port: u16) -> docker::PortSummary {
        let ip = (!ip.is_empty()).then(|| ip.to_owned());
        docker::PortSummary { ip, private_port, public_port: Some(public_port), typ: Some(TCP) }
    }

    #[test]
    fn ports_are_grouped() {
        assert_eq!(
            ports(vec![p("0.0.0.0", 80, 8080), p("::", 80, 8080)]),
            "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"
        );
        assert_eq!(ports(vec![p("", 81, 0), p("", 80, 0)]), "80-81/tcp");
        assert_eq!(ports(vec![p("0.0.0.0", 81, 81), p("0.0.0.0", 80, 80)]), "0.0.0.0:80-81->80-81/tcp");
        assert_eq!(ports(vec![]), "");
    }
}
