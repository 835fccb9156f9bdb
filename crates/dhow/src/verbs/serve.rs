//! `serve`: the Docker Engine API at a socket.

use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use api::{Listener, Policy, Restrict, ServeOptions, Settings};
use std::path::{Path, PathBuf};

/// Flags of `serve`.
#[derive(clap::Args, Debug)]
pub struct Serve {
    /// Group that may use the socket, by name or number
    #[arg(short = 'G', long, value_name = "string")]
    group: Option<String>,
    /// TCP address to listen at as well (host:port); needs --tlscacert, --tlscert and --tlskey
    #[arg(short = 'H', long, value_name = "string")]
    host: Vec<String>,
    /// Change nothing: every request that would is refused
    #[arg(long)]
    readonly: bool,
    /// Keep clients behind rules: default, vm, bind=DIRECTORY, image=PATTERN, ports=FIRST-LAST
    #[arg(long, value_name = "rule")]
    restrict: Vec<String>,
    /// Path of the Unix socket (default /run/dhow/dhow.sock, or $XDG_RUNTIME_DIR/dhow.sock)
    #[arg(long, value_name = "path")]
    socket: Vec<PathBuf>,
    /// Trust clients whose certificate this authority signed
    #[arg(long, value_name = "file")]
    tlscacert: Option<PathBuf>,
    /// Certificate of this server
    #[arg(long, value_name = "file")]
    tlscert: Option<PathBuf>,
    /// Key of this server
    #[arg(long, value_name = "file")]
    tlskey: Option<PathBuf>,
    /// Run workloads whose client names no runtime as microVMs
    #[arg(long)]
    vm: bool,
}

impl Verb for Serve {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        // First of all: they are numbers until they are owned.
        let inherited = sys::inherited::listen_fds();
        sys::memory::share_heaps(2);
        let restrict = (!self.restrict.is_empty()).then(|| Restrict::parse(&self.restrict)).transpose();
        let policy = Policy { read_only: self.readonly, restrict: restrict.map_err(|e| e.to_string())? };
        // A store that cannot be opened is said now, and not to the first client.
        let run = cx.engine()?.paths().run.clone();
        let listeners = self.listeners(inherited, &run)?;
        let mut said: Vec<String> =
            listeners.iter().map(|l| format!("listening at {}", l.address())).collect();
        if let Some(first) = listeners.first() {
            said.push(format!("for Docker's clients: export DOCKER_HOST={}", first.address()));
        }
        // Whoever started the server need not stay to read this.
        let _ = cx.out.line(&said.join("\n"));
        let settings =
            Settings { store: cx.options().clone(), build: crate::BUILD, policy, vm_by_default: self.vm };
        let ready = || drop(sys::inherited::notify("READY=1"));
        api::serve(ServeOptions { listeners, settings }, ready)
            .map_err(|e| format!("the server failed: {e}"))?;
        Ok(0)
    }
}

impl Serve {
    fn listeners(&self, inherited: Vec<std::os::fd::OwnedFd>, run: &Path) -> Result<Vec<Listener>, Failure> {
        let default = run.join("dhow.sock");
        let group = self.group.as_deref().map(group).transpose()?;
        let by_systemd = !inherited.is_empty();
        let taken: Result<Vec<Listener>, _> = inherited.into_iter().map(Listener::inherited).collect();
        let mut out = taken.map_err(|e| e.to_string())?;
        let mut paths = self.socket.clone();
        if paths.is_empty() && !by_systemd {
            paths.push(default_socket(default));
        }
        if group.is_some() {
            open_the_way(run, &paths)?;
        }
        for path in paths {
            let path = std::path::absolute(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            out.push(Listener::unix(&path, 0o660, group).map_err(|e| e.to_string())?);
        }
        for host in &self.host {
            let at = host.strip_prefix("tcp://").unwrap_or(host);
            let (Some(ca), Some(cert), Some(key)) = (&self.tlscacert, &self.tlscert, &self.tlskey) else {
                return Err(format!(
                    "tcp://{at} is served with mutual TLS only: give --tlscacert, --tlscert and --tlskey"
                )
                .into());
            };
            out.push(Listener::tls(at, ca, cert, key).map_err(|e| e.to_string())?);
        }
        Ok(out)
    }
}

/// A socket in the store's own directory is reached through it by those who are not root; what else lies there stays shut.
fn open_the_way(run: &Path, sockets: &[PathBuf]) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    if !sockets.iter().any(|socket| socket.parent() == Some(run)) {
        return Ok(());
    }
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    let shut = || {
        for entry in std::fs::read_dir(run)?.flatten() {
            if entry.file_type()?.is_dir() {
                set(&entry.path(), 0o700)?;
            }
        }
        set(run, 0o711)
    };
    shut().map_err(|e: std::io::Error| format!("cannot open {} to the group: {e}", run.display()).into())
}

/// Of root's default store in `/run/dhow`; a user's own below `$XDG_RUNTIME_DIR`.
fn default_socket(of_store: PathBuf) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return of_store;
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        Some(dir) => Path::new(&dir).join("dhow.sock"),
        None => of_store,
    }
}

/// The number of a group of this host.
fn group(name: &str) -> Result<u32, Failure> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = std::fs::read_to_string("/etc/group").map_err(|e| format!("cannot read /etc/group: {e}"))?;
    let find = |line: &str| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    text.lines().find_map(find).ok_or_else(|| format!("there is no group {name:?} on this host").into())
}
