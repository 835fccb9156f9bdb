//! `dhow serve` over a store, and its clients.

use crate::{Store, busybox, have};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Its socket.
    pub socket: PathBuf,
}

/// What a server answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers, their names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, put together where it came in chunks.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// What an error says.
    pub fn message(&self) -> String {
        let body = self.json();
        body["message"].as_str().unwrap_or_else(|| panic!("no message: {} {body}", self.status)).to_owned()
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// A store with an image and a server over it, where this host can have them.
pub fn served(args: &[&str]) -> Option<(Store, Server)> {
    let store = busybox::store()?;
    let server = Server::start(&store, args);
    Some((store, server))
}

/// The body that makes a container which does nothing.
pub fn sleeper() -> serde_json::Value {
    serde_json::json!({"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}})
}

impl Server {
    /// Makes a container.
    pub fn create(&self, name: &str, body: serde_json::Value) -> Answer {
        self.ask("POST", &format!("/containers/create?name={name}"), Some(&body))
    }

    /// Serves a store at the socket of its run directory.
    pub fn start(store: &Store, args: &[&str]) -> Self {
        Self::at(store, store.run().join("api.sock"), args)
    }

    /// Serves a store at a socket.
    pub fn at(store: &Store, socket: PathBuf, args: &[&str]) -> Self {
        let mut command = store.command(&["serve", "--socket", socket.to_str().unwrap()]);
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.starts_with("listening at unix://"), "dhow serve: {line:?}");
        // Nobody reads what else it says; its pipe must not be full.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child, socket }
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// `DOCKER_HOST`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The `docker` command against it.
    pub fn docker(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", self.address()).env("DOCKER_CLI_HINTS", "false").args(args);
        command
    }

    /// Runs it.
    pub fn out(&self, args: &[&str]) -> Output {
        self.docker(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs what must succeed; its stdout without the last line's end.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.out(args);
        assert!(
            out.status.success(),
            "docker {args:?}: {:?}: {}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
    }

    /// Runs what must fail; its exit code and what it said.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let out = self.out(args);
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(!out.status.success(), "docker {args:?} succeeded: {said}");
        (out.status.code().unwrap(), said)
    }

    /// One request, on a connection of its own.
    pub fn ask(&self, method: &str, path: &str, body: Option<&serde_json::Value>) -> Answer {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    /// Sends these bytes and reads the answer to its end.
    pub fn send(&self, bytes: &str) -> Answer {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        // A server that refuses need not read all of it.
        let _ = stream.write_all(bytes.as_bytes());
        let mut all = Vec::new();
        // Nor does it wait until all is read that it does not want.
        let _ = stream.read_to_end(&mut all);
        parse(&all)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A store, served; none, said so, where there is no `docker` or no busybox.
pub fn for_docker() -> Option<(Store, Server)> {
    if !have("docker") {
        eprintln!("SKIPPED: the docker command is missing");
        return None;
    }
    let store = busybox::store()?;
    let server = Server::start(&store, &[]);
    Some((store, server))
}

fn parse(all: &[u8]) -> Answer {
    let end = all.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(all)));
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(": "))
        .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
        .collect();
    let mut body = &all[end + 4..];
    let mut whole = Vec::new();
    if headers.iter().any(|(n, v)| n == "transfer-encoding" && v == "chunked") {
        while let Some(line) = body.windows(2).position(|w| w == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&body[..line]).unwrap(), 16).unwrap();
            whole.extend_from_slice(&body[line + 2..line + 2 + size]);
            body = &body[line + 2 + size + 2..];
            if size == 0 {
                break;
            }
        }
    } else {
        whole.extend_from_slice(body);
    }
    Answer { status, headers, body: whole }
}
