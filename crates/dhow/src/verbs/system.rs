//! `info`, `version`, `system df`, `system prune`, `system recover`, `system reset`.

use super::common::{filters, print_pruned, print_reclaimed, value};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::format::table::{Columns, Layout, Row};
use crate::format::{self};
use serde_json::{Value, json};
use std::fmt::Write;
use types::units;

/// Flags of `info`.
#[derive(clap::Args, Debug)]
pub struct Info {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
}

impl Verb for Info {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let info = cx.engine()?.info(&crate::BUILD)?;
        let v = value(&info)?;
        if let Some(f) = &self.format {
            cx.out.line(&format::one(f, &v)?)?;
            return Ok(0);
        }
        cx.out.raw(info_text(&v).as_bytes())?;
        for w in info.warnings.unwrap_or_default() {
            cx.out.note(&w);
        }
        Ok(0)
    }
}

fn info_text(v: &Value) -> String {
    let mut out = String::new();
    let mut put = |indent: usize, name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{:indent$}{name}: {value}", "");
        }
    };
    let text = |k: &str| match &v[k] {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    put(0, "Containers", text("Containers"));
    put(1, "Running", text("ContainersRunning"));
    put(1, "Paused", text("ContainersPaused"));
    put(1, "Stopped", text("ContainersStopped"));
    put(0, "Images", text("Images"));
    put(0, "Server Version", text("ServerVersion"));
    put(0, "Storage Driver", text("Driver"));
    for pair in v["DriverStatus"].as_array().into_iter().flatten() {
        put(1, pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default().to_owned());
    }
    for (name, key) in [
        ("Logging Driver", "LoggingDriver"),
        ("Cgroup Driver", "CgroupDriver"),
        ("Cgroup Version", "CgroupVersion"),
        ("Default Runtime", "DefaultRuntime"),
    ] {
        put(0, name, text(key));
    }
    let options: Vec<&str> =
        v["SecurityOptions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    put(0, "Security Options", options.join(" "));
    for (name, key) in [
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
    ] {
        put(0, name, text(key));
    }
    put(0, "Total Memory", v["MemTotal"].as_i64().map(|m| units::binary_size(m as f64)).unwrap_or_default());
    for (name, key) in [
        ("Name", "Name"),
        ("ID", "ID"),
        ("Root Dir", "DockerRootDir"),
        ("HTTP Proxy", "HttpProxy"),
        ("HTTPS Proxy", "HttpsProxy"),
        ("No Proxy", "NoProxy"),
    ] {
        put(0, name, text(key));
    }
    out
}

/// Flags of `version`.
#[derive(clap::Args, Debug)]
pub struct Version {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
}

impl Verb for Version {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        // There is no server: both halves are this program.
        let server = value(&engine::version(&crate::BUILD))?;
        let client = json!({
            "Version": server["Version"], "ApiVersion": server["ApiVersion"], "GitCommit": server["GitCommit"],
            "Os": server["Os"], "Arch": server["Arch"], "BuildTime": server["BuildTime"],
        });
        let v = json!({"Client": client, "Server": server});
        if let Some(f) = &self.format {
            cx.out.line(&format::one(f, &v)?)?;
            return Ok(0);
        }
        let mut out = String::from("Dhow:\n");
        let s = &v["Server"];
        let text = |k: &str| s[k].as_str().unwrap_or_default().to_owned();
        for (name, value) in [
            ("Version", text("Version")),
            ("API version", text("ApiVersion")),
            ("Git commit", text("GitCommit")),
            ("OS/Arch", format!("{}/{}", text("Os"), text("Arch"))),
            ("Kernel", text("KernelVersion")),
        ] {
            if !value.is_empty() {
                let _ = writeln!(out, " {:<18}{value}", format!("{name}:"));
            }
        }
        cx.out.raw(out.as_bytes())?;
        Ok(0)
    }
}

/// Flags of `system df`.
#[derive(clap::Args, Debug)]
pub struct Df {
    /// Format output using a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Show detailed information on space usage
    #[arg(short, long)]
    verbose: bool,
}

const DF: Columns = Columns {
    headings: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ],
};

const DETAIL: Columns = Columns {
    headings: &[("Type", "TYPE"), ("ID", "ID"), ("Name", "NAME"), ("Size", "SIZE"), ("Used", "USED")],
};

