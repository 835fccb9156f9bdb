//! The kernels that guests boot: installed from the distribution, or brought by the user.
//!
//! ```text
//! <root>/kernels/<name>/{vmlinuz, modules/NNN-name.ko, kernel.json, initrd-….cpio}
//! ```
//!
//! A kernel appears by the renaming of its directory, whole; what an interrupted installation left is removed by the next.

use super::modules::Modules;
use crate::{Engine, EngineError, Result, store};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package that `install` takes.
pub const PACKAGE: &str = "linux-image-cloud-amd64";
/// The name under which `make kernel` imports what `kernel/build` has built.
pub const LEAN: &str = "lean";
/// Setting with the name of the kernel that is used where none is asked for.
const SETTING: &str = "kernel";
/// Prefix of directories that are no kernels yet.
const HALF: &str = ".new-";

/// A kernel in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// Its name in the store.
    pub name: String,
    /// As `uname -r` says it; empty where the file does not tell.
    pub version: String,
    /// The package or file that it came from.
    pub source: String,
    /// Nanoseconds since the epoch.
    pub installed_ns: i64,
    /// It is the one that is used where none is asked for.
    #[serde(skip)]
    pub in_use: bool,
    /// Bytes on the disk.
    #[serde(skip)]
    pub size: u64,
}

fn invalid(text: String) -> EngineError {
    EngineError::Invalid(text)
}

impl Engine {
    pub(crate) fn kernels_dir(&self) -> PathBuf {
        self.paths.root.join("kernels")
    }

    /// The kernels of this store, by name.
    pub fn kernels(&self) -> Result<Vec<Kernel>> {
        let mut all = self.kernels_without_sizes()?;
        all.iter_mut().for_each(|k| k.size = size_of(&self.kernels_dir().join(&k.name)));
        Ok(all)
    }

