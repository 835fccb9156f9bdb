//! `cp`: files between a container and this host, by the rules of Docker's `archive.CopyInfo`.
//!
//! Both ends speak tar over a pipe. Both unpack and pack beneath an open directory, so that neither a hostile
//! container nor a hostile archive leads anywhere else (CVE-2018-15664).

use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use rootfs::UnpackOptions;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Component, Path, PathBuf};
use sys::Root;
use types::{ErrorKind, Kinded, units};

/// Flags of `cp`.
#[derive(clap::Args, Debug)]
pub struct Copy {
    /// Archive mode (copy all uid/gid information)
    #[arg(short, long)]
    archive: bool,
    /// Always follow symbol link in SRC_PATH
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Suppress progress output during copy
    #[arg(short, long)]
    quiet: bool,
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// `-`: a tar on stdin or stdout.
    Stream,
    /// A path here.
    Local(PathBuf),
    /// A path in a container.
    Inside(String, PathBuf),
}

/// Reads `CONTAINER:PATH`, `PATH` or `-`.
fn end(word: &str) -> End {
    if word == "-" {
        return End::Stream;
    }
    match word.split_once(':') {
        Some((name, path)) if !word.starts_with(['/', '.']) && !name.is_empty() => {
            // Paths inside begin at the root.
            End::Inside(name.to_owned(), Path::new("/").join(path))
        }
        _ => End::Local(word.into()),
    }
}

impl Verb for Copy {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let ends = (end(&words[0]), end(&words[1]));
        let inside = match &ends {
            (End::Inside(..), End::Inside(..)) => None,
            (End::Inside(name, _), _) | (_, End::Inside(name, _)) => Some(name.clone()),
            _ => None,
        };
        match inside {
            Some(name) => cx.engine()?.with_files(&name, || self.copy(cx, ends, &words[1])),
            None => self.copy(cx, ends, &words[1]),
        }
    }
}

impl Copy {
    fn copy(&self, cx: &Context, ends: (End, End), target: &str) -> Outcome {
        let copied = match ends {
            (End::Inside(name, src), End::Stream) => {
                super::look::refuse_terminal("write an archive")?;
                let mut out = io::BufWriter::with_capacity(256 << 10, io::stdout().lock());
                let src = self.follow(cx, &name, src)?;
                cx.engine()?.copy_from(&name, &src, None, &mut out)?;
                out.flush()?;
                return Ok(0);
            }
            (End::Inside(name, src), End::Local(dst)) => self.copy_out(cx, &name, src, &dst)?,
            (End::Stream, End::Inside(name, dst)) => {
                let dst = directory_inside(cx, &name, dst)?;
                cx.engine()?.copy_to(&name, &dst, &mut io::stdin().lock(), &self.options(false))?;
                return Ok(0);
            }
            (End::Local(src), End::Inside(name, dst)) => self.copy_in(cx, src, &name, dst)?,
            (End::Inside(..), End::Inside(..)) => {
                return Err("copying between containers is not supported".into());
            }
            _ => return Err("must specify at least one container source".into()),
        };
        if !self.quiet && io::stderr().is_terminal() {
            cx.out.note(&format!("Successfully copied {} to {}", units::human_size(copied as f64), target));
        }
        Ok(0)
    }

    /// Here, files belong to the caller, unless `-a`; inside, to whom they belonged here.
    fn options(&self, local: bool) -> UnpackOptions {
        let caller = || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        UnpackOptions {
            no_overwrite_dir_non_dir: true,
            owner: (local && !self.archive).then(caller),
            only: None,
            no_devices: local,
            no_privileges: local && !self.archive,
        }
    }

    /// With `-L`, where a link inside leads to.
    fn follow(&self, cx: &Context, name: &str, path: PathBuf) -> Result<PathBuf, Failure> {
        if !self.follow_link {
            return Ok(path);
        }
        let stat = cx.engine()?.stat_path(name, &path)?;
        Ok(if stat.link_target.is_empty() { path } else { stat.link_target.into() })
    }

