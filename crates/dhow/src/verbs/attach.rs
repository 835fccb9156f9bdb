//! `attach`, `start` and `exec`: everything that joins the streams of a process.

use crate::args::resolve;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::stream::pump::{self, End};
use crate::stream::terminal;
use engine::ExecRequest;
use engine::keys;
use sandbox::client::{AttachOptions, Stream, WaitCondition};
use types::docker;

/// Streams of a container that are to be followed to its end.
pub struct Session<'a> {
    /// Container.
    pub id: &'a str,
    /// Which streams.
    pub attach: AttachOptions,
    /// It has a terminal.
    pub tty: bool,
    /// Keys that detach.
    pub keys: Vec<u8>,
    /// Our signals are its signals.
    pub proxy: bool,
}

/// Copies until the container ends or the user detaches; the answer is its exit code.
pub fn follow(cx: &Context, stream: Stream, session: &Session<'_>) -> Outcome {
    let engine = cx.engine()?;
    // A container that has just ended takes no signal, and its exit code is on the way.
    let pass_on = |signal: i32| drop(engine.kill(session.id, Some(&signal.to_string())));
    let options = pump::Options {
        stdin: session.attach.stdin,
        stdout: session.attach.stdout,
        stderr: session.attach.stderr,
        tty: session.tty,
        keys: session.keys.clone(),
        proxy: session.proxy.then_some(&pass_on),
    };
    match pump::pump(stream, &options) {
        Ok(End::Exited(code)) => Ok(code),
        Ok(End::Gone) => match engine.wait(session.id, WaitCondition::NotRunning) {
            // With `--rm` nothing is left to tell the exit code.
            Err(engine::EngineError::NoSuchContainer(_)) => Err(Failure::coded(
                "the container's exit code is unknown: its supervisor was killed as it ended".to_owned(),
                255,
            )),
            code => Ok(code? as i32),
        },
        Ok(other) => ended(cx, other),
        Err(e) => Err(Failure::coded(e.to_string(), 125)),
    }
}

fn ended(cx: &Context, end: End) -> Outcome {
    match end {
        End::Exited(code) => Ok(code),
        End::Detached => {
            cx.out.note("read escape sequence");
            Ok(0)
        }
        End::Gone => Err("the process ended without an exit code: its supervisor was killed".into()),
        End::Signaled(n) => Err(Failure::Said(128 + n)),
        End::BrokenPipe => Err(Failure::BrokenPipe),
    }
}

/// Flags of `attach`.
#[derive(clap::Args, Debug)]
pub struct Attach {
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Do not attach STDIN
    #[arg(long)]
    no_stdin: bool,
    /// Proxy all received signals to the process
    #[arg(long, default_value = "true")]
    sig_proxy: bool,
}

impl Verb for Attach {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let name = &words[0];
        let keys = keys::parse(&self.detach_keys)?;
        let engine = cx.engine()?;
        let found = engine.inspect(name, false)?;
        let state = found.state.unwrap_or_default();
        if state.running != Some(true) {
            return Err("you cannot attach to a stopped container, start it first".into());
        }
        if state.paused == Some(true) {
            return Err("you cannot attach to a paused container, unpause it first".into());
        }
        if state.restarting == Some(true) {
            return Err("you cannot attach to a restarting container, wait until it is running".into());
        }
        let config = found.config.unwrap_or_default();
        let tty = config.tty == Some(true);
        let attach = AttachOptions {
            stdin: !self.no_stdin && config.open_stdin == Some(true),
            stdout: true,
            stderr: true,
        };
        if tty && attach.stdin && !terminal::stdin_is_terminal() {
            return Err("the input device is not a TTY: use --no-stdin, or run this in a terminal".into());
        }
        let stream = engine.attach(name, attach)?;
        if tty && let Some((rows, columns)) = terminal::size() {
            // So that a full-screen program draws itself anew.
            let _ = stream.resize(rows, columns);
        }
        follow(cx, stream, &Session { id: name, attach, tty, keys, proxy: self.sig_proxy && !tty })
    }
}

/// Flags of `start`.
#[derive(clap::Args, Debug)]
pub struct Start {
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    attach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Attach container's STDIN
    #[arg(short, long)]
    interactive: bool,
}

impl Verb for Start {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        if !self.attach && !self.interactive {
            return cx.for_each(&words, |name| {
                engine.start(name, None)?;
                Ok(cx.out.line(name)?)
            });
        }
        let [name] = &words[..] else {
            return Err("you cannot start and attach multiple containers at once".into());
        };
        let keys = keys::parse(&self.detach_keys)?;
        let config = engine.inspect(name, false)?.config.unwrap_or_default();
        let tty = config.tty == Some(true);
        let attach = AttachOptions {
            stdin: self.interactive && config.open_stdin == Some(true),
            stdout: true,
            stderr: true,
        };
        let stream = engine.start(name, Some(attach)).map_err(|e| {
            Failure::coded(e.to_string(), if e.exit_code() == 125 { 1 } else { e.exit_code() })
        })?;
        match stream {
            Some(stream) => follow(cx, stream, &Session { id: name, attach, tty, keys, proxy: !tty }),
            None => Ok(0),
        }
    }
}

/// Flags of `exec`.
#[derive(clap::Args, Debug)]
pub struct Exec {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Set environment variables
    #[arg(short, long, value_name = "list")]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "list")]
    env_file: Vec<String>,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Give extended privileges to the command
    #[arg(long)]
    privileged: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(short, long, value_name = "string")]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "string")]
    workdir: Option<String>,
}

impl Verb for Exec {
    fn run(self, cx: &Context, mut words: Vec<String>) -> Outcome {
        let name = words.remove(0);
        let keys = keys::parse(&self.detach_keys)?;
        for e in &self.env {
            crate::args::lists::check_env(e)?;
        }
        if self.tty && self.interactive && !self.detach && !terminal::stdin_is_terminal() {
            return Err("the input device is not a TTY: leave out -t, or run this in a terminal".into());
        }
        let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
        let around = resolve::Surroundings { cwd: &cwd, env: &|n| std::env::var(n).ok() };
        let env = resolve::environment(&self.env_file, &self.env, &around)?;
        let stdin = self.interactive && !self.detach;
        let request = ExecRequest {
            id: None,
            config: docker::ExecConfig {
                attach_stdin: Some(stdin),
                attach_stdout: Some(!self.detach),
                attach_stderr: Some(!self.detach),
                tty: Some(self.tty),
                env: (!env.is_empty()).then_some(env),
                cmd: Some(words),
                privileged: Some(self.privileged),
                user: self.user,
                working_dir: self.workdir,
                ..docker::ExecConfig::default()
            },
            console_size: if self.tty { terminal::size() } else { None },
            detach: self.detach,
        };
        let (_, stream) = cx.engine()?.exec(&name, &request).map_err(|e| {
            let code = if e.exit_code() == 125 { 1 } else { e.exit_code() };
            Failure::coded(e.to_string(), code)
        })?;
        let Some(stream) = stream else { return Ok(0) };
        let options = pump::Options { stdin, stdout: true, stderr: true, tty: self.tty, keys, proxy: None };
        match pump::pump(stream, &options) {
            Ok(end) => ended(cx, end),
            Err(e) => Err(e.to_string().into()),
        }
    }
}
