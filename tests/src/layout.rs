//! Images made byte by byte: tars with any header, OCI layouts, docker archives; and trees written down to be
//! compared.

use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The architecture of this host as images name it.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `sha256:<hex>`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

/// SHA-256 as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Gzip, fast.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut z = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    z.write_all(bytes).unwrap();
    z.finish().unwrap()
}

/// Bytes that do not compress; `seed` makes them others.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    std::iter::repeat_with(next).take(size).collect()
}

/// A tar under construction.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// One entry with everything said: a ustar header, changed by `change`, and the data.
    pub fn entry(
        &mut self,
        kind: u8,
        path: &[u8],
        data: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> &mut Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        // The raw field: the library refuses the very paths that are wanted here.
        if path.len() > 100 {
            self.pax(&[("path", path)]);
        }
        let short = &path[..path.len().min(100)];
        header.as_old_mut().name[..short.len()].copy_from_slice(short);
        change(&mut header);
        header.set_cksum();
        self.raw(header.as_bytes(), data)
    }

    /// A header block and data as they are.
    pub fn raw(&mut self, header: &[u8], data: &[u8]) -> &mut Self {
        self.0.extend(header);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// An extended header for the next entry.
    pub fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend(format!("{length} {key}=").bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry(b'x', b"pax", &data, |_| {})
    }

    /// A long name (`L`) or long link (`K`) in GNU's form, for the next entry.
    pub fn gnu_long(&mut self, kind: u8, value: &[u8]) -> &mut Self {
        let data = [value, b"\0"].concat();
        self.entry(kind, b"././@LongLink", &data, |h| {
            h.as_mut_bytes()[257..265].copy_from_slice(b"ustar  \0")
        })
    }

    /// A file of mode 0644.
    pub fn file(&mut self, path: &str, data: &[u8]) -> &mut Self {
        self.entry(b'0', path.as_bytes(), data, |_| {})
    }

    /// A program.
    pub fn program(&mut self, path: &str, data: &[u8]) -> &mut Self {
        self.entry(b'0', path.as_bytes(), data, |h| h.set_mode(0o755))
    }

    /// A directory of mode 0755.
    pub fn dir(&mut self, path: &str) -> &mut Self {
        self.entry(b'5', path.as_bytes(), b"", |_| {})
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.link(b'2', path, target)
    }

    /// A hard link.
    pub fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        self.link(b'1', path, target)
    }

    fn link(&mut self, kind: u8, path: &str, target: &str) -> &mut Self {
        let short = &target.as_bytes()[..target.len().min(100)];
        self.entry(kind, path.as_bytes(), b"", |h| {
            h.as_old_mut().linkname[..short.len()].copy_from_slice(short);
        })
    }

    /// The tar with its end.
    pub fn end(&self) -> Vec<u8> {
        let mut all = self.0.clone();
        all.resize(all.len() + 1024, 0);
        all
    }

    /// The tar without its end.
    pub fn open_end(&self) -> Vec<u8> {
        self.0.clone()
    }
}

/// The static busybox of the host in a layer of its own, with `sh`, `sleep` and others as links.
pub fn busybox_layer() -> Option<Vec<u8>> {
    let path = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists());
    let Some(path) = path else {
        println!("skipped: busybox-static is not installed");
        return None;
    };
    let mut tar = Tar::new();
    tar.dir("bin/").program("bin/busybox", &std::fs::read(path).unwrap());
    for name in ["sh", "sleep", "cat", "true", "ls", "stat"] {
        tar.hard_link(&format!("bin/{name}"), "bin/busybox");
    }
    Some(tar.end())
}

/// How the bytes of a layer travel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As they are.
    Plain,
    /// Gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Packing {
    /// Media type and bytes.
    pub fn pack(self, tar: &[u8]) -> (&'static str, Vec<u8>) {
        match self {
            Self::Plain => ("application/vnd.oci.image.layer.v1.tar", tar.to_vec()),
            Self::Gzip => ("application/vnd.oci.image.layer.v1.tar+gzip", gzip(tar)),
            Self::Zstd => ("application/vnd.oci.image.layer.v1.tar+zstd", zstd::encode_all(tar, 1).unwrap()),
        }
    }
}

