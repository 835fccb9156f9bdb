//! `save`, `load`, `import`: images as files.

use super::look::refuse_terminal;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::progress;
use image::{ImportRequest, LoadFrom, SaveFormat, SaveTo};
use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal, Read, Write, stdin, stdout};
use std::path::{Path, PathBuf};
use types::{ImageRef, Platform};

const BUFFER: usize = 256 << 10;

/// Writes to stdout, or to a file that appears only when it is whole.
pub fn to_output(path: Option<&str>, write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> Outcome {
    let Some(path) = path.filter(|p| *p != "-") else {
        refuse_terminal("save")?;
        let mut out = BufWriter::with_capacity(BUFFER, stdout().lock());
        write(&mut out)?;
        out.flush()?;
        return Ok(0);
    };
    let path = Path::new(path);
    // Into a pipe or a device there is nothing to rename.
    if fs::symlink_metadata(path).is_ok_and(|m| !m.is_file()) {
        let file =
            File::options().write(true).truncate(true).open(path).map_err(|e| open_failed(path, &e))?;
        let mut out = BufWriter::with_capacity(BUFFER, file);
        write(&mut out)?;
        out.flush()?;
        return Ok(0);
    }
    let temporary = Temporary(path.with_file_name(format!(
        ".{}.{}.tmp",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    )));
    let file = File::create(&temporary.0).map_err(|e| open_failed(path, &e))?;
    let mut out = BufWriter::with_capacity(BUFFER, file);
    write(&mut out)?;
    out.flush()?;
    drop(out);
    fs::rename(&temporary.0, path).map_err(|e| open_failed(path, &e))?;
    Ok(0)
}

fn open_failed(path: &Path, e: &std::io::Error) -> Failure {
    format!("open {}: {e}", path.display()).into()
}

/// Removed when dropped, if it is still there.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Flags of `save`.
#[derive(clap::Args, Debug)]
pub struct Save {
    /// Form of the archive: docker-archive, oci-archive, or oci-dir (a directory, with -o)
    #[arg(long, value_name = "string", default_value = "docker-archive")]
    format: String,
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "string")]
    output: Option<String>,
}

impl Verb for Save {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let images = cx.engine()?.images();
        let names: Vec<&str> = words.iter().map(String::as_str).collect();
        let format = match self.format.as_str() {
            "docker-archive" | "docker" => SaveFormat::DockerArchive,
            "oci-archive" | "oci" => SaveFormat::OciArchive,
            "oci-dir" => {
                let Some(dir) = self.output else {
                    return Err("--format oci-dir needs a directory: give it with -o".into());
                };
                images.save(&names, SaveTo::Directory(Path::new(&dir)))?;
                return Ok(0);
            }
            other => {
                return Err(
                    format!("invalid format {other:?}: use docker-archive, oci-archive or oci-dir").into()
                );
            }
        };
        to_output(self.output.as_deref(), |out| Ok(images.save(&names, SaveTo::Stream(out, format))?))
    }
}

/// Flags of `load`.
#[derive(clap::Args, Debug)]
pub struct Load {
    /// Read from an archive or an OCI directory, instead of STDIN
    #[arg(short, long, value_name = "string")]
    input: Option<String>,
    /// Load only the given platform of each image
    #[arg(long, value_name = "string")]
    platform: Option<String>,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

impl Verb for Load {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let platform =
            self.platform.as_deref().map(Platform::parse).transpose().map_err(|e| e.to_string())?;
        let progress = progress::on_stdout(self.quiet || !stdout().is_terminal());
        let images = cx.engine()?.images();
        let loaded = match self.input.as_deref().filter(|i| *i != "-") {
            Some(path) if Path::new(path).is_dir() => {
                images.load(LoadFrom::Directory(Path::new(path)), platform.as_ref(), &*progress)?
            }
            Some(path) => {
                let mut file = File::open(path).map_err(|e| open_failed(Path::new(path), &e))?;
                images.load(LoadFrom::Stream(&mut file), platform.as_ref(), &*progress)?
            }
            None => {
                if stdin().is_terminal() {
                    return Err("requested load from stdin, but stdin is empty: use -i or redirect".into());
                }
                images.load(LoadFrom::Stream(&mut stdin()), platform.as_ref(), &*progress)?
            }
        };
        drop(progress);
        for (id, names) in loaded {
            if names.is_empty() {
                cx.out.line(&format!("Loaded image ID: {id}"))?;
            }
            for name in names {
                cx.out.line(&format!("Loaded image: {}", name.familiar()))?;
            }
        }
        Ok(0)
    }
}

/// Flags of `import`.
#[derive(clap::Args, Debug)]
pub struct Import {
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long, value_name = "list")]
    change: Vec<String>,
    /// Set commit message for imported image
    #[arg(short, long, value_name = "string", default_value = "", hide_default_value = true)]
    message: String,
    /// Set platform of the image
    #[arg(long, value_name = "string")]
    platform: Option<String>,
}

impl Verb for Import {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let source = &words[0];
        if source.starts_with("http://") || source.starts_with("https://") {
            return Err(
                "importing from a URL is not supported: fetch it and pipe it in (curl … | dhow import -)"
                    .into(),
            );
        }
        let name = words.get(1).map(|w| ImageRef::parse(w)).transpose().map_err(|e| e.to_string())?;
        let platform =
            self.platform.as_deref().map(Platform::parse).transpose().map_err(|e| e.to_string())?;
        let request = ImportRequest {
            name: name.as_ref(),
            changes: &self.change,
            message: &self.message,
            platform: platform.as_ref(),
        };
        let images = cx.engine()?.images();
        let mut input: Box<dyn Read + Send> = if source == "-" {
            if stdin().is_terminal() {
                return Err(
                    "requested import from stdin, but stdin is a terminal: redirect a tar into it".into()
                );
            }
            Box::new(stdin())
        } else {
            Box::new(File::open(source).map_err(|e| open_failed(Path::new(source), &e))?)
        };
        let id = images.import(&mut *input, &request)?;
        cx.engine()?.image_event("import", &id.to_string(), words.get(1).map_or("", String::as_str));
        cx.out.line(&id.to_string())?;
        Ok(0)
    }
}
