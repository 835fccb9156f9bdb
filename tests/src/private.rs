//! A host's network for one test alone: a namespace in which the firewall may be flushed, interfaces made and programs started
//! that would be in everybody's way. Files, processes and stores are the host's as ever.

use crate::have;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Runs `f` on a thread in a network namespace of its own, in which loopback is up: what it starts is in there, too. `None`, said
/// so, where that cannot be, or one of the programs it needs is missing.
pub fn network<T: Send>(programs: &[&str], f: impl FnOnce() -> T + Send) -> Option<T> {
    if let Some(missing) = ["ip", "nsenter", "unshare"].iter().chain(programs).find(|p| !have(p)) {
        eprintln!("SKIPPED: {missing} is missing");
        return None;
    }
    let inside = || {
        #[allow(deprecated)] // Sound here: a new network namespace invalidates no descriptor.
        let made = rustix::thread::unshare(UnshareFlags::NEWNET);
        if let Err(e) = made {
            eprintln!("SKIPPED: cannot make a network namespace: {e}");
            return None;
        }
        run(&["ip", "link", "set", "lo", "up"]);
        Some(f())
    };
    match std::thread::scope(|s| s.spawn(inside).join()) {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs a program that must succeed; its stdout.
pub fn run(argv: &[&str]) -> String {
    let out = Command::new(argv[0]).args(&argv[1..]).output().unwrap();
    assert!(out.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A machine outside, on a network with the host: a namespace with an interface that is the other end of one of the host's.
#[derive(Debug)]
pub struct Neighbour(Child);

impl Neighbour {
    /// On the other end of the host's new interface `link`, by these addresses with their prefixes.
    pub fn new(link: &str, addresses: &[&str]) -> Self {
        let child = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo there; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut own = Self(child);
        // Until it is in its namespace.
        let mut word = [0; 6];
        own.0.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        let pid = own.0.id().to_string();
        run(&["ip", "link", "add", link, "type", "veth", "peer", "name", "lan", "netns", &pid]);
        run(&["ip", "link", "set", link, "up"]);
        own.run(&["ip", "link", "set", "lo", "up"]);
        for address in addresses {
            own.run(&["ip", "addr", "add", address, "dev", "lan", "nodad"]);
        }
        own.run(&["ip", "link", "set", "lan", "up"]);
        own
    }

    /// A command that runs there.
    pub fn command(&self, argv: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id())).args(argv);
        command
    }

    /// Runs a program there that must succeed; its stdout.
    pub fn run(&self, argv: &[&str]) -> String {
        let out = self.command(argv).output().unwrap();
        assert!(out.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// What a server says to a request for `/group` from there; nothing if there is none.
    pub fn get(&self, address: &str) -> String {
        let file = format!("/proc/{}/ns/net", self.0.id());
        let address = address.parse().unwrap();
        let fetch = || {
            let namespace = std::fs::File::open(file)?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /group HTTP/1.0\r\n\r\n")?;
            let mut said = String::new();
            stream.read_to_string(&mut said).map(|_| said)
        };
        let said: std::io::Result<String> = std::thread::scope(|s| s.spawn(fetch).join()).unwrap();
        said.unwrap_or_default()
    }

    /// Serves `/etc` by HTTP there, until it is dropped.
    pub fn serve(&self, port: u16) -> Server {
        let argv = ["/bin/busybox", "httpd", "-f", "-p", &port.to_string(), "-h", "/etc"];
        Server(self.command(&argv).spawn().unwrap())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program in the background.
#[derive(Debug)]
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
