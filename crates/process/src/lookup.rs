//! Finding the command of a container in its own `PATH`, from inside.

use crate::error::LaunchError;
use rustix::fs::{Access, CWD, FileType, Mode, OFlags, ResolveFlags, access, fstat, openat2};
use rustix::io::Errno;
use std::ffi::CString;
use std::io;

/// What a process without `PATH` gets (Docker's default).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds what `command` means: itself if it has a slash, else the first executable file of that name in `path`.
/// Looks in the root and working directory of the calling process, which must be the container's.
pub fn find(command: &str, path: &str) -> Result<CString, LaunchError> {
    let missing = || LaunchError::NotFound { command: command.to_owned() };
    let refused = |source: io::Error| LaunchError::NotExecutable { command: command.to_owned(), source };
    if command.is_empty() {
        return Err(missing());
    }
    if command.contains('/') {
        return match executable(command) {
            Ok(found) => Ok(found),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(missing()),
            Err(e) => Err(refused(e.into())),
        };
    }
    let mut denied = None;
    for dir in path.split(':') {
        // An empty entry is the working directory (POSIX).
        let dir = if dir.is_empty() { "." } else { dir };
        match executable(&format!("{dir}/{command}")) {
            Ok(found) => return Ok(found),
            Err(Errno::ACCESS) => denied = Some(Errno::ACCESS),
            Err(_) => {}
        }
    }
    Err(denied.map_or_else(missing, |e| refused(e.into())))
}

fn executable(path: &str) -> Result<CString, Errno> {
    // Not through a magic link: /proc/self/exe would be our own program (CVE-2019-5736).
    let found =
        openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let meta = fstat(found.map_err(|e| if e == Errno::LOOP { Errno::ACCESS } else { e })?)?;
    match FileType::from_raw_mode(meta.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::ACCESS),
    }
    // For the real user, as execve() will decide.
    access(path, Access::EXEC_OK)?;
    CString::new(path).map_err(|_| Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn commands_are_found_or_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().to_str().unwrap();
        for (name, mode) in [("yes", 0o755), ("no", 0o644)] {
            std::fs::write(tmp.path().join(name), "").unwrap();
            std::fs::set_permissions(tmp.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        let path = format!("/nonexistent:{dir}");
        assert_eq!(find("yes", &path).unwrap().to_str().unwrap(), format!("{dir}/yes"));
        assert!(matches!(find("no", &path), Err(LaunchError::NotExecutable { .. })));
        assert!(matches!(find("none", &path), Err(LaunchError::NotFound { .. })));
        assert!(matches!(find(dir, &path), Err(LaunchError::NotExecutable { .. })));
        let ours = find("/proc/self/exe", &path);
        assert!(matches!(ours, Err(LaunchError::NotExecutable { .. })));
        assert!(matches!(find("", &path), Err(LaunchError::NotFound { .. })));
        let said = find("none", &path).unwrap_err().to_string();
        assert_eq!(said, "exec: \"none\": executable file not found in $PATH");
    }
}
