//! Where things lie on this host.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use types::{ContainerId, LayerFormat};

/// The two directories of a store: what lasts, and what a reboot clears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Images, containers, volumes: `/var/lib/dhow`.
    pub root: PathBuf,
    /// Sockets, locks, mounts: `/run/dhow`.
    pub run: PathBuf,
}

impl Paths {
    /// The database.
    pub fn db(&self) -> PathBuf {
        self.root.join("state.db")
    }

    /// What lasts of a container.
    pub fn sandbox(&self, id: &ContainerId) -> PathBuf {
        self.root.join("sandboxes").join(id.as_str())
    }

    /// Socket, lock and pipes of a container.
    pub fn sandbox_run(&self, id: &ContainerId) -> PathBuf {
        self.run.join("sandboxes").join(id.as_str())
    }

    /// The lock that a container's supervisor holds as long as it lives.
    pub fn lock(&self, id: &ContainerId) -> PathBuf {
        self.sandbox_run(id).join("lock")
    }

    /// What the supervisor knows of its container.
    pub fn state(&self, id: &ContainerId) -> PathBuf {
        self.sandbox(id).join("state.json")
    }

    /// What the supervisor is to run.
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.sandbox(id).join("bundle.json")
    }

    /// Where layers are mounted.
    pub fn layer_mounts(&self) -> PathBuf {
        self.run.join("layers")
    }

    /// Data of a volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.root.join("volumes").join(name).join("_data")
    }

    /// Makes the directories that every command needs; costs two system calls when they are there.
    pub(crate) fn ensure(&self) -> crate::Result<()> {
        for dir in [&self.root, &self.run] {
            let sandboxes = dir.join("sandboxes");
            if !sandboxes.is_dir() {
                make_private(&sandboxes)?;
            }
        }
        Ok(())
    }

    /// Makes the directory of what lasts of a container, if it is not there.
    pub(crate) fn ensure_sandbox(&self, id: &ContainerId) -> crate::Result<PathBuf> {
        let dir = self.sandbox(id);
        make_private(&dir)?;
        Ok(dir)
    }

    /// How new layers are written: what this host can mount, asked once per boot, or what `DHOW_LAYERS` (`erofs`,
    /// `dir`) says.
    pub(crate) fn layer_format(&self) -> LayerFormat {
        let parse = |word: &str| match word.trim() {
            "erofs" => Some(LayerFormat::Erofs),
            "dir" => Some(LayerFormat::Dir),
            _ => None,
        };
        if let Some(asked) = std::env::var("DHOW_LAYERS").ok().and_then(|v| parse(&v)) {
            return asked;
        }
        let known = self.run.join("layer-format");
        if let Some(format) = std::fs::read_to_string(&known).ok().and_then(|v| parse(&v)) {
            return format;
        }
        let format = image::layer::detect_format(&self.root.join("layers"));
        let word = if format == LayerFormat::Erofs { "erofs" } else { "dir" };
        // Where it cannot be noted, it is asked again.
        let _ = sys::file::replace(&known, word.as_bytes(), false);
        format
    }

    /// A short tag that tells this store's names on the host (bridge, cgroups) from those of another one; empty for
    /// the default store.
    pub(crate) fn tag(&self) -> String {
        match self.number() {
            0 => String::new(),
            number => format!("{number:08x}"),
        }
    }

    /// The same as a number; 0 for the default store.
    pub(crate) fn number(&self) -> u32 {
        if self.root == Path::new(crate::DEFAULT_ROOT) {
            return 0;
        }
        // FNV-1a: stable across versions and builds, which std's hasher is not.
        let hash =
            self.root.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
                (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        ((hash ^ (hash >> 32)) as u32).max(1)
    }
}

/// Makes a directory and those above it. Nobody but root passes: environments hold secrets, and a set-user-id program of a
/// container must not be executable by the host's users (CVE-2021-41091).
fn make_private(dir: &Path) -> crate::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(crate::EngineError::io("cannot create the directory", dir))
}
