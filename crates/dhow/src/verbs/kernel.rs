//! `kernel ls`, `kernel install`, `kernel import`, `kernel use`, `kernel rm`: what microVMs boot.

use crate::cli::context::Context;
use crate::cli::failure::Outcome;
use crate::cli::verb::Run as Verb;
use crate::format::table::{Columns, Layout, Row};
use std::path::Path;
use types::units;

const COLUMNS: Columns = Columns {
    headings: &[
        ("Name", "NAME"),
        ("Version", "VERSION"),
        ("InUse", "IN USE"),
        ("Source", "SOURCE"),
        ("CreatedSince", "INSTALLED"),
        ("Size", "SIZE"),
    ],
};

/// Flags of `kernel ls`.
#[derive(clap::Args, Debug)]
pub struct List {
    /// Format output using a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Only display names
    #[arg(short, long)]
    quiet: bool,
}

impl Verb for List {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let format = if self.quiet { Some("{{.Name}}") } else { self.format.as_deref() };
        let default = "{{.Name}}\t{{.Version}}\t{{.InUse}}\t{{.Source}}\t{{.CreatedSince}}\t{{.Size}}";
        let layout = Layout::new(format, default, &COLUMNS)?;
        let now = sys::host::now_ns();
        let row = |k: &engine::machine::kernels::Kernel| {
            Row::new([
                ("Name", k.name.clone()),
                ("Version", k.version.clone()),
                ("InUse", if k.in_use { "*".into() } else { String::new() }),
                ("Source", k.source.clone()),
                (
                    "CreatedSince",
                    format!("{} ago", units::human_duration((now - k.installed_ns) / 1_000_000_000)),
                ),
                ("Size", units::human_size(k.size as f64)),
            ])
        };
        let rows: Vec<Row> = cx.engine()?.kernels()?.iter().map(row).collect();
        cx.out.raw(layout.render(&rows)?.as_bytes())?;
        Ok(0)
    }
}

/// Flags of `kernel install`.
#[derive(clap::Args, Debug)]
pub struct Install {
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
}

impl Verb for Install {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let package = words.first().map_or(engine::machine::kernels::PACKAGE, String::as_str);
        let told = |text: &str| {
            if !self.quiet {
                cx.out.note(text);
            }
        };
        let kernel = cx.engine()?.install_kernel(package, &told)?;
        cx.out.line(&kernel.name)?;
        Ok(0)
    }
}

/// Flags of `kernel import`.
#[derive(clap::Args, Debug)]
pub struct Import {
    /// Directory of the kernel's modules (/lib/modules/VERSION)
    #[arg(long, value_name = "directory")]
    modules: Option<String>,
    /// Name of the kernel (default: its version)
    #[arg(long, value_name = "string")]
    name: Option<String>,
}

impl Verb for Import {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let file = words.first().map_or("", String::as_str);
        let modules = self.modules.as_deref().map(Path::new);
        let kernel = cx.engine()?.import_kernel(Path::new(file), modules, self.name.as_deref())?;
        cx.out.line(&kernel.name)?;
        Ok(0)
    }
}

/// Flags of `kernel use`.
#[derive(clap::Args, Debug)]
pub struct Use {}

impl Verb for Use {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let name = words.first().map_or("", String::as_str);
        cx.engine()?.use_kernel(name)?;
        cx.out.line(name)?;
        Ok(0)
    }
}

/// Flags of `kernel rm`.
#[derive(clap::Args, Debug)]
pub struct Remove {}

impl Verb for Remove {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            engine.remove_kernel(name)?;
            Ok(cx.out.line(name)?)
        })
    }
}