impl Verb for Df {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let default = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";
        let layout = Layout::new(self.format.as_deref(), default, &DF)?;
        let usage = cx.engine()?.disk_usage()?;
        let rows: Vec<Row> = usage
            .iter()
            .map(|k| {
                let share = (k.reclaimable * 100).checked_div(k.size).unwrap_or(0);
                Row::new([
                    ("Type", k.kind.to_owned()),
                    ("TotalCount", k.total.to_string()),
                    ("Active", k.active.to_string()),
                    ("Size", units::human_size(k.size as f64)),
                    ("Reclaimable", format!("{} ({share}%)", units::human_size(k.reclaimable as f64))),
                ])
            })
            .collect();
        cx.out.raw(layout.render(&rows)?.as_bytes())?;
        if self.verbose {
            let layout = Layout::new(None, "{{.Type}}\t{{.ID}}\t{{.Name}}\t{{.Size}}\t{{.Used}}", &DETAIL)?;
            cx.out.line("")?;
            cx.out.raw(layout.render(&details(cx)?)?.as_bytes())?;
        }
        Ok(0)
    }
}

/// One row for everything that takes space.
fn details(cx: &Context) -> Result<Vec<Row>, Failure> {
    let engine = cx.engine()?;
    let row = |kind: &str, id: &str, name: String, size: i64, used: usize| {
        Row::new([
            ("Type", kind.to_owned()),
            ("ID", super::common::short_id(id, false)),
            ("Name", name),
            ("Size", if size < 0 { "N/A".into() } else { units::human_size(size as f64) }),
            ("Used", used.to_string()),
        ])
    };
    let mut rows = Vec::new();
    for i in engine.list_images(&engine::Filters::new())? {
        let name = i.repo_tags.join(",");
        rows.push(row(
            "Image",
            &i.id,
            if name.is_empty() { "<none>".into() } else { name },
            i.size,
            i.containers.max(0) as usize,
        ));
    }
    let all = engine::ListOptions { all: true, size: true, ..Default::default() };
    for c in engine.list(&all)? {
        let names: Vec<String> =
            c.names.unwrap_or_default().iter().map(|n| n.trim_start_matches('/').to_owned()).collect();
        rows.push(row("Container", &c.id.unwrap_or_default(), names.join(","), c.size_rw.unwrap_or(0), 1));
    }
    for v in engine.volumes()? {
        rows.push(row("Volume", "", v.name, -1, v.users.len()));
    }
    Ok(rows)
}

/// Flags of `system prune`.
#[derive(clap::Args, Debug)]
pub struct Prune {
    /// Remove all unused images not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. "label=<key>=<value>")
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Prune anonymous volumes
    #[arg(long)]
    volumes: bool,
}

impl Verb for Prune {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let filters = filters(&self.filter)?;
        let mut question = String::from("WARNING! This will remove:\n  - all stopped containers\n");
        question += "  - all networks not used by at least one container\n";
        if self.volumes {
            question += "  - all anonymous volumes not used by at least one container\n";
        }
        question += if self.all {
            "  - all images without at least one container associated to them\n"
        } else {
            "  - all dangling images\n"
        };
        if !self.force && !cx.out.confirm(&question)? {
            return Ok(1);
        }
        let pruned = cx.engine()?.prune_system(self.all, self.volumes, &filters)?;
        print_pruned(cx, "Deleted Containers:", &pruned.containers)?;
        print_pruned(cx, "Deleted Networks:", &pruned.networks)?;
        print_pruned(cx, "Deleted Volumes:", &pruned.volumes)?;
        print_pruned(cx, "Deleted Images:", &pruned.images)?;
        print_reclaimed(cx, pruned.reclaimed)?;
        Ok(0)
    }
}

/// Flags of `system recover`.
#[derive(clap::Args, Debug)]
pub struct Recover {
    /// Also start what its restart policy wants to run, as after a reboot
    #[arg(long)]
    boot: bool,
}

impl Verb for Recover {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        let problems = if self.boot { engine.recover_at_boot()? } else { engine.recover()? };
        for problem in &problems {
            cx.out.error(problem);
        }
        Ok(i32::from(!problems.is_empty()))
    }
}

/// Flags of `system reset`.
#[derive(clap::Args, Debug)]
pub struct Reset {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

impl Verb for Reset {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let question = "WARNING! This will remove:\n  - all containers, running ones too\n  - all images\n  - all volumes\n";
        if !self.force && !cx.out.confirm(question)? {
            return Ok(1);
        }
        cx.own_engine()?.reset()?;
        Ok(0)
    }
}
