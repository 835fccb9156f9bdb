//! The walls around QEMU, for the day on which a guest breaks out into it: a user of its own without rights, a root with
//! the host's programs and libraries and nothing else, and namespaces of its own. What it needs beyond that is opened
//! before. Network namespace and cgroup are those of its monitor; the filter of system calls is QEMU's own (`-sandbox`).

use crate::container::step::Step;
use crate::hull::HullError;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, readlink, statat, symlinkat};
use rustix::io::{FdFlags, fcntl_setfd};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sys::clone::{Child, ns};
use sys::mount::{Change, attach, attr, clone_path, new_filesystem, propagation, set_attributes};
use vmm::jail::Largest;

const NAMESPACES: u64 = ns::MOUNT | ns::PID | ns::IPC | ns::UTS;
/// Where programs are looked for.
const PATH: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/run/current-system/sw/bin"];
/// What a program and its libraries may lie in.
const PROGRAMS: [&str; 5] = ["usr", "lib", "lib32", "lib64", "libx32"];
/// The same of distributions that have all in a store; beside it lie sockets, which no read-only mount keeps from being
/// connected to.
const STORES: [(&str, &str); 2] = [("nix", "nix/store"), ("gnu", "gnu/store")];
/// Of vendors, for a program of theirs.
const VENDORS: &str = "opt";
/// What the dynamic linker reads.
const LINKER: [&str; 2] = ["ld.so.cache", "alternatives"];
/// The exit code of a process that did not become the program.
const FAILED: i32 = 125;

/// A program to be shut in.
pub(super) struct Program<'a> {
    /// Its file.
    pub(super) path: PathBuf,
    /// Its arguments, without its name.
    pub(super) args: Vec<String>,
    /// Descriptors that it inherits, by their numbers.
    pub(super) fds: Vec<BorrowedFd<'a>>,
    /// Its standard output and error.
    pub(super) output: BorrowedFd<'a>,
    /// Files of the host that it finds in its root, by these names. Anybody may read them.
    pub(super) files: Vec<(&'a Path, &'static str)>,
    /// How large a file of its may become, its guest's memory included.
    pub(super) largest: Largest,
    /// The user and the group that it becomes.
    pub(super) user: u32,
}

/// Where a program is, behind all links.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    PATH.iter().find_map(|dir| Path::new(dir).join(program).canonicalize().ok())
}

impl Program<'_> {
    /// Starts it. This process must have but one thread. What fails within the new process is told on its output.
    pub(super) fn start(&self) -> Result<Child, HullError> {
        let named = || format!("start {}", self.path.display());
        let strings = std::iter::once(self.path.as_os_str().as_bytes());
        let strings = strings.chain(self.args.iter().map(String::as_bytes)).map(CString::new);
        let args = strings.collect::<Result<Vec<_>, _>>().map_err(io::Error::from).step(named)?;
        let child = sys::clone::spawn(NAMESPACES, None, || {
            let e = self.enter().map_or_else(|e| e, |()| sys::process::execve(&args[0], &args, &[]));
            eprintln!("cannot start {}: {e}", self.path.display());
            FAILED
        });
        child.step(named)
    }

    fn enter(&self) -> io::Result<()> {
        let mut keep = self.fds.clone();
        keep.push(self.output);
        sys::process::close_all_but(&keep)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        sys::process::set_stdio([null.as_fd(), self.output, self.output])?;
        for fd in &self.fds {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        self.root()?;
        vmm::jail::lower_limits(self.largest)?;
        vmm::jail::give_up_rights(self.user, self.user)
    }

    /// Makes the program's root, of which nothing can be changed, the only one there is.
    /// The null device is its only one.
    fn root(&self) -> io::Result<()> {
        let top = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        set_attributes(&top, true, Change::propagation(propagation::PRIVATE))?;
        let walls = attr::NOSUID | attr::NODEV;
        let root = new_filesystem("tmpfs", Some("root"), ["mode=0755", "size=1m"], walls)?;
        attach(&root, &top)?;
        for name in PROGRAMS {
            bind(&root, &Path::new("/").join(name), name)?;
        }
        let slash = Path::new("/");
        for (dir, store) in STORES.into_iter().filter(|(_, store)| slash.join(store).is_dir()) {
            mkdirat(&root, dir, Mode::from_raw_mode(0o755))?;
            bind(&root, &slash.join(store), store)?;
        }
        if self.path.starts_with(slash.join(VENDORS)) {
            bind(&root, &slash.join(VENDORS), VENDORS)?;
        }
        for dir in ["etc", "dev"] {
            mkdirat(&root, dir, Mode::from_raw_mode(0o755))?;
        }
        bind(&root, Path::new("/dev/null"), "dev/null")?;
        for name in LINKER {
            bind(&root, &Path::new("/etc").join(name), &format!("etc/{name}"))?;
        }
        for (path, name) in &self.files {
            bind(&root, path, name)?;
        }
        set_attributes(&root, false, Change::set(walls | attr::RDONLY))?;
        sys::mount::pivot(&root)
    }
}

/// Shows what is at a path of the host, if anything is, in the new root: read-only, links as links.
fn bind(root: &OwnedFd, path: &Path, name: &str) -> io::Result<()> {
    let Ok(found) = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(()) };
    let kind = FileType::from_raw_mode(found.st_mode);
    match kind {
        FileType::Symlink => return Ok(symlinkat(readlink(path, Vec::new())?, root, name)?),
        FileType::Directory => mkdirat(root, name, Mode::from_raw_mode(0o755))?,
        _ => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(openat(root, name, flags, Mode::from_raw_mode(0o644))?);
        }
    }
    let tree = clone_path(path, true)?;
    let devices = if kind == FileType::CharacterDevice { 0 } else { attr::NODEV };
    let set = attr::RDONLY | attr::NOSUID | devices;
    set_attributes(&tree, true, Change { set, propagation: propagation::PRIVATE, ..Change::default() })?;
    attach(tree, openat(root, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}
