//! A store in a temporary directory, Debian's registry, and a registry that lies.
#![allow(dead_code)] // Each test file uses its own part.

pub mod liar;
pub mod world;

use image::{ImageStore, LoadFrom, Quiet};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use types::{Digest, ImageRef};

pub struct Store {
    pub dir: tempfile::TempDir,
    pub images: ImageStore,
}

impl Store {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path());
        Self { dir, images }
    }

    /// Files below the store, the database and locks aside.
    pub fn files(&self) -> Vec<String> {
        fn walk(dir: &Path, out: &mut Vec<String>, base: &Path) {
            for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if e.file_type().unwrap().is_dir() {
                    walk(&e.path(), out, base);
                } else {
                    out.push(e.path().strip_prefix(base).unwrap().display().to_string());
                }
            }
        }
        let mut out = Vec::new();
        walk(self.dir.path(), &mut out, self.dir.path());
        out.retain(|f| !f.starts_with("state.db") && !f.ends_with(".lock"));
        out.sort();
        out
    }
}

pub fn open(root: &Path) -> ImageStore {
    let db = state::Db::open(&root.join("state.db")).unwrap();
    ImageStore::open(root, Rc::new(db)).unwrap()
}

/// A tar of a few files; `seed` makes it another one, `size` is that of the largest file.
pub fn layer_tar(seed: u64, size: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, data: &[u8]| {
        let mut h = tar::Header::new_ustar();
        h.set_mode(0o644);
        h.set_mtime(1_700_000_000);
        h.set_size(data.len() as u64);
        tar.append_data(&mut h, name, data).unwrap();
    };
    add("etc/seed", seed.to_string().as_bytes());
    // Bytes that do not compress.
    let mut x = seed.wrapping_mul(0x9e3779b97f4a7c15) | 1;
    let big: Vec<u8> = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    })
    .take(size)
    .collect();
    add("big", &big);
    tar.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut z = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    z.write_all(bytes).unwrap();
    z.finish().unwrap()
}

pub fn sha(bytes: &[u8]) -> Digest {
    image::manifest::digest_of(bytes)
}

pub fn config(diff_ids: &[Digest], arch: &str) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({
        "created": "2024-01-02T03:04:05Z", "architecture": arch, "os": "linux",
        "config": {"Cmd": ["/bin/true"], "Env": ["A=b"], "Labels": {"who": "test"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "test"}],
    }))
    .unwrap()
}

pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut h = tar::Header::new_ustar();
        h.set_mode(0o644);
        h.set_size(data.len() as u64);
        // Hostile names are written as they are.
        h.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        h.set_cksum();
        tar.append(&h, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A docker-archive of one image with these layers.
pub fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|l| sha(l)).collect();
    let config = config(&diff_ids, types::Platform::host().architecture.as_str());
    let config_name = format!("{}.json", sha(&config).hex());
    let names: Vec<String> = (0..layers.len()).map(|i| format!("l{i}/layer.tar")).collect();
    let manifest = serde_json::to_vec(&serde_json::json!([
        {"Config": config_name, "RepoTags": [name], "Layers": names}
    ]))
    .unwrap();
    let mut files: Vec<(&str, &[u8])> = vec![(&config_name, &config)];
    files.extend(names.iter().zip(layers).map(|(n, l)| (n.as_str(), l.as_slice())));
    files.push(("manifest.json", &manifest));
    archive(&files)
}

pub fn load(store: &ImageStore, bytes: &[u8]) -> Result<Vec<(Digest, Vec<ImageRef>)>, image::ImageError> {
    let mut input = bytes;
    store.load(LoadFrom::Stream(&mut input), None, &Quiet)
}

/// Debian's `docker-registry` on a port of its own.
pub struct RegistryServer {
    child: Child,
    pub host: String,
    pub dir: tempfile::TempDir,
}

impl RegistryServer {
    /// None if the program is not there; then the reason was printed.
    pub fn start() -> Option<Self> {
        Self::start_with("", "")
    }

    /// With more lines for its configuration: below `http`, and at the top.
    pub fn start_with(http: &str, top: &str) -> Option<Self> {
        let found = std::env::var_os("PATH")
            .is_some_and(|p| std::env::split_paths(&p).any(|d| d.join("docker-registry").exists()));
        if !found {
            println!("skipped: docker-registry is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let yaml = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: false}}, level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}\n{top}\n",
            dir.path().join("data").display()
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, yaml).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, host: format!("127.0.0.1:{port}"), dir };
        let start = Instant::now();
        while TcpStream::connect(&server.host).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    /// How many requests of the access log hold all these words.
    pub fn requests(&self, words: &[&str]) -> usize {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        log.lines().filter(|l| l.starts_with("127.0.0.1 ") && words.iter().all(|w| l.contains(w))).count()
    }
}

impl Drop for RegistryServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
