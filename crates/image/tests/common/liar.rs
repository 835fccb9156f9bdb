//! A registry in a thread that serves what it is told to, truth or not.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use types::Digest;

/// How one path is answered.
#[derive(Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub kind: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Hang up after so many bytes of the body, as long as this counter is above zero.
    pub break_at: Option<(usize, usize)>,
    /// Send the head and nothing more.
    pub hang: bool,
    /// Send so many bytes and no more, but hold the connection.
    pub stall_at: Option<usize>,
    /// Leave out Content-Length, end by hanging up.
    pub chunked: bool,
    /// Only with this Authorization.
    pub auth: Option<(String, String)>,
    pub ranges: bool,
    /// What the next request gets instead.
    pub then: Option<Box<Answer>>,
}

#[derive(Clone)]
pub struct Liar {
    pub host: String,
    pub answers: Arc<Mutex<HashMap<String, Answer>>>,
    pub log: Arc<Mutex<Vec<String>>>,
}

impl Liar {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let liar = Self { host, answers: Arc::default(), log: Arc::default() };
        let server = liar.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                std::thread::spawn(move || server.serve(stream));
            }
        });
        liar.set("/v2/", Answer { status: 200, ..Default::default() });
        liar
    }

    pub fn set(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    pub fn logged(&self, words: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|l| l.contains(words)).count()
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while self.one(&mut reader, &stream).is_some() {}
    }

    fn one(&self, reader: &mut BufReader<TcpStream>, mut stream: &TcpStream) -> Option<()> {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = HashMap::new();
        loop {
            let mut h = String::new();
            reader.read_line(&mut h).ok().filter(|n| *n > 0)?;
            match h.trim().split_once(':') {
                Some((k, v)) => headers.insert(k.to_ascii_lowercase(), v.trim().to_owned()),
                None => break,
            };
        }
        let range = headers.get("range").cloned().unwrap_or_default();
        let auth = headers.get("authorization").cloned().unwrap_or_default();
        let mut sent = vec![0; headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut sent).ok()?;
        let text = if method == "POST" { String::from_utf8_lossy(&sent).into_owned() } else { String::new() };
        self.log.lock().unwrap().push(format!("{method} {target} range={range} auth={auth} {text}"));
        let path = target.split('?').next()?;
        // An answer may be for one method only.
        let own = format!("{method} {path}");
        let mut answers = self.answers.lock().unwrap();
        let key = if answers.contains_key(&own) { own.as_str() } else { path };
        let found = answers.get(key).cloned();
        if let Some(then) = found.as_ref().and_then(|a| a.then.clone()) {
            answers.insert(key.to_owned(), *then);
        }
        drop(answers);
        let mut a = found.unwrap_or(Answer { status: 404, ..Default::default() });
        if let Some((wanted, challenge)) = &a.auth
            && auth != *wanted
        {
            write!(stream, "HTTP/1.1 401 No\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n")
                .ok()?;
            return Some(());
        }
        let mut from = 0;
        if let (true, Some(start)) = (a.ranges, range.strip_prefix("bytes=")) {
            from = start.trim_end_matches('-').parse().ok()?;
            let len = a.body.len();
            a.status = 206;
            a.headers.push(("Content-Range".into(), format!("bytes {from}-{}/{len}", len - 1)));
        }
        let body = &a.body[from..];
        let mut head = format!("HTTP/1.1 {} x\r\n", a.status);
        if !a.kind.is_empty() {
            head += &format!("Content-Type: {}\r\n", a.kind);
        }
        for (k, v) in &a.headers {
            head += &format!("{k}: {v}\r\n");
        }
        if a.chunked {
            head += "Connection: close\r\n";
        } else {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        if a.hang {
            std::thread::sleep(std::time::Duration::from_secs(20));
            return None;
        }
        if method == "HEAD" {
            return Some(());
        }
        if let Some((at, left)) = a.break_at
            && left > 0
        {
            if let Some(stored) = self.answers.lock().unwrap().get_mut(path) {
                stored.break_at = Some((at, left - 1));
            }
            stream.write_all(&body[..at.min(body.len())]).ok()?;
            return None;
        }
        if let Some(at) = a.stall_at {
            stream.write_all(&body[..at.min(body.len())]).ok()?;
            // Until the other side hangs up.
            let _ = reader.read(&mut [0]);
            return None;
        }
        stream.write_all(body).ok()?;
        if a.chunked { None } else { Some(()) }
    }

    /// Serves an honest image of one gzip layer under `r:latest`; answers the manifest and the layer's digest.
    pub fn image(&self, tar: &[u8], arch: &str) -> (Vec<u8>, Digest) {
        let layer = super::gzip(tar);
        let config = super::config(&[super::sha(tar)], arch);
        let digest = super::sha(&layer);
        let manifest = manifest(&config, &[(digest, layer.len())]);
        self.blob(&config);
        self.blob(&layer);
        self.manifest("latest", &manifest);
        (manifest, digest)
    }

    pub fn blob(&self, bytes: &[u8]) {
        let answer = Answer { status: 200, body: bytes.to_vec(), ranges: true, ..Default::default() };
        self.set(&blob_path(&super::sha(bytes)), answer);
    }

    pub fn manifest(&self, tag: &str, bytes: &[u8]) {
        let kind = image::manifest::OCI_MANIFEST.to_owned();
        self.set(
            &manifest_path(tag),
            Answer { status: 200, kind, body: bytes.to_vec(), ..Default::default() },
        );
    }

    pub fn change(&self, path: &str, change: impl FnOnce(&mut Answer)) {
        change(self.answers.lock().unwrap().get_mut(path).unwrap());
    }
}

pub fn blob_path(d: &Digest) -> String {
    format!("/v2/r/blobs/{d}")
}

pub fn manifest_path(tag: &str) -> String {
    format!("/v2/r/manifests/{tag}")
}

pub fn manifest(config: &[u8], layers: &[(Digest, usize)]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|(d, n)| serde_json::json!({"mediaType": image::manifest::OCI_LAYER_GZIP, "digest": d, "size": n}))
        .collect();
    serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": image::manifest::OCI_MANIFEST, "layers": layers,
        "config": {"mediaType": image::manifest::OCI_CONFIG, "digest": super::sha(config), "size": config.len()},
    }))
    .unwrap()
}
