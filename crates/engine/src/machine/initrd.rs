//! The initramfs: the guest's agent as `/init`, and the kernel's modules. Source: the kernel's
//! driver-api/early-userspace/buffer-format.rst (newc).

use crate::{Agent, EngineError, Result};
use std::path::{Path, PathBuf};

/// Regular file, directory, character device in a mode.
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER: u32 = 0o020_000;

/// The archive for a kernel and this very agent, made once; those of other agents are removed.
pub(super) fn ensure(kernel: &Path, agent: Agent) -> Result<PathBuf> {
    if agent.program.is_empty() {
        return Err(EngineError::Unsupported("this build has no guest agent".into()));
    }
    let path = kernel.join(format!("initrd-{}.cpio", agent.tag));
    if path.exists() {
        return Ok(path);
    }
    let failed = |e| EngineError::io("cannot make the initramfs", &path)(e);
    let mut archive = Archive::default();
    archive.entry("dev", DIRECTORY | 0o755, (0, 0), b"");
    // The agent's first words go there, should it fail before it has a /dev.
    archive.entry("dev/console", CHARACTER | 0o600, (5, 1), b"");
    archive.entry("init", REGULAR | 0o755, (0, 0), agent.program);
    archive.entry("modules", DIRECTORY | 0o755, (0, 0), b"");
    for (name, bytes) in modules(kernel).map_err(failed)? {
        archive.entry(&format!("modules/{name}"), REGULAR | 0o644, (0, 0), &bytes);
    }
    sys::file::replace(&path, &archive.finish(), false).map_err(failed)?;
    for entry in std::fs::read_dir(kernel).into_iter().flatten().flatten() {
        let old = entry.file_name().to_string_lossy().starts_with("initrd-") && entry.path() != path;
        if old {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(path)
}

fn modules(kernel: &Path) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(kernel.join("modules")).into_iter().flatten() {
        let entry = entry?;
        all.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
    }
    all.sort();
    Ok(all)
}

/// A newc archive in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    count: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
        self.count += 1;
        let fields = [
            self.count,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(data.len()).unwrap_or(u32::MAX),
            0,
            0,
            major,
            minor,
            u32::try_from(name.len() + 1).unwrap_or(u32::MAX),
            0,
        ];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|f| self.bytes.extend(format!("{f:08x}").bytes()));
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("modules")).unwrap();
        std::fs::write(dir.path().join("modules/000-a.ko"), b"module").unwrap();
        std::fs::write(dir.path().join("initrd-old.cpio"), b"").unwrap();
        let agent = Agent { program: b"agent", tag: "1" };
        let path = ensure(dir.path(), agent).unwrap();
        assert_eq!(ensure(dir.path(), agent).unwrap(), path);
        assert!(!dir.path().join("initrd-old.cpio").exists());
        let Ok(mut cpio) =
            Command::new("cpio").arg("-itv").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        else {
            eprintln!("SKIPPED: cpio is not installed");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&std::fs::read(&path).unwrap()).unwrap();
        let list = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        for line in ["init", "dev/console", "modules/000-a.ko"] {
            assert!(list.lines().any(|l| l.ends_with(line)), "{line} is not in {list}");
        }
    }
}