    /// The same without walking their directories, for the start of a machine.
    fn kernels_without_sizes(&self) -> Result<Vec<Kernel>> {
        let chosen = store::setting(&self.db, SETTING)?;
        let mut all = Vec::new();
        for entry in fs::read_dir(self.kernels_dir()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let Ok(json) = fs::read(entry.path().join("kernel.json")) else { continue };
            all.extend(serde_json::from_slice::<Kernel>(&json));
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let chosen = match chosen {
            Some(name) if all.iter().any(|k| k.name == name) => Some(name),
            // The one that is made for guests, or the latest.
            _ => all.iter().max_by_key(|k| (k.name == LEAN, k.installed_ns)).map(|k| k.name.clone()),
        };
        all.iter_mut().for_each(|k| k.in_use = Some(&k.name) == chosen.as_ref());
        Ok(all)
    }

    /// The kernel of that name, or the one in use, and its directory.
    pub(super) fn kernel(&self, name: Option<&str>) -> Result<(Kernel, PathBuf)> {
        let all = self.kernels_without_sizes()?;
        let found = match name {
            Some(name) => all.into_iter().find(|k| k.name == name || k.version == name),
            None => all.into_iter().find(|k| k.in_use),
        };
        let kernel = found.ok_or_else(|| match name {
            Some(name) => {
                EngineError::NoKernel(format!("no such kernel: {name}; see dhow kernel ls, or import it"))
            }
            None => EngineError::NoKernel(
                "there is no kernel for microVMs yet: run dhow kernel install, or dhow kernel import FILE"
                    .into(),
            ),
        })?;
        let dir = self.kernels_dir().join(&kernel.name);
        Ok((kernel, dir))
    }

    /// Makes a kernel the one that is used where none is asked for.
    pub fn use_kernel(&self, name: &str) -> Result<()> {
        let (kernel, _) = self.kernel(Some(name))?;
        store::set_setting(&self.db, SETTING, &kernel.name)
    }

    /// Removes a kernel. Containers that name it cannot start before it is there again; running ones do not need it.
    pub fn remove_kernel(&self, name: &str) -> Result<()> {
        let (_, dir) = self.kernel(Some(name))?;
        let aside = self.kernels_dir().join(format!("{HALF}{}", crate::ids::new_id()?.short()));
        fs::rename(&dir, &aside).map_err(EngineError::io("cannot remove the kernel", &dir))?;
        crate::recover::remove_tree(&aside)
    }

    /// Installs the distribution's kernel package, by its own tools, without installing it on this host.
    pub fn install_kernel(&self, package: &str, told: &dyn Fn(&str)) -> Result<Kernel> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "+-.:~=".contains(c);
        if package.is_empty() || package.starts_with('-') || !package.chars().all(plain) {
            return Err(invalid(format!("invalid package name {package:?}")));
        }
        let work = self.half_made()?;
        let done = (|| {
            let real = real_package(package)?;
            told(&format!("Downloading {real}"));
            run(Command::new("apt-get").args(["download", "-q", &real]).current_dir(&work))?;
            let deb = find(&work, |n| n.ends_with(".deb"))
                .ok_or_else(|| invalid(format!("apt-get downloaded no package {real}")))?;
            told(&format!("Unpacking {}", deb.file_name().unwrap_or_default().to_string_lossy()));
            let tree = work.join("tree");
            run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree))?;
            let image = find(&tree.join("boot"), |n| n.starts_with("vmlinuz-"))
                .ok_or_else(|| invalid(format!("the package {real} contains no /boot/vmlinuz-*")))?;
            let version = image.file_name().unwrap_or_default().to_string_lossy();
            let version = version.trim_start_matches("vmlinuz-").to_owned();
            let modules = ["lib/modules", "usr/lib/modules"].map(|d| tree.join(d).join(&version));
            let modules = modules.iter().find(|d| d.is_dir());
            self.add_kernel(&version, &version, &real, &image, modules.map(PathBuf::as_path))
        })();
        let _ = crate::recover::remove_tree(&work);
        done
    }

    /// Takes a bzImage or an ELF vmlinux of the user's, and the directory of its modules (`/lib/modules/VERSION`), if
    /// it needs any.
    pub fn import_kernel(&self, file: &Path, modules: Option<&Path>, name: Option<&str>) -> Result<Kernel> {
        let version = version_of(file)?;
        let fallback = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = match name {
            Some(name) => name.to_owned(),
            None if version.is_empty() => fallback,
            None => version.clone(),
        };
        if !crate::names::is_valid(&name) {
            return Err(invalid(format!(
                "invalid kernel name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed: give one with --name"
            )));
        }
        if let Some(dir) = modules.filter(|d| !d.is_dir()) {
            return Err(invalid(format!("{} is no directory of modules", dir.display())));
        }
        self.add_kernel(&name, &version, &file.display().to_string(), file, modules)
    }

    fn add_kernel(
        &self,
        name: &str,
        version: &str,
        source: &str,
        image: &Path,
        modules: Option<&Path>,
    ) -> Result<Kernel> {
        version_of(image)?;
        let half = self.half_made()?;
        let kernel = Kernel {
            name: name.to_owned(),
            version: version.to_owned(),
            source: source.to_owned(),
            installed_ns: sys::host::now_ns(),
            in_use: false,
            size: 0,
        };
        let make = || -> Result<()> {
            let target = half.join("vmlinuz");
            fs::copy(image, &target).map_err(EngineError::io("cannot copy", image))?;
            Modules::find(modules)?.copy(&half.join("modules"), name)?;
            let json = half.join("kernel.json");
            fs::write(&json, store::json(&kernel)).map_err(EngineError::io("cannot write", &json))?;
            let dir = self.kernels_dir().join(name);
            if dir.exists() {
                let old = self.kernels_dir().join(format!("{HALF}{}", crate::ids::new_id()?.short()));
                fs::rename(&dir, &old).map_err(EngineError::io("cannot replace", &dir))?;
                fs::rename(&half, &dir).map_err(EngineError::io("cannot make", &dir))?;
                return crate::recover::remove_tree(&old);
            }
            fs::rename(&half, &dir).map_err(EngineError::io("cannot make", &dir))
        };
        let done = make();
        if done.is_err() {
            let _ = crate::recover::remove_tree(&half);
        }
        done.map(|()| kernel)
    }

    /// A directory to work in; old ones that nobody works in any more are removed first.
    fn half_made(&self) -> Result<PathBuf> {
        let base = self.kernels_dir();
        let io = EngineError::io("cannot make the directory", &base);
        fs::create_dir_all(&base).map_err(io)?;
        let day = std::time::Duration::from_secs(24 * 60 * 60);
        for entry in fs::read_dir(&base).into_iter().flatten().flatten() {
            let old =
                entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|e| e > day));
            if old && entry.file_name().to_string_lossy().starts_with(HALF) {
                let _ = crate::recover::remove_tree(&entry.path());
            }
        }
        let dir = base.join(format!("{HALF}{}", crate::ids::new_id()?.short()));
        fs::create_dir(&dir).map_err(EngineError::io("cannot make the directory", &dir))?;
        Ok(dir)
    }
}

