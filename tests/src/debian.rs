//! A Debian with Python, and with PostgreSQL, as images that people really run, and what asks their web servers.

use crate::have;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SUITE: &str = "bookworm";

/// A tar of a small Debian with Python. Made once, kept beside other build products.
pub fn with_python() -> Option<PathBuf> {
    with("python", "python3")
}

/// The same with PostgreSQL, its benchmark, and what Python needs to ask it.
pub fn with_postgresql() -> Option<PathBuf> {
    with("postgresql", "python3,python3-psycopg2,postgresql")
}

fn with(name: &str, packages: &str) -> Option<PathBuf> {
    if !have("mmdebstrap") {
        println!("skipped: mmdebstrap is not installed");
        return None;
    }
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-cache");
    let tar = cache.join(format!("debian-{SUITE}-{name}-{}.tar", std::env::consts::ARCH));
    if tar.exists() {
        return Some(tar);
    }
    std::fs::create_dir_all(&cache).unwrap();
    let new = tempfile::Builder::new().prefix(".debian-").suffix(".tar").tempfile_in(&cache).unwrap();
    let done = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", &format!("--include={packages}"), SUITE])
        .arg(new.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "mmdebstrap: {}", String::from_utf8_lossy(&done.stderr));
    new.persist(&tar).unwrap();
    Some(tar)
}

/// The status line and body that `GET path` brings.
fn get(address: &str, path: &str) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// The same, once it serves.
pub fn get_soon(address: &str, path: &str) -> String {
    let start = Instant::now();
    loop {
        match get(address, path) {
            Ok(reply) if !reply.is_empty() => return reply,
            other if start.elapsed() > Duration::from_secs(60) => {
                panic!("{address} does not serve: {other:?}")
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
