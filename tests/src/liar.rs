//! A registry in threads of the test that serves what it is told to, truth or not, at the speed it is told to.

use crate::layout::{self, digest};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How one path is answered.
#[derive(Clone, Default)]
pub struct Answer {
    /// Status code; 0 is 200.
    pub status: u16,
    /// Content type, if not empty.
    pub kind: String,
    /// More headers.
    pub headers: Vec<(String, String)>,
    /// Content.
    pub body: Vec<u8>,
    /// Send so many bytes of the content, however often it is asked for, then nothing more, without hanging up.
    pub hang_after: Option<usize>,
    /// Bytes a second; 0 is at once.
    pub speed: usize,
}

/// The registry.
#[derive(Clone)]
pub struct Liar {
    /// `127.0.0.1:PORT`.
    pub host: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Liar {
    /// One that knows nothing yet. Its threads end with the test.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let liar = Self { host, answers: Arc::default(), log: Arc::default() };
        let server = liar.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while server.one(&mut reader, &stream).is_some() {}
                });
            }
        });
        liar.set("/v2/", Answer::default());
        liar
    }

    /// The name of its only image.
    pub fn image(&self) -> String {
        format!("{}/r", self.host)
    }

    /// What it says at a path.
    pub fn set(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Changes what it says at a path.
    pub fn change(&self, path: &str, change: impl FnOnce(&mut Answer)) {
        change(self.answers.lock().unwrap().get_mut(path).unwrap());
    }

    /// How many requests hold these words.
    pub fn requests(&self, words: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|l| l.contains(words)).count()
    }

    /// Serves an image of gzip layers as `r:latest`. Answers the paths of its layers.
    pub fn serve(&self, layers: &[Vec<u8>], arch: &str) -> Vec<String> {
        let config = serde_json::to_vec(&layout::config(layers, arch)).unwrap();
        let packed: Vec<Vec<u8>> = layers.iter().map(|l| layout::gzip(l)).collect();
        self.serve_parts(&config, &packed)
    }

    /// Serves a configuration and blobs as `r:latest`, whether they belong together or not.
    pub fn serve_parts(&self, config: &[u8], blobs: &[Vec<u8>]) -> Vec<String> {
        let descriptor = |kind: &str, bytes: &[u8]| {
            let kind = format!("application/vnd.oci.image.{kind}");
            serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", config),
            "layers": blobs.iter().map(|b| descriptor("layer.v1.tar+gzip", b)).collect::<Vec<_>>(),
        });
        self.blob(config);
        self.manifest(&serde_json::to_vec(&manifest).unwrap());
        blobs.iter().map(|b| self.blob(b)).collect()
    }

    /// Serves bytes under their digest; answers the path.
    pub fn blob(&self, bytes: &[u8]) -> String {
        let path = format!("/v2/r/blobs/{}", digest(bytes));
        self.set(&path, Answer { body: bytes.to_vec(), ..Default::default() });
        path
    }

    /// Serves `r:latest`.
    pub fn manifest(&self, bytes: &[u8]) {
        let kind = "application/vnd.oci.image.manifest.v1+json".into();
        self.set(Self::MANIFEST, Answer { kind, body: bytes.to_vec(), ..Default::default() });
    }

    /// Where the manifest lies.
    pub const MANIFEST: &str = "/v2/r/manifests/latest";

    fn one(&self, reader: &mut BufReader<TcpStream>, mut stream: &TcpStream) -> Option<()> {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut from = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok().filter(|n| *n > 0)?;
            let Some((name, value)) = header.trim().split_once(':') else { break };
            if name.eq_ignore_ascii_case("range") {
                from = value.trim().strip_prefix("bytes=")?.trim_end_matches('-').parse().ok()?;
            }
        }
        self.log.lock().unwrap().push(format!("{method} {target} from={from}"));
        let found = self.answers.lock().unwrap().get(target.split('?').next()?).cloned();
        let a = found.unwrap_or(Answer { status: 404, ..Default::default() });
        let body = a.body.get(from..).unwrap_or_default();
        let status = if a.status == 0 { 200 } else { a.status };
        let status = if from > 0 { 206 } else { status };
        let mut head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n", body.len());
        if from > 0 {
            head += &format!("Content-Range: bytes {from}-{}/{}\r\n", a.body.len() - 1, a.body.len());
        }
        if !a.kind.is_empty() {
            head += &format!("Content-Type: {}\r\n", a.kind);
        }
        for (name, value) in &a.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        if method == "HEAD" {
            return Some(());
        }
        if let Some(at) = a.hang_after {
            stream.write_all(&body[..at.saturating_sub(from).min(body.len())]).ok()?;
            std::thread::sleep(Duration::from_secs(60));
            return None;
        }
        if a.speed == 0 {
            return stream.write_all(body).ok();
        }
        for piece in body.chunks((a.speed / 20).max(1)) {
            stream.write_all(piece).ok()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(())
    }
}
