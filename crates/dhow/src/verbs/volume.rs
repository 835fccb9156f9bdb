//! The verbs of volumes: what outlives containers.

use super::common::{filters, inspect_all};
use crate::args::lists;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::format::table::{Columns, Layout, Row};
use engine::{CreateVolume, VolumeFormat, VolumeInfo};
use serde_json::Value;
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
        let engine = cx.engine()?;
        let found = engine.matching_volumes(&filters(&self.filter)?)?;
        // To know how much a directory holds, all of it is walked.
        let sized = format.is_some_and(|f| f.contains(".Size") || f.contains("json"));
        let row = |v: &VolumeInfo| -> Result<Row, Failure> {
            let size = if sized { units::human_size(engine.volume_usage(v)? as f64) } else { "N/A".into() };
            let labels: Vec<String> = v.all_labels().iter().map(|(k, v)| format!("{k}={v}")).collect();
            Ok(Row::new([
                ("Driver", v.driver.to_string()),
                ("Name", v.name.clone()),
                ("Mountpoint", engine.mountpoint(v).display().to_string()),
                ("Scope", "local".into()),
                ("Links", v.users.len().to_string()),
                ("Size", size),
                ("Labels", labels.join(",")),
            ]))
        };
        let rows = found.iter().map(row).collect::<Result<Vec<Row>, Failure>>()?;
        cx.out.raw(layout.render(&rows)?.as_bytes())?;
        Ok(0)
    }
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
    let engine = cx.engine()?;
    Ok(engine.volume_shape(&engine.volume(name)?)?)
}

/// Flags of `volume create`.
#[derive(clap::Args, Debug)]
pub struct Create {
    #[command(flatten)]
    of: Made,
}

/// What a new volume is to be.
#[derive(clap::Args, Debug)]
struct Made {
    /// Specify volume driver name: local or disk
    #[arg(short, long, value_name = "string", default_value = "local")]
    driver: String,
    /// Set driver specific options
    #[arg(short = 'o', long = "opt", value_name = "map")]
    options: Vec<String>,
    /// Set metadata for a volume
    #[arg(long, value_name = "list")]
    label: Vec<String>,
}

impl Made {
    fn request(self, name: Option<String>) -> Result<CreateVolume, Failure> {
        let options = lists::option_map("--opt", &self.options)?.into_iter().collect();
        let labels = lists::label_map(&self.label)?.into_iter().collect();
        Ok(CreateVolume { name, driver: self.driver, options, labels })
    }
}

impl Verb for Create {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let request = self.of.request(words.into_iter().next())?;
        cx.out.line(&cx.engine()?.create_volume(&request)?)?;
        Ok(0)
    }
}

/// Flags of `volume resize`.
#[derive(clap::Args, Debug)]
pub struct Resize {}

impl Verb for Resize {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let [name, size] = &words[..] else { return Err("volume resize needs a volume and a size".into()) };
        cx.engine()?.resize_volume(name, size)?;
        cx.out.line(name)?;
        Ok(0)
    }
}

/// Flags of `volume clone`.
#[derive(clap::Args, Debug)]
pub struct Clone {
    /// Set driver specific options, other than those of the volume
    #[arg(short = 'o', long = "opt", value_name = "map")]
    options: Vec<String>,
    /// Do not pause what uses the volume meanwhile
    #[arg(long)]
    no_pause: bool,
}

impl Verb for Clone {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let [from, to] = &words[..] else { return Err("volume clone needs a volume and a new name".into()) };
        let options = lists::option_map("--opt", &self.options)?.into_iter().collect();
        cx.engine()?.clone_volume(from, to, &options, !self.no_pause)?;
        cx.out.line(to)?;
        Ok(0)
    }
}

/// Flags of `volume export`.
#[derive(clap::Args, Debug)]
pub struct Export {
    /// Form: tar, or of a disk volume also raw or qcow2
    #[arg(long, value_name = "string", default_value = "tar")]
    format: String,
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "string")]
    output: Option<String>,
    /// Do not pause what uses the volume meanwhile
    #[arg(long)]
    no_pause: bool,
}

impl Verb for Export {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let [name] = &words[..] else { return Err("volume export needs a volume".into()) };
        let format = VolumeFormat::parse(&self.format)?;
        let engine = cx.engine()?;
        super::archive::to_output(self.output.as_deref(), |out| {
            Ok(engine.export_volume(name, format, !self.no_pause, out)?)
        })
    }
}

/// Flags of `volume import`.
#[derive(clap::Args, Debug)]
pub struct Import {
    #[command(flatten)]
    of: Made,
}

impl Verb for Import {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let mut words = words.into_iter();
        let request = self.of.request(words.next())?;
        let engine = cx.engine()?;
        let name = match words.next().filter(|file| file != "-") {
            None => engine.import_volume(&request, &mut std::io::stdin())?,
            Some(path) => {
                let file = std::fs::File::open(&path).map_err(|e| format!("open {path}: {e}"))?;
                engine.import_volume(&request, &mut std::io::BufReader::new(file))?
            }
        };
        cx.out.line(&name)?;
        Ok(0)
    }
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
    /// Provide filter values (e.g. "label=<label>")
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

impl Verb for Prune {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let filters = filters(&self.filter)?;
        let kind = if self.all { "all" } else { "anonymous" };
        let question =
            format!("WARNING! This will remove {kind} local volumes not used by at least one container.");
        if !self.force && !cx.out.confirm(&question)? {
            return Ok(1);
        }
        let pruned = cx.engine()?.prune_volumes(self.all, &filters)?;
        super::common::print_pruned(cx, "Deleted Volumes:", &pruned.volumes)?;
        super::common::print_reclaimed(cx, pruned.reclaimed)?;
        Ok(0)
    }
}
