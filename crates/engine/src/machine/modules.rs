//! Which modules of a kernel a guest needs, and in which order they load.

use crate::{EngineError, Result};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Without these there is no guest.
const REQUIRED: &[&str] =
    &["virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport", "erofs", "overlay", "ext4"];
/// These are used where they are.
const WANTED: &[&str] = &["virtio_net", "virtio_rng", "virtio_balloon", "virtiofs", "crc32c_generic"];

/// Most bytes of a module, decompressed; the largest that kernels come with have a few million.
const LARGEST: u64 = 64 << 20;

/// Modules of one kernel: files by name, and the names of what is built in.
pub(super) struct Modules {
    files: HashMap<String, PathBuf>,
    built_in: Vec<String>,
}

/// A module that is to be loaded.
struct Module {
    name: String,
    bytes: Vec<u8>,
}

/// A module's name has underscores, its file may have hyphens.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

impl Modules {
    /// Those below `/lib/modules/VERSION` of a kernel; none where there is no directory.
    pub(super) fn find(dir: Option<&Path>) -> Result<Self> {
        let mut all = Self { files: HashMap::new(), built_in: Vec::new() };
        let Some(dir) = dir else { return Ok(all) };
        let mut left = vec![dir.to_owned()];
        while let Some(dir) = left.pop() {
            let list = fs::read_dir(&dir).map_err(EngineError::io("cannot read the modules", &dir))?;
            for entry in list.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => left.push(entry.path()),
                    Ok(kind) if kind.is_file() => {
                        all.files.extend(name_of(&entry.path()).map(|name| (name, entry.path())));
                    }
                    _ => {}
                }
            }
        }
        let built_in = fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
        all.built_in = built_in.lines().filter_map(|l| name_of(Path::new(l))).collect();
        Ok(all)
    }

    /// Writes the modules that a guest needs to `to`, in the order of their names. `kernel` names it in errors.
    pub(super) fn copy(&self, to: &Path, kernel: &str) -> Result<()> {
        let mut order: Vec<Module> = Vec::new();
        let mut seen = HashSet::new();
        for name in REQUIRED {
            if !self.add(name, &mut order, &mut seen)?
                && !self.built_in.iter().any(|b| b == name)
                && self.is_known()
            {
                return Err(EngineError::Unsupported(format!(
                    "the kernel {kernel} has no driver {name}, neither built in nor as a module: choose another one"
                )));
            }
        }
        for name in WANTED {
            self.add(name, &mut order, &mut seen)?;
        }
        fs::create_dir_all(to).map_err(EngineError::io("cannot make the directory", to))?;
        for (number, module) in order.iter().enumerate() {
            let target = to.join(format!("{number:03}-{}.ko", module.name));
            fs::write(&target, &module.bytes).map_err(EngineError::io("cannot write", &target))?;
        }
        Ok(())
    }

    /// A kernel without a list of what it has built in is taken at its word: its guest says what is missing.
    fn is_known(&self) -> bool {
        !self.built_in.is_empty()
    }

    /// Adds a module after all that it depends on; false if there is none of that name. `seen` are those that are added or
    /// about to be.
    fn add(&self, name: &str, order: &mut Vec<Module>, seen: &mut HashSet<String>) -> Result<bool> {
        if order.iter().any(|m| m.name == name) {
            return Ok(true);
        }
        let Some(path) = self.files.get(name) else { return Ok(false) };
        if !seen.insert(name.to_owned()) {
            return Err(EngineError::Invalid(format!(
                "the module {name} depends on itself, by others: the kernel's modules are not sound"
            )));
        }
        let bytes = read(path)?;
        for dependency in depends(&bytes) {
            self.add(&dependency, order, seen)?;
        }
        order.push(Module { name: name.to_owned(), bytes });
        Ok(true)
    }
}

/// The list `depends=a,b` in a module's `.modinfo`, where strings end with a zero byte.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = memchr::memmem::find(module, KEY) else { return Vec::new() };
    let rest = module.get(at + KEY.len()..).unwrap_or_default();
    let end = rest.iter().position(|b| *b == 0).unwrap_or(0);
    let list = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
    list.split(',').filter(|d| !d.is_empty()).map(|d| d.replace('-', "_")).collect()
}