/// The package behind a metapackage.
fn real_package(package: &str) -> Result<String> {
    let out = Command::new("apt-cache").args(["depends", package]).output();
    let out = out.map_err(|_| {
        EngineError::Unsupported(
            "kernel install takes the kernel of a Debian: on other systems, dhow kernel import FILE --modules DIR".into(),
        )
    })?;
    if !out.status.success() {
        return Err(EngineError::NoKernel(format!("apt knows no package {package}: try apt-get update")));
    }
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let image = text
        .lines()
        .filter_map(|l| l.trim().strip_prefix("Depends: "))
        .find(|d| d.starts_with("linux-image-"));
    Ok(image.unwrap_or(package).to_owned())
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.env("LC_ALL", "C").stdin(std::process::Stdio::null()).output();
    match out {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(invalid(format!("{name} failed: {}", String::from_utf8_lossy(&out.stderr).trim()))),
        Err(e) => Err(EngineError::Unsupported(format!("cannot run {name}: {e}"))),
    }
}

fn find(dir: &Path, fits: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let list = fs::read_dir(dir).into_iter().flatten().flatten();
    list.map(|e| e.path()).find(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(&fits))
}

/// The version of a bzImage ("The Linux/x86 Boot Protocol": `kernel_version`), or of an ELF file by its banner, empty where
/// it has none; anything else is no kernel.
fn version_of(image: &Path) -> Result<String> {
    let io = EngineError::io("cannot read", image);
    let no_kernel = || {
        invalid(format!("{} is no kernel: a bzImage (vmlinuz) or an ELF vmlinux is wanted", image.display()))
    };
    // A FIFO would keep waiting who opens it.
    let file = fs::OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(image);
    let mut file = file.map_err(EngineError::io("cannot open", image))?;
    let length = match file.metadata().map_err(EngineError::io("cannot look at", image))? {
        about if about.is_file() => about.len(),
        _ => return Err(no_kernel()),
    };
    let mut head = Vec::new();
    file.by_ref().take(64 << 10).read_to_end(&mut head).map_err(io)?;
    if head.starts_with(b"\x7fELF") {
        if segments_end(&head).is_none_or(|end| end > length) {
            return Err(invalid(format!(
                "{} is no whole kernel: its program headers are broken, or point behind its end",
                image.display()
            )));
        }
        return fs::File::open(image).and_then(banner_version).map_err(EngineError::io("cannot read", image));
    }
    if head.get(0x202..0x206) != Some(b"HdrS") {
        return Err(no_kernel());
    }
    let word = |at: usize| head.get(at..at + 2).map_or(0, |b| usize::from(b[0]) | usize::from(b[1]) << 8);
    let text = head.get(word(0x20e) + 0x200..).unwrap_or_default();
    Ok(version_word(text).unwrap_or_default())
}

