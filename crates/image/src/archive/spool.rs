//! The files of an archive, whatever their order in it: a stream is spooled to the disk, a directory is read
//! beneath its root only. Nothing of the archive's names reaches the host's file system.

use crate::ImageError;
use crate::content::{CHUNK, Content, RoomCheck, Scratch};
use crate::unpack;
use rustix::fs::{Mode, OFlags};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Entries that an archive may have.
const MAX_ENTRIES: usize = 100_000;

pub(super) enum Entry {
    File(PathBuf),
    Link(String),
}

/// Files by the name that they have in the archive.
pub(super) enum Spool {
    Files(HashMap<String, Entry>, Scratch),
    Directory(sys::Root, Scratch),
}

impl Spool {
    pub fn directory(content: &Content, path: &Path) -> Result<Self, ImageError> {
        let root = sys::Root::open(path).map_err(|e| ImageError::io("open the directory", path, e))?;
        Ok(Self::Directory(root, Scratch::new(content)?))
    }

    pub fn stream(content: &Content, input: &mut (dyn Read + Send)) -> Result<Self, ImageError> {
        let scratch = Scratch::new(content)?;
        let bad = |e: io::Error| {
            e.downcast::<ImageError>().unwrap_or_else(|e| {
                ImageError::corrupt("the archive", format!("it cannot be read as a tar ({e})"))
            })
        };
        let (_, plain) = unpack::decompress(input).map_err(bad)?;
        let mut archive = tar::Archive::new(plain);
        let mut files = HashMap::new();
        let mut room = RoomCheck::new(content.tmp());
        let mut total = 0;
        for entry in archive.entries().map_err(bad)? {
            let mut entry = entry.map_err(bad)?;
            if files.len() >= MAX_ENTRIES {
                let reason = format!("more than {MAX_ENTRIES} entries");
                return Err(ImageError::Limit { what: "the archive".into(), reason });
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let Some(name) = normal("", &name)? else { continue };
            let target = entry.link_name_bytes().map(|t| String::from_utf8_lossy(&t).into_owned());
            let parent = name.rsplit_once('/').map_or("", |(p, _)| p);
            let kind = entry.header().entry_type();
            let item = match (kind, target) {
                (tar::EntryType::Symlink, Some(t)) => normal(parent, &t)?.map(Entry::Link),
                (tar::EntryType::Link, Some(t)) => normal("", &t)?.map(Entry::Link),
                (tar::EntryType::Directory | tar::EntryType::XGlobalHeader, _) => None,
                (kind, _) if kind.is_file() => {
                    let path = scratch.path().join(format!("file-{}", files.len()));
                    total = copy(&mut entry, &path, &mut room, total)?;
                    Some(Entry::File(path))
                }
                _ => {
                    let reason =
                        format!("it holds {name:.200}, which is neither a file, a directory nor a link");
                    return Err(ImageError::corrupt("the archive", reason));
                }
            };
            if let Some(item) = item {
                files.insert(name, item);
            }
        }
        Ok(Self::Files(files, scratch))
    }

    /// Opens a file of the archive.
    pub fn open(&self, name: &str) -> Result<Option<File>, ImageError> {
        let Some(name) = normal("", name)? else { return Ok(None) };
        match self {
            Self::Files(..) => self.spooled(&name)?.map(open).transpose(),
            Self::Directory(root, _) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                match root.resolve(&name, flags, Mode::empty()) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(ImageError::io("open", Path::new(&name), e)),
                    Ok(fd) => {
                        let file = File::from(fd);
                        let is_file = file.metadata().is_ok_and(|m| m.is_file());
                        is_file.then_some(Some(file)).ok_or_else(|| {
                            ImageError::corrupt("the layout", format!("{name:.200} is not a regular file"))
                        })
                    }
                }
            }
        }
    }

    /// A file of the archive on a path of ours, which the caller may rename. It stays readable by its name only
    /// if it is not renamed, or opened before.
    pub fn own(&self, name: &str, unique: &str) -> Result<PathBuf, ImageError> {
        let missing = || ImageError::corrupt("the archive", format!("{name:.200} is missing"));
        let (Self::Files(_, scratch) | Self::Directory(_, scratch)) = self;
        let mut source = self.open(name)?.ok_or_else(missing)?;
        let path = scratch.path().join(format!("own-{unique}"));
        let _ = std::fs::remove_file(&path);
        if let Some(spooled) = normal("", name)?.map(|n| self.spooled(&n)).transpose()?.flatten() {
            // Two layers may be one file.
            std::fs::hard_link(spooled, &path).map_err(|e| ImageError::io("link", &path, e))?;
            return Ok(path);
        }
        let mut copy = File::create(&path).map_err(|e| ImageError::io("make", &path, e))?;
        io::copy(&mut source, &mut copy).map_err(|e| ImageError::io("write", &path, e))?;
        Ok(path)
    }

    /// Reads a small file whole.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(file) = self.open(name)? else { return Ok(None) };
        let mut out = Vec::new();
        file.take(limit + 1).read_to_end(&mut out).map_err(|e| ImageError::io("read", Path::new(name), e))?;
        if out.len() as u64 > limit {
            let reason = format!("more than {limit} bytes");
            return Err(ImageError::Limit { what: format!("{name:.200} in the archive"), reason });
        }
        Ok(Some(out))
    }

    fn spooled(&self, name: &str) -> Result<Option<&Path>, ImageError> {
        let Self::Files(files, _) = self else { return Ok(None) };
        let mut name = name;
        for _ in 0..16 {
            match files.get(name) {
                None => return Ok(None),
                Some(Entry::File(path)) => return Ok(Some(path)),
                Some(Entry::Link(to)) => name = to,
            }
        }
        Err(ImageError::corrupt("the archive", format!("{name:.200} is a link that leads in a circle")))
    }
}

fn open(path: &Path) -> Result<File, ImageError> {
    File::open(path).map_err(|e| ImageError::io("open", path, e))
}

fn copy(
    from: &mut dyn Read,
    path: &Path,
    room: &mut RoomCheck<'_>,
    mut total: u64,
) -> Result<u64, ImageError> {
    let fail = |e| ImageError::io("write", path, e);
    let mut file = File::create(path).map_err(fail)?;
    let mut buf = vec![0; CHUNK];
    loop {
        let n = from
            .read(&mut buf)
            .map_err(|e| ImageError::corrupt("the archive", format!("it ends early or is damaged ({e})")))?;
        if n == 0 {
            return Ok(total);
        }
        file.write_all(&buf[..n]).map_err(fail)?;
        total += n as u64;
        room.at(total)?;
    }
}

/// `dir/name` without `.`; what leads out of the archive is an error, the archive itself is none.
fn normal(dir: &str, name: &str) -> Result<Option<String>, ImageError> {
    let outside =
        || ImageError::corrupt("the archive", format!("its entry {name:.200} leads out of the archive"));
    if name.starts_with('/') {
        return Err(outside());
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in dir.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or_else(outside)?;
            }
            part => parts.push(part),
        }
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(normal("", "./a//b").unwrap().as_deref(), Some("a/b"));
        assert_eq!(normal("a", "../b/c").unwrap().as_deref(), Some("b/c"));
        assert_eq!(normal("", ".").unwrap(), None);
        for bad in ["/etc/passwd", "../x", "a/../../x"] {
            assert!(normal("", bad).is_err(), "{bad}");
        }
    }
}
