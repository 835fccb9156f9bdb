//! `pull`, `push`, `login`, `logout`.

use super::common::NoFlags;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::progress;
use crate::stream::terminal::{self, Silent};
use image::registry::Access;
use image::{PullOptions, PushOptions};
use std::io::{BufRead, Read, stdin};
use types::{ImageRef, Platform};

/// The registry that `login` means without a name.
const DOCKER_HUB: &str = "docker.io";

/// Registries that are spoken to without TLS, beyond those on this host: the flag, and a comma-separated variable.
fn access(flags: Vec<String>) -> Access {
    let named = engine::insecure_registries();
    Access { insecure: flags.into_iter().chain(named).collect(), ..Access::default() }
}

/// Flags of `pull`.
#[derive(clap::Args, Debug)]
pub struct Pull {
    /// Download all tagged images in the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Accepted for compatibility; digests are always verified
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    /// Speak plain HTTP to this registry (HOST[:PORT]); also in DHOW_INSECURE_REGISTRIES
    #[arg(long, value_name = "list")]
    insecure_registry: Vec<String>,
    /// Set platform if the image has several
    #[arg(long, value_name = "string")]
    platform: Option<String>,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
}

impl Verb for Pull {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let name = &words[0];
        let reference = parse(name)?;
        let tagged = name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        if self.all_tags && tagged {
            return Err("tag can't be used with --all-tags/-a".into());
        }
        let platform =
            self.platform.as_deref().map(Platform::parse).transpose().map_err(|e| e.to_string())?;
        let progress = progress::on_stdout(self.quiet);
        if !self.quiet && !tagged && !self.all_tags {
            progress.status("Using default tag: latest");
        }
        let options = PullOptions { platform, access: access(self.insecure_registry) };
        let engine = cx.engine()?;
        let pulled = if self.all_tags {
            engine.images().pull_all(&reference, &options, &*progress)?
        } else {
            vec![engine.images().pull(&reference, &options, &*progress)?]
        };
        drop(progress);
        for p in &pulled {
            engine.image_event("pull", &p.image.id.to_string(), &reference.familiar());
        }
        cx.out.line(&if self.all_tags { reference.name() } else { reference.to_string() })?;
        Ok(0)
    }
}

/// Flags of `push`.
#[derive(clap::Args, Debug)]
pub struct Push {
    /// Push all tags of an image to the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Accepted for compatibility; images are not signed
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    /// Speak plain HTTP to this registry (HOST[:PORT]); also in DHOW_INSECURE_REGISTRIES
    #[arg(long, value_name = "list")]
    insecure_registry: Vec<String>,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
}

impl Verb for Push {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let reference = parse(&words[0])?;
        let engine = cx.engine()?;
        let names = if self.all_tags { all_tags(engine, &reference)? } else { vec![reference.clone()] };
        let options = PushOptions { access: access(self.insecure_registry) };
        let progress = progress::on_stdout(self.quiet);
        progress.status(&format!("The push refers to repository [{}]", reference.name()));
        for name in names {
            engine.images().push(&name, &options, &*progress)?;
        }
        drop(progress);
        if self.quiet {
            cx.out.line(&if self.all_tags { reference.name() } else { reference.to_string() })?;
        }
        Ok(0)
    }
}

/// Every tag that this store has of a repository, of which there must be one.
fn all_tags(engine: &engine::Engine, repository: &ImageRef) -> Result<Vec<ImageRef>, Failure> {
    let found = engine.tags_of(repository)?;
    if found.is_empty() {
        return Err(
            format!("an image does not exist locally with the tag: {}", repository.familiar_name()).into()
        );
    }
    Ok(found)
}

/// Flags of `login`.
#[derive(clap::Args, Debug)]
pub struct Login {
    /// Password or Personal Access Token (PAT)
    #[arg(short, long, value_name = "string")]
    password: Option<String>,
    /// Take the password or token from stdin
    #[arg(long)]
    password_stdin: bool,
    /// Username
    #[arg(short, long, value_name = "string")]
    username: Option<String>,
    /// Speak plain HTTP to this registry (HOST[:PORT]); also in DHOW_INSECURE_REGISTRIES
    #[arg(long, value_name = "list")]
    insecure_registry: Vec<String>,
}

impl Verb for Login {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let registry = words.first().map_or(DOCKER_HUB, |w| host(w));
        if self.password_stdin && self.password.is_some() {
            return Err("--password and --password-stdin are mutually exclusive".into());
        }
        if self.password_stdin && self.username.is_none() {
            return Err("the --password-stdin option requires --username".into());
        }
        if self.password.is_some() {
            cx.out.warning("using --password via the command line is insecure: use --password-stdin");
        }
        let username = match self.username {
            Some(u) => u,
            None => ask(cx, "Username: ", false)?,
        };
        let password = match self.password {
            Some(p) => p,
            None if self.password_stdin => {
                let mut p = String::new();
                stdin().take(1 << 20).read_to_string(&mut p)?;
                p.trim_end_matches(['\r', '\n']).to_owned()
            }
            None => ask(cx, "Password: ", true)?,
        };
        if username.is_empty() || password.is_empty() {
            return Err("a user name and a password are needed".into());
        }
        image::login(registry, &username, &password, &access(self.insecure_registry))?;
        cx.out.line("Login Succeeded")?;
        Ok(0)
    }
}

fn ask(cx: &Context, question: &str, secret: bool) -> Result<String, Failure> {
    if !terminal::stdin_is_terminal() {
        return Err(
            "cannot perform an interactive login from a non TTY device: use -u and --password-stdin".into()
        );
    }
    cx.out.raw(question.as_bytes())?;
    let silent = if secret { Silent::enter()? } else { None };
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    if silent.is_some() {
        cx.out.line("")?;
    }
    Ok(answer.trim_end_matches(['\r', '\n']).to_owned())
}

/// `logout`.
#[derive(clap::Args, Debug)]
pub struct Logout {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Logout {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let registry = words.first().map_or(DOCKER_HUB, |w| host(w));
        cx.out.line(&format!("Removing login credentials for {registry}"))?;
        if !image::logout(registry)? {
            cx.out.line(&format!("Not logged in to {registry}"))?;
        }
        Ok(0)
    }
}

/// Docker also takes the address of a registry: `https://host/v1/`.
fn host(s: &str) -> &str {
    let s = s.strip_prefix("https://").or_else(|| s.strip_prefix("http://")).unwrap_or(s);
    let host = s.split('/').next().unwrap_or(s);
    if host == "index.docker.io" { DOCKER_HUB } else { host }
}

fn parse(name: &str) -> Result<ImageRef, Failure> {
    ImageRef::parse(name).map_err(|e| e.to_string().into())
}