/// Where the last segment of an ELF file of 64 bits, little-endian, ends in the file (elf(5): `Elf64_Ehdr`, `Elf64_Phdr`);
/// none where its headers are no such.
fn segments_end(head: &[u8]) -> Option<u64> {
    const HEADER: usize = 56;
    let number = |at: usize, bytes: usize| {
        let found = head.get(at..at.checked_add(bytes)?)?;
        Some(found.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    let first = usize::try_from(number(0x20, 8)?).ok()?;
    let count = usize::try_from(number(0x38, 2)?).ok()?;
    let ends = (0..count).map(|n| {
        let at = first.checked_add(n.checked_mul(HEADER)?)?;
        number(at.checked_add(0x08)?, 8)?.checked_add(number(at.checked_add(0x20)?, 8)?)
    });
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// Longest version that is believed.
const LONGEST_VERSION: usize = 100;

/// A word up to a space or a zero byte, if it can be a version: it is shown in a terminal.
fn version_word(text: &[u8]) -> Option<String> {
    let end = text.iter().take(LONGEST_VERSION).position(|b| *b == b' ' || *b == 0)?;
    let word = text.get(..end).filter(|word| word.iter().all(u8::is_ascii_graphic))?;
    String::from_utf8(word.to_vec()).ok()
}

/// What follows `Linux version ` (init/version.c: `linux_banner`), empty where that is not found.
fn banner_version(mut image: impl Read) -> std::io::Result<String> {
    const BANNER: &[u8] = b"Linux version ";
    /// Bytes that are looked at together.
    const PIECE: u64 = 1 << 20;
    let mut piece = Vec::new();
    loop {
        let read = image.by_ref().take(PIECE).read_to_end(&mut piece)?;
        let versions =
            memchr::memmem::find_iter(&piece, BANNER).filter_map(|at| piece.get(at + BANNER.len()..));
        // A format of the same beginning stands before it.
        let digits = versions.filter(|rest| rest.first().is_some_and(u8::is_ascii_digit));
        if let Some(version) = digits.filter_map(version_word).next() {
            return Ok(version);
        }
        if read == 0 {
            return Ok(String::new());
        }
        // One that lies across two pieces is whole in the next.
        piece.drain(..piece.len().saturating_sub(BANNER.len() + LONGEST_VERSION));
    }
}

fn size_of(dir: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => sum += size_of(&entry.path()),
            Ok(meta) => sum += meta.len(),
            Err(_) => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode};

    #[test]
    fn an_elf_file_tells_its_version_by_its_banner() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vmlinux");
        let elf = |text: &[u8]| {
            let mut image = vec![0; 64 + 56];
            image[..4].copy_from_slice(b"\x7fELF");
            (image[0x20], image[0x38], image[64 + 0x08], image[64 + 0x20]) = (64, 1, 120, text.len() as u8);
            image.extend(text);
            image
        };
        let text = b"Linux version %s (%s)\0..Linux version 6.1.2-dhow (a@b) #1\0";
        fs::write(&file, elf(text)).unwrap();
        assert_eq!(version_of(&file).unwrap(), "6.1.2-dhow");
        fs::write(&file, elf(b"..")).unwrap();
        assert_eq!(version_of(&file).unwrap(), "");
        let whole = elf(text);
        for part in [&whole[..whole.len() - 1], &whole[..100], &whole[..6]] {
            fs::write(&file, part).unwrap();
            assert!(version_of(&file).unwrap_err().to_string().contains("no whole kernel"));
        }
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(version_of(&fifo).unwrap_err().to_string().contains("is no kernel"));
        for before in [(1 << 20) - 20, (1 << 20) - 5, (1 << 20) + 5] {
            let image = [b"\x7fELF", &vec![b'.'; before][..], b"Linux version 6.2.3-x y"].concat();
            assert_eq!(banner_version(&image[..]).unwrap(), "6.2.3-x");
        }
    }

    #[test]
    fn a_version_is_what_a_terminal_may_show() {
        assert_eq!(version_word(b"6.1.0-18-cloud-amd64 (a@b)").as_deref(), Some("6.1.0-18-cloud-amd64"));
        for word in [&b"6.1\x1b[31m x"[..], b"6.1\nEVIL x", b"6\xff x", b"6.1", &[b'6'; 101]] {
            assert_eq!(version_word(word), None);
        }
    }
}