    /// From a container to here.
    fn copy_out(&self, cx: &Context, name: &str, src: PathBuf, dst: &Path) -> Result<u64, Failure> {
        let own_name = src.file_name().map(OsStr::to_owned);
        let followed = self.follow(cx, name, src.clone())?;
        let engine = cx.engine()?;
        let is_dir = engine.stat_path(name, &followed)?.is_dir();
        if !is_dir && asserts_directory(&src) {
            return Err(format!("{}: not a directory", src.display()).into());
        }
        let target = target(dst, fs::metadata(dst).ok().map(|m| m.is_dir()), &src, is_dir)?;
        let rename = target.rename.or_else(|| if followed == src { None } else { own_name });
        let root =
            Root::open(&target.dir).map_err(|e| format!("cannot copy to {}: {e}", target.dir.display()))?;
        // Who packs may be a hostile guest, which is not to choose other names here.
        let only = match (&rename, asserts_dot(&followed)) {
            (Some(name), _) => Some(name.clone()),
            (None, true) => None,
            (None, false) => followed.file_name().map(OsStr::to_owned),
        };
        let options = UnpackOptions { only, ..self.options(true) };
        let (mut reader, writer) = io::pipe()?;
        std::thread::scope(|s| {
            let unpacking = s.spawn(move || rootfs::unpack(&root, Path::new("/"), &mut reader, &options));
            let mut out = Counted { inner: writer, bytes: 0 };
            let packed = engine.copy_from(name, &followed, rename.as_deref(), &mut out);
            let Counted { inner, bytes } = out;
            drop(inner);
            let unpacked = unpacking.join().map_err(|_| Failure::from("unpacking ended unexpectedly"))?;
            // Whoever fails first breaks the pipe for the other: the reader's reason is the better one.
            unpacked.map_err(|e| Failure::from(e.to_string()))?;
            packed?;
            Ok(bytes)
        })
    }

    /// From here into a container.
    fn copy_in(&self, cx: &Context, src: PathBuf, name: &str, dst: PathBuf) -> Result<u64, Failure> {
        let missing = |e: io::Error| Failure::from(format!("{}: {e}", src.display()));
        let is_dir = if self.follow_link || asserts_directory(&src) {
            fs::metadata(&src).map_err(missing)?.is_dir()
        } else {
            fs::symlink_metadata(&src).map_err(missing)?.is_dir()
        };
        if !is_dir && asserts_directory(&src) {
            return Err(format!("{}: not a directory", src.display()).into());
        }
        let engine = cx.engine()?;
        let (dst, there) = look(cx, name, dst)?;
        let target = target(&dst, there, &src, is_dir)?;
        let (base, entry, own_name) = local_source(&src, self.follow_link).map_err(missing)?;
        let rename = target.rename.or(own_name);
        let root = Root::open(&base).map_err(missing)?;
        let (reader, mut writer) = io::pipe()?;
        std::thread::scope(|s| {
            let packing = s.spawn(move || {
                let packed = rootfs::pack(&root, &entry, rename.as_deref(), &mut writer);
                drop(writer);
                packed
            });
            let mut counted = CountedReader { inner: reader, bytes: 0 };
            let unpacked = engine.copy_to(name, &target.dir, &mut counted, &self.options(false));
            let CountedReader { inner, bytes } = counted;
            drop(inner);
            let packed = packing.join().map_err(|_| Failure::from("packing ended unexpectedly"))?;
            match (unpacked, packed) {
                (Ok(()), Ok(())) => Ok(bytes),
                (Ok(()), Err(e)) => Err(e.to_string().into()),
                (Err(e), _) => Err(e.into()),
            }
        })
    }
}

/// Where an archive goes, and what its top entry is called there.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    dir: PathBuf,
    rename: Option<OsString>,
}

/// Docker's table. `there`: whether the destination is a directory, if it exists.
fn target(dst: &Path, there: Option<bool>, src: &Path, src_is_dir: bool) -> Result<Target, Failure> {
    match there {
        Some(true) => Ok(Target { dir: dst.to_owned(), rename: None }),
        Some(false) if src_is_dir => {
            Err(format!("cannot copy the directory {} to the file {}", src.display(), dst.display()).into())
        }
        Some(false) if asserts_directory(dst) => Err(format!("{}: not a directory", dst.display()).into()),
        None if !src_is_dir && asserts_directory(dst) => {
            Err(format!("{}: no such directory", dst.display()).into())
        }
        _ => {
            let name = dst
                .file_name()
                .ok_or_else(|| Failure::from(format!("{}: no such directory", dst.display())))?;
            let dir = dst.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(Target { dir: dir.to_owned(), rename: Some(name.to_owned()) })
        }
    }
}

