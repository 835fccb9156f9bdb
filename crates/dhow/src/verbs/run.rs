//! `run` and `create`.

use crate::args::container::ContainerFlags;
use crate::args::request::{Draft, draft};
use crate::args::resolve::{Surroundings, resolve};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::progress;
use crate::stream::terminal;
use engine::CreateRequest;
use engine::keys;
use sandbox::client::AttachOptions;
use std::fs::OpenOptions;
use std::io::Write;

/// Flags of `run`.
#[derive(clap::Args, Debug)]
pub struct Run {
    #[command(flatten)]
    container: ContainerFlags,
    /// Run container in background and print container ID
    #[arg(short, long)]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Proxy received signals to the process
    #[arg(long, default_value = "true")]
    sig_proxy: bool,
}

/// Flags of `create`.
#[derive(clap::Args, Debug)]
pub struct Create {
    #[command(flatten)]
    container: ContainerFlags,
}

impl Verb for Create {
    fn run(self, cx: &Context, mut words: Vec<String>) -> Outcome {
        let image = words.remove(0);
        let draft = draft(self.container, image, words)?;
        let (id, _) = create(cx, draft, |_| Ok(()))?;
        cx.out.line(&id)?;
        Ok(0)
    }
}

impl Verb for Run {
    fn run(self, cx: &Context, mut words: Vec<String>) -> Outcome {
        if self.detach && !self.container.attach.is_empty() {
            return Err("conflicting options: cannot specify both --attach and --detach".into());
        }
        let keys = keys::parse(&self.detach_keys)?;
        let image = words.remove(0);
        let draft = draft(self.container, image, words)?;
        let (id, request) = create(cx, draft, |request| foreground(request, self.detach))?;
        let config = &request.config;
        let attach = AttachOptions {
            stdin: config.attach_stdin == Some(true),
            stdout: config.attach_stdout == Some(true),
            stderr: config.attach_stderr == Some(true),
        };
        if !attach.stdout && !attach.stderr {
            cx.out.line(&id)?;
        }
        let wanted = (!self.detach && (attach.stdin || attach.stdout || attach.stderr)).then_some(attach);
        let engine = cx.engine()?;
        let stream = match engine.start(&id, wanted) {
            Ok(s) => s,
            Err(e) => {
                if request.host.auto_remove == Some(true) {
                    // It may be gone already; there is nothing to add to the reason above.
                    let _ = engine.remove(&id, engine::RemoveOptions { force: true, volumes: true });
                }
                return Err(Failure::coded(e.to_string(), e.exit_code()));
            }
        };
        let Some(stream) = stream else { return Ok(0) };
        super::attach::follow(
            cx,
            stream,
            &super::attach::Session {
                id: &id,
                attach,
                tty: config.tty == Some(true),
                keys,
                proxy: self.sig_proxy && config.tty != Some(true),
            },
        )
    }
}

/// What only `run` settles: streams in the foreground and the size of the terminal.
fn foreground(request: &mut CreateRequest, detach: bool) -> Result<(), Failure> {
    let config = &mut request.config;
    if detach {
        (config.attach_stdin, config.attach_stdout, config.attach_stderr) =
            (Some(false), Some(false), Some(false));
        config.stdin_once = Some(false);
    } else if config.tty == Some(true) && config.attach_stdin == Some(true) && !terminal::stdin_is_terminal()
    {
        return Err("the input device is not a TTY: leave out -t, or run this in a terminal".into());
    }
    if config.tty == Some(true)
        && let Some((rows, columns)) = terminal::size()
    {
        request.host.console_size = Some(vec![rows.into(), columns.into()]);
    }
    Ok(())
}

/// Creates the container; says its warnings, writes its id file.
fn create(
    cx: &Context,
    draft: Draft,
    adjust: impl FnOnce(&mut CreateRequest) -> Result<(), Failure>,
) -> Result<(String, CreateRequest), Failure> {
    let cidfile = draft.cidfile.clone();
    let quiet = draft.quiet;
    let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let mut request = resolve(draft, &Surroundings { cwd: &cwd, env: &|n| std::env::var(n).ok() })?;
    adjust(&mut request)?;
    let mut cidfile = cidfile.map(IdFile::open).transpose()?;
    let created = cx.engine()?.create(request.clone(), &*progress::on_stderr(quiet))?;
    for w in &created.warnings {
        cx.out.warning(w);
    }
    let id = created.id.to_string();
    if let Some(file) = &mut cidfile {
        file.keep(&id)?;
    }
    Ok((id, request))
}

/// `--cidfile`: made before the container, so that a path that cannot be written costs nothing; removed if there is none.
struct IdFile {
    path: String,
    kept: bool,
}

impl IdFile {
    fn open(path: String) -> Result<Self, Failure> {
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => Ok(Self { path, kept: false }),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(format!(
                "container ID file found, make sure the other container isn't running or delete {path}"
            )
            .into()),
            Err(e) => Err(format!("failed to create the container ID file {path}: {e}").into()),
        }
    }

    fn keep(&mut self, id: &str) -> Result<(), Failure> {
        self.kept = true;
        OpenOptions::new()
            .write(true)
            .open(&self.path)
            .and_then(|mut f| f.write_all(id.as_bytes()))
            .map_err(|e| format!("failed to write the container ID file {}: {e}", self.path).into())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