/// A module's bytes, decompressed by the host's own tools.
fn read(path: &Path) -> Result<Vec<u8>> {
    let io = EngineError::io("cannot read the module", path);
    let tool = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::File::open(path).and_then(bounded).map_err(io).and_then(|bytes| module(bytes, path)),
    };
    let failed = || {
        EngineError::Unsupported(format!(
            "the module {} cannot be decompressed: is {tool} installed?",
            path.display()
        ))
    };
    let mut command = Command::new(tool);
    command.arg("-dc").arg(path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|_| failed())?;
    let bytes = child.stdout.take().map_or_else(|| Ok(Vec::new()), bounded);
    if bytes.as_ref().is_ok_and(|bytes| bytes.len() as u64 > LARGEST) {
        // It has more to say, and is not listened to.
        let _ = child.kill();
    }
    let well = child.wait().is_ok_and(|status| status.success());
    let bytes = bytes.map_err(io)?;
    match well || bytes.len() as u64 > LARGEST {
        true => module(bytes, path),
        false => Err(failed()),
    }
}

/// What an ELF file begins with.
const ELF: &[u8] = b"\x7fELF";

/// All of it, or one byte more than a module may have.
fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(LARGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Refuses what is no module.
fn module(bytes: Vec<u8>, path: &Path) -> Result<Vec<u8>> {
    let refuse = |what| Err(EngineError::Invalid(format!("{} {what}", path.display())));
    match bytes.len() as u64 {
        length if length > LARGEST => refuse("has more bytes than a kernel's module"),
        _ if !bytes.starts_with(ELF) => refuse("is no kernel module: it is no ELF file"),
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_depend_on() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, depends: &str| {
            fs::write(dir.path().join(name), format!("\x7fELF\0depends={depends}\0name=x\0")).unwrap();
        };
        put("virtio_mmio.ko", "virtio,virtio-ring");
        put("virtio.ko", "");
        put("virtio-ring.ko", "virtio");
        put("virtio_blk.ko", "virtio");
        put("erofs.ko", "");
        fs::write(
            dir.path().join("modules.builtin"),
            "kernel/fs/ext4/ext4.ko\nkernel/fs/overlayfs/overlay.ko\n",
        )
        .unwrap();
        let modules = Modules::find(Some(dir.path())).unwrap();
        let to = dir.path().join("out");
        let missing = modules.copy(&to, "k").unwrap_err().to_string();
        assert!(missing.contains("kernel k has no driver vmw_vsock_virtio_transport"), "{missing}");
        put("vmw_vsock_virtio_transport.ko", "");
        Modules::find(Some(dir.path())).unwrap().copy(&to, "k").unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "000-virtio.ko",
                "001-virtio_ring.ko",
                "002-virtio_mmio.ko",
                "003-virtio_blk.ko",
                "004-vmw_vsock_virtio_transport.ko",
                "005-erofs.ko"
            ]
        );
    }

    #[test]
    fn what_is_no_set_of_modules_is_refused_and_takes_no_more_than_its_share() {
        let dir = tempfile::tempdir().unwrap();
        let refused = || {
            let to = dir.path().join("out");
            Modules::find(Some(dir.path())).unwrap().copy(&to, "k").unwrap_err().to_string()
        };
        let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        put("virtio_mmio.ko", b"\x7fELF\0depends=virtio_ring\0");
        put("virtio_ring.ko", b"\x7fELF\0depends=virtio_mmio\0");
        assert!(refused().contains("virtio_mmio depends on itself"), "{}", refused());
        put("virtio_mmio.ko", b"#!/bin/sh");
        assert!(refused().contains("is no ELF file"), "{}", refused());
        put("virtio_mmio.ko", b"");
        fs::File::options()
            .write(true)
            .open(dir.path().join("virtio_mmio.ko"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert!(refused().contains("has more bytes"), "{}", refused());
        // A bomb.
        fs::remove_file(dir.path().join("virtio_mmio.ko")).unwrap();
        let bomb = fs::File::create(dir.path().join("virtio_mmio.ko.gz")).unwrap();
        let zeros = Command::new("sh").args(["-c", "head -c 80M /dev/zero | gzip -1"]).stdout(bomb).status();
        assert!(zeros.unwrap().success());
        assert!(refused().contains("has more bytes"), "{}", refused());
        put("virtio_mmio.ko.gz", b"no gzip");
        assert!(refused().contains("cannot be decompressed"), "{}", refused());
    }
}
