//! `images`, `rmi`, `tag`, `history`, `image prune`.

use super::common::{NoFlags, ago, ellipsis, filters, print_pruned, print_reclaimed, short_id, timestamp};
use crate::cli::context::Context;
use crate::cli::failure::Outcome;
use crate::cli::verb::Run as Verb;
use crate::format::table::{Columns, Layout, Row};
use types::{ImageRef, docker, units};

/// Flags of `images`.
#[derive(clap::Args, Debug)]
pub struct Images {
    /// Accepted for compatibility: there are no intermediate images
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// Format output using a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
}

const COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "IMAGE ID"),
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
        ("VirtualSize", "SIZE"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("Containers", "CONTAINERS"),
    ],
};

impl Verb for Images {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let default = if self.digests {
            "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
        } else {
            "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
        };
        let format =
            if self.quiet && self.format.is_none() { Some("{{.ID}}") } else { self.format.as_deref() };
        let layout = Layout::new(format, default, &COLUMNS)?;
        let mut filters = filters(&self.filter)?;
        if let Some(name) = words.into_iter().next() {
            filters.entry("reference".into()).or_default().push(name);
        }
        let mut rows = Vec::new();
        for image in cx.engine()?.list_images(&filters)? {
            rows.extend(image_rows(&image, self.no_trunc, self.digests));
        }
        if self.quiet && self.format.is_none() {
            rows.dedup_by(|a, b| a.fields == b.fields);
        }
        cx.out.raw(layout.render(&rows)?.as_bytes())?;
        Ok(0)
    }
}

/// A row per name, or one of `<none>`.
fn image_rows(image: &docker::ImageSummary, whole: bool, digests: bool) -> Vec<Row> {
    let digest_of = |repository: &str| {
        image
            .repo_digests
            .iter()
            .find_map(|d| d.split_once('@').filter(|(r, _)| *r == repository).map(|(_, d)| d.to_owned()))
    };
    let none = || "<none>".to_owned();
    let mut names: Vec<(String, String, String)> = Vec::new();
    for tag in image.repo_tags.iter().filter(|t| *t != "<none>:<none>") {
        let (repository, tag) = tag.rsplit_once(':').unwrap_or((tag, "latest"));
        names.push((repository.to_owned(), tag.to_owned(), digest_of(repository).unwrap_or_else(none)));
    }
    let untagged: Vec<(String, String, String)> = image
        .repo_digests
        .iter()
        .filter_map(|d| d.split_once('@'))
        .filter(|(r, _)| *r != "<none>" && !names.iter().any(|n| n.0 == *r))
        .map(|(r, d)| (r.to_owned(), none(), d.to_owned()))
        .collect();
    if digests || names.is_empty() {
        names.extend(untagged);
    }
    if names.is_empty() {
        names.push((none(), none(), none()));
    }
    let size = units::human_size(image.size as f64);
    let known = |n: i64| if n < 0 { "N/A".to_owned() } else { units::human_size(n as f64) };
    names
        .into_iter()
        .map(|(repository, tag, digest)| {
            let mut row = Row::new([
                ("ID", short_id(&image.id, whole)),
                ("Repository", repository),
                ("Tag", tag),
                ("Digest", digest),
                ("CreatedSince", ago(image.created)),
                ("CreatedAt", timestamp(image.created)),
                ("Size", size.clone()),
                ("VirtualSize", size.clone()),
                ("SharedSize", known(image.shared_size)),
                (
                    "UniqueSize",
                    known(if image.shared_size < 0 { -1 } else { image.size - image.shared_size }),
                ),
                (
                    "Containers",
                    if image.containers < 0 { "N/A".into() } else { image.containers.to_string() },
                ),
            ]);
            row.labels = image.labels.clone();
            row
        })
        .collect()
}

/// Flags of `rmi`.
#[derive(clap::Args, Debug)]
pub struct Remove {
    /// Force removal of the image
    #[arg(short, long)]
    force: bool,
    /// Accepted for compatibility: images here have no untagged parents
    #[arg(long, hide = true)]
    no_prune: bool,
}

impl Verb for Remove {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            let mut text = String::new();
            for item in engine.remove_image(name, self.force)? {
                if let Some(name) = item.untagged {
                    text += &format!("Untagged: {name}\n");
                }
                if let Some(id) = item.deleted {
                    text += &format!("Deleted: {id}\n");
                }
            }
            Ok(cx.out.raw(text.as_bytes())?)
        })
    }
}

/// `tag`.
#[derive(clap::Args, Debug)]
pub struct Tag {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Tag {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let target = ImageRef::parse(&words[1]).map_err(|e| e.to_string())?;
        if target.digest().is_some() {
            return Err("refusing to create a tag with a digest reference".into());
        }
        let engine = cx.engine()?;
        let id = engine.images().tag(&words[0], &target)?;
        engine.image_event("tag", &id.to_string(), &target.familiar());
        Ok(0)
    }
}

/// Flags of `history`.
#[derive(clap::Args, Debug)]
pub struct History {
    /// Format output using a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, default_value = "true")]
    human: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
}

const HISTORY: Columns = Columns {
    headings: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
};

impl Verb for History {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let default = if self.human {
            "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
        } else {
            "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
        };
        let format =
            if self.quiet && self.format.is_none() { Some("{{.ID}}") } else { self.format.as_deref() };
        let layout = Layout::new(format, default, &HISTORY)?;
        let history = cx.engine()?.images().history(&words[0])?;
        let rows: Vec<Row> = history
            .into_iter()
            .map(|h| {
                let by = h.created_by.replace('\t', " ");
                let created = types::units::rfc3339(h.created.saturating_mul(1_000_000_000));
                Row::new([
                    ("ID", if h.id.is_empty() { "<missing>".into() } else { short_id(&h.id, self.no_trunc) }),
                    ("CreatedSince", if h.created <= 0 { "N/A".into() } else { ago(h.created) }),
                    (
                        "CreatedAt",
                        if h.created <= 0 { String::new() } else { created.replacen(".000000000Z", "Z", 1) },
                    ),
                    ("CreatedBy", if self.no_trunc { by } else { ellipsis(&by, 45) }),
                    ("Size", if self.human { units::human_size(h.size as f64) } else { h.size.to_string() }),
                    ("Comment", h.comment),
                ])
            })
            .collect();
        cx.out.raw(layout.render(&rows)?.as_bytes())?;
        Ok(0)
    }
}

/// Flags of `image prune`.
#[derive(clap::Args, Debug)]
pub struct Prune {
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,
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
        let question = if self.all {
            "WARNING! This will remove all images without at least one container associated to them."
        } else {
            "WARNING! This will remove all dangling images."
        };
        if !self.force && !cx.out.confirm(question)? {
            return Ok(1);
        }
        let pruned = cx.engine()?.prune_images(self.all, &filters)?;
        print_pruned(cx, "Deleted Images:", &pruned.images)?;
        print_reclaimed(cx, pruned.reclaimed)?;
        Ok(0)
    }
}