/// The configuration of an image with these layers.
pub fn config(layers: &[Vec<u8>], arch: &str) -> serde_json::Value {
    let diff_ids: Vec<String> = layers.iter().map(|l| digest(l)).collect();
    serde_json::json!({
        "created": "2024-01-02T03:04:05Z", "architecture": arch, "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": {"who": "test"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": layers.iter().map(|_| serde_json::json!({"created_by": "test"})).collect::<Vec<_>>(),
    })
}

/// An OCI image layout in a directory.
pub struct Layout {
    dir: PathBuf,
    manifests: Vec<serde_json::Value>,
}

impl Layout {
    /// An empty one.
    pub fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        std::fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir: dir.to_owned(), manifests: Vec::new() }
    }

    /// Stores bytes; answers their descriptor.
    pub fn blob(&self, kind: &str, bytes: &[u8]) -> serde_json::Value {
        std::fs::write(self.dir.join("blobs/sha256").join(hex(bytes)), bytes).unwrap();
        serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
    }

    /// Stores an image of these layers and answers the descriptor of its manifest.
    pub fn image(&self, layers: &[Vec<u8>], packing: Packing, arch: &str) -> serde_json::Value {
        let config = serde_json::to_vec(&config(layers, arch)).unwrap();
        let config = self.blob("application/vnd.oci.image.config.v1+json", &config);
        let layers: Vec<_> = layers
            .iter()
            .map(|l| {
                let (kind, bytes) = packing.pack(l);
                self.blob(kind, &bytes)
            })
            .collect();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            serde_json::json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
        let mut descriptor = self.blob(kind, &serde_json::to_vec(&manifest).unwrap());
        descriptor["platform"] = serde_json::json!({"os": "linux", "architecture": arch});
        descriptor
    }

    /// Stores an index of manifests and answers its descriptor.
    pub fn index(&self, manifests: &[serde_json::Value]) -> serde_json::Value {
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
        self.blob(kind, &serde_json::to_vec(&index).unwrap())
    }

    /// Names a manifest or index. Both spellings: tools read a tag, the specification has a whole name.
    pub fn name(&mut self, mut descriptor: serde_json::Value, name: &str) {
        descriptor["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        self.manifests.push(descriptor);
        let index = serde_json::json!({"schemaVersion": 2, "manifests": self.manifests});
        std::fs::write(self.dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// A docker-archive of one image.
pub fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = serde_json::to_vec(&config(layers, arch())).unwrap();
    let config_name = format!("{}.json", hex(&config));
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
    let mut tar = Tar::new();
    tar.file(&config_name, &config);
    for (name, layer) in names.iter().zip(layers) {
        tar.file(name, layer);
    }
    tar.file("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    tar.end()
}

/// What is known of each path of a tree: type, mode, owner, size, links, mtime, device, target, xattrs, content.
pub type Snapshot = BTreeMap<PathBuf, String>;

/// Writes a tree down, without crossing into other file systems mounted on it.
pub fn snapshot(root: &Path) -> Snapshot {
    let mut all = Snapshot::new();
    let device = std::fs::metadata(root.join(".")).unwrap().dev();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = if path.as_os_str().is_empty() { root.join(".") } else { root.join(&path) };
        let meta = std::fs::symlink_metadata(&full).unwrap();
        let kind = meta.file_type();
        if kind.is_dir() && meta.dev() != device {
            continue;
        }
        let mut text = format!(
            "{:o} {}:{} {}.{:09}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        if !kind.is_dir() {
            text += &format!(" links={}", meta.nlink());
        }
        if kind.is_file() {
            text += &format!(" size={} {}", meta.len(), content(&full));
        } else if kind.is_symlink() {
            text += &format!(" -> {:?}", std::fs::read_link(&full).unwrap());
        } else if kind.is_char_device() || kind.is_block_device() {
            text += &format!(" rdev={:x}", meta.rdev());
        } else if kind.is_dir() {
            todo.extend(std::fs::read_dir(&full).unwrap().map(|e| path.join(e.unwrap().file_name())));
        }
        for (name, value) in xattrs(&full) {
            text += &format!(" {name}={value:?}");
        }
        all.insert(path, text);
    }
    all
}

fn content(path: &Path) -> String {
    let mut file = std::fs::File::open(path).unwrap();
    let (mut sum, mut buf) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        match file.read(&mut buf).unwrap() {
            0 => return sum.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect(),
            n => sum.update(&buf[..n]),
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let n = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names = names[..n].split(|b| *b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
            (String::from_utf8_lossy(name).into_owned(), value[..n].to_vec())
        })
        .collect()
}

/// Every difference between two trees, one a line; empty if there is none.
pub fn differences(ours: &Snapshot, theirs: &Snapshot) -> String {
    let paths: std::collections::BTreeSet<&PathBuf> = ours.keys().chain(theirs.keys()).collect();
    let mut out = String::new();
    for path in paths {
        let (a, b) = (ours.get(path), theirs.get(path));
        if a != b {
            let show = |s: Option<&String>| s.map_or("nothing".to_owned(), |s| s.chars().take(300).collect());
            out += &format!("{path:?}\n    ours:   {}\n    theirs: {}\n", show(a), show(b));
        }
    }
    out
}
