//! Debian's cloud kernel, for tests that boot it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The unpacked package of a kernel.
pub struct Kernel {
    root: PathBuf,
}

impl Kernel {
    /// From the cache or, once, from Debian; why there is none.
    pub fn get() -> Result<Self, String> {
        let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/.cache");
        let cache = std::env::var_os("DHOW_CACHE").map_or_else(|| default.into(), PathBuf::from);
        let root = cache.join("cloud-kernel");
        if !root.join("boot").exists() {
            fs::create_dir_all(&cache).map_err(|e| e.to_string())?;
            let new = tempfile::tempdir_in(&cache).map_err(|e| e.to_string())?;
            download(new.path())?;
            // Another test may have been faster.
            let _ = fs::rename(new.path(), &root);
        }
        Ok(Self { root })
    }

    /// The bzImage.
    pub fn image(&self) -> Result<PathBuf, String> {
        find(&self.root.join("boot"), &|name| name.starts_with("vmlinuz"))
            .ok_or_else(|| format!("there is no vmlinuz below {}", self.root.display()))
    }

    /// The content of the module with this file name.
    pub fn module(&self, name: &str) -> Result<Vec<u8>, String> {
        let path = find(&self.root.join("lib/modules"), &|file| file == name);
        fs::read(path.ok_or(format!("there is no {name}"))?).map_err(|e| e.to_string())
    }
}

fn download(directory: &Path) -> Result<(), String> {
    let script = "image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -n 1)
        apt-get -q download \"$image\" && dpkg-deb -x ./*.deb . && rm ./*.deb && chmod 755 .";
    let output = Command::new("sh").args(["-euc", script]).current_dir(directory).output();
    let output = output.map_err(|e| format!("sh: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr);
            Err(format!("no package of the kernel linux-image-cloud-amd64: {}", why.trim()))
        }
    }
}

fn find(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        match entry.file_type().ok()?.is_dir() {
            true => find(&path, wanted),
            false => wanted(entry.file_name().to_str()?).then_some(path),
        }
    })
}

/// Mode of a program's file.
pub const PROGRAM: u32 = 0o100755;

/// An archive of these files (name, mode, content) in the format that the kernel unpacks
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
pub fn cpio(files: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Vec::new();
    let trailer = [("TRAILER!!!", 0, Vec::new())];
    for (inode, (name, mode, content)) in files.iter().chain(&trailer).enumerate() {
        let fields =
            [inode as u32 + 1, *mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        archive.extend(b"070701");
        for field in fields {
            archive.extend(format!("{field:08x}").bytes());
        }
        for part in [format!("{name}\0").as_bytes(), content] {
            archive.extend(part);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
    }
    archive
}
