//! What the tests of this crate share: small stores with layers in them.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use types::{Digest, LayerFormat, LayerPlan, RootfsPlan};

/// A store in a temporary directory.
pub struct Store {
    pub dir: TempDir,
}

impl Store {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A layer of the given format whose content `fill` makes.
    pub fn layer(&self, n: u8, format: LayerFormat, fill: impl Fn(&Path)) -> LayerPlan {
        let mut sum = rustix_digest(self.path());
        sum[0] = n;
        let diff_id = Digest::from_sha256(sum);
        let dir = self.path().join(format!("layer-{n}"));
        std::fs::create_dir(&dir).unwrap();
        fill(&dir);
        let path = match format {
            LayerFormat::Dir => dir,
            LayerFormat::Erofs => {
                let file = self.path().join(format!("layer-{n}.erofs"));
                let out = Command::new("mkfs.erofs").arg("--quiet").arg(&file).arg(&dir).output().unwrap();
                assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                file
            }
        };
        LayerPlan { diff_id, path, format }
    }

    pub fn plan(&self, name: &str, layers: Vec<LayerPlan>) -> RootfsPlan {
        RootfsPlan { layers, writable: self.path().join(name), layer_mounts: self.path().join("run/layers") }
    }

    pub fn mounts(&self) -> PathBuf {
        self.path().join("run/layers")
    }

    /// What is still mounted below this store.
    pub fn mounted(&self) -> usize {
        let here = self.path().to_str().unwrap();
        std::fs::read_to_string("/proc/self/mounts").unwrap().lines().filter(|l| l.contains(here)).count()
    }

    /// Names in the directory of mounts, without the base.
    pub fn left(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.mounts())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n != "base" && n != "empty" && n != ".mounting")
            .collect();
        names.sort();
        names
    }
}

fn rustix_digest(path: &Path) -> [u8; 32] {
    let mut sum = [0; 32];
    for (i, b) in path.as_os_str().as_encoded_bytes().iter().rev().take(31).enumerate() {
        sum[i + 1] = *b;
    }
    sum
}

/// Whether this test can run at all; says why not.
pub fn able(format: LayerFormat) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return false;
    }
    if format == LayerFormat::Erofs {
        if Command::new("mkfs.erofs").arg("--help").output().is_err() {
            eprintln!("skipped: mkfs.erofs is not installed");
            return false;
        }
        if !std::fs::read_to_string("/proc/filesystems").unwrap().contains("erofs") {
            eprintln!("skipped: this kernel has no EROFS");
            return false;
        }
    }
    true
}

/// A path to a descriptor's directory.
pub fn at(fd: &impl std::os::fd::AsRawFd, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{path}", fd.as_raw_fd()))
}