/// `dir/` and `dir/.` name directories.
fn asserts_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b"."
}

/// `dir/.` is the directory's content, whose names are its own.
fn asserts_dot(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.ends_with(b"/.") || bytes == b"."
}

/// A directory to be opened, a path in it, and the name that the source has if the path does not say it.
fn local_source(src: &Path, follow: bool) -> io::Result<(PathBuf, PathBuf, Option<OsString>)> {
    let bytes = src.as_os_str().as_encoded_bytes();
    if bytes.ends_with(b"/.") || bytes == b"." {
        return Ok((src.to_owned(), "/".into(), None));
    }
    let real = if follow || matches!(src.components().next_back(), Some(Component::ParentDir)) {
        fs::canonicalize(src)?
    } else {
        src.to_owned()
    };
    let (Some(name), parent) = (real.file_name(), real.parent()) else {
        return Ok((real, "/".into(), None));
    };
    let parent = parent.filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let own = src.file_name().filter(|n| *n != name).map(OsStr::to_owned);
    Ok((parent.to_owned(), Path::new("/").join(name), own))
}

/// Follows a link at the end of a path inside; whether there is a directory, if there is anything.
fn look(cx: &Context, name: &str, path: PathBuf) -> Result<(PathBuf, Option<bool>), Failure> {
    let engine = cx.engine()?;
    let stat = |p: &Path| match engine.stat_path(name, p) {
        Ok(s) => Ok(Some(s)),
        Err(e @ engine::EngineError::NoSuchContainer(_)) => Err(Failure::from(e)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    };
    match stat(&path)? {
        Some(s) if !s.link_target.is_empty() => {
            let target = PathBuf::from(&s.link_target);
            let is_dir = stat(&target)?.map(|s| s.is_dir());
            Ok((target, is_dir))
        }
        found => Ok((path, found.map(|s| s.is_dir()))),
    }
}

fn directory_inside(cx: &Context, name: &str, path: PathBuf) -> Result<PathBuf, Failure> {
    match look(cx, name, path)? {
        (path, Some(true)) => Ok(path),
        (path, Some(false)) => {
            Err(format!("destination {}:{} must be a directory", name, path.display()).into())
        }
        (path, None) => Err(format!("no such directory in {name}: {}", path.display()).into()),
    }
}

struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct CountedReader<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for CountedReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.bytes += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        assert_eq!(end("-"), End::Stream);
        assert_eq!(end("c:/a"), End::Inside("c".into(), "/a".into()));
        assert_eq!(end("c:a/b"), End::Inside("c".into(), "/a/b".into()));
        assert_eq!(end("/a:b"), End::Local("/a:b".into()));
        assert_eq!(end("./a:b"), End::Local("./a:b".into()));
        assert_eq!(end("a"), End::Local("a".into()));
    }

    #[test]
    fn dockers_table() {
        let t = |dst: &str, there, src: &str, dir| target(Path::new(dst), there, Path::new(src), dir);
        let ok = |dir: &str, name: Option<&str>| Target { dir: dir.into(), rename: name.map(OsString::from) };
        assert_eq!(t("/d", Some(true), "f", false).unwrap(), ok("/d", None));
        assert_eq!(t("/d/g", Some(false), "f", false).unwrap(), ok("/d", Some("g")));
        assert_eq!(t("g", None, "f", false).unwrap(), ok(".", Some("g")));
        assert_eq!(t("/d/new", None, "dir/.", true).unwrap(), ok("/d", Some("new")));
        assert!(t("/d/g", Some(false), "dir", true).is_err());
        assert!(t("/d/new/", None, "f", false).is_err());
        assert!(t("/d/f/", Some(false), "f", false).is_err());
    }

    #[test]
    fn local_sources() {
        let s = |p: &str| local_source(Path::new(p), false).unwrap();
        assert_eq!(s("a"), (".".into(), "/a".into(), None));
        assert_eq!(s("/x/a/"), ("/x".into(), "/a".into(), None));
        assert_eq!(s("/x/."), ("/x/.".into(), "/".into(), None));
        assert_eq!(s("/"), ("/".into(), "/".into(), None));
    }
}
