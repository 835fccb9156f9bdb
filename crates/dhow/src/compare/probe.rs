//! What a wall costs in CPU and network, and what it leaves within reach: measured with the embedded image, inside a hull
//! and as a plain process of this host.

use crate::compare::Metric;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// For one answer; an emulated machine on a busy host takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the embedded program did in a place.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Rounds of arithmetic.
    rounds: f64,
    /// Bytes each second.
    bytes: f64,
}

impl Speed {
    /// Asks the program that serves there.
    pub fn of(address: SocketAddr) -> std::io::Result<Self> {
        let rounds = String::from_utf8_lossy(&get(address, "/rounds")?.0).trim().parse();
        let rounds = rounds.map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidData))?;
        let (body, took) = get(address, "/bytes")?;
        Ok(Self { rounds, bytes: body.len() as f64 / took.as_secs_f64().max(1e-9) })
    }

    /// As shares of what the host does.
    pub fn against(self, host: Self) -> [(Metric, f64); 2] {
        [(Metric::Cpu, self.rounds / host.rounds), (Metric::Network, self.bytes / host.bytes)]
    }
}

/// The body of an answer, and how long that took to come.
fn get(address: SocketAddr, path: &str) -> std::io::Result<(Vec<u8>, Duration)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut stream = BufReader::with_capacity(256 << 10, stream);
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        line.clear();
    }
    let begin = Instant::now();
    let mut body = Vec::new();
    stream.take(1 << 30).read_to_end(&mut body)?;
    Ok((body, begin.elapsed()))
}

/// The embedded program as a process of this host, which ends when this is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What this host does without any wall.
pub fn host(program: &[u8]) -> std::io::Result<Speed> {
    let file = rustix::fs::memfd_create("hello", rustix::fs::MemfdFlags::CLOEXEC)?;
    std::fs::File::from(file.try_clone()?).write_all(program)?;
    let child = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .args(["--http", "127.0.0.1:0"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut server = Server(child);
    let mut line = String::new();
    let said = server.0.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    BufReader::new(said).read_line(&mut line)?;
    let port = line.trim().rsplit(' ').next().and_then(|p| p.parse().ok());
    Speed::of((Ipv4Addr::LOCALHOST, port.ok_or(std::io::ErrorKind::InvalidData)?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_as_fast_as_itself() {
        let speed = host(crate::HELLO).unwrap();
        assert!(speed.rounds > 0.0 && speed.bytes > 0.0, "{speed:?}");
        assert_eq!(speed.against(speed), [(Metric::Cpu, 1.0), (Metric::Network, 1.0)]);
        assert!(host(b"no program").is_err());
    }
}
