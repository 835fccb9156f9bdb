//! As much of HTTP/1.1 (RFC 9112) as a page, its JSON and a health check need: one request a connection.

use crate::facts::Facts;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the processor is measured.
const SPELL: Duration = Duration::from_millis(200);
/// Bytes by which the network is measured.
const ZEROS: usize = 32 << 20;

/// Serves until killed, on `[ADDRESS:]PORT`.
pub fn serve(address: &str) -> ExitCode {
    let listener = match address.parse::<u16>() {
        // Both families where there are two.
        Ok(port) => TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))),
        Err(_) => TcpListener::bind(address),
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(e) => {
            eprintln!("hello: cannot listen on {address}: {e}");
            return ExitCode::FAILURE;
        }
    };
    if let Ok(local) = listener.local_addr() {
        println!("Listening on port {}", local.port());
    }
    for stream in listener.incoming().flatten() {
        // A slow client keeps nobody else waiting.
        let _ = std::thread::Builder::new().stack_size(128 * 1024).spawn(|| answer(stream));
    }
    ExitCode::SUCCESS
}

fn answer(mut stream: TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?.take(16 * 1024));
    let mut request = String::new();
    reader.read_line(&mut request).ok()?;
    // The rest of the head is read, so that closing does not reset the connection.
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let mut words = request.split_whitespace();
    let (method, path) = (words.next()?, words.next()?);
    if (method, path) == ("GET", "/bytes") {
        return send_zeros(&mut stream);
    }
    let (status, kind, body) = match (method, path.split('?').next()?) {
        ("GET" | "HEAD", "/") => ("200 OK", "text/html", Facts::gather().html()),
        ("GET" | "HEAD", "/json") => ("200 OK", "application/json", Facts::gather().json()),
        ("GET", "/rounds") => ("200 OK", "text/plain", format!("{}\n", rounds())),
        ("GET" | "HEAD", "/healthz") => ("200 OK", "text/plain", "ok\n".into()),
        ("GET" | "HEAD", _) => ("404 Not Found", "text/plain", "not found\n".into()),
        _ => ("405 Method Not Allowed", "text/plain", "only GET and HEAD\n".into()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    if method == "GET" {
        stream.write_all(body.as_bytes()).ok()?;
    }
    Some(())
}

/// How many rounds of arithmetic this processor does in a while: a measure to be compared, not one by itself.
fn rounds() -> u64 {
    let (begin, mut state, mut rounds) = (Instant::now(), 1u64, 0);
    while begin.elapsed() < SPELL {
        for _ in 0..10_000 {
            // xorshift64, Marsaglia 2003
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        rounds += u64::from(std::hint::black_box(state) != 0);
    }
    rounds
}

/// Many zeros, for whoever measures the network.
fn send_zeros(stream: &mut TcpStream) -> Option<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {ZEROS}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    let piece = [0; 64 << 10];
    for _ in 0..ZEROS / piece.len() {
        stream.write_all(&piece).ok()?;
    }
    Some(())
}
