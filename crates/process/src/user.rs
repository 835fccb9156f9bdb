//! Users and groups of a container, read from its own `/etc/passwd` and `/etc/group`.
//!
//! The files belong to the image: they are read beneath its root only, with bounded sizes, and malformed lines are
//! passed over. The rules are Docker's (`--user`, `--group-add`): `user`, `uid`, `user:group`, `uid:gid`.

use std::io;
use sys::Root;
use types::{ErrorKind, Kinded, oci};

/// Largest passwd or group file that is read.
const MAX_FILE: u64 = 16 << 20;
/// Most groups that one user is given (NGROUPS_MAX is 65536; the kernel sorts them).
const MAX_GROUPS: usize = 1024;

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A name that the image does not know.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// A group name that the image does not know.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// A number beyond 2³¹−1.
    #[error("uids and gids must be in range 0-2147483647, not {0}")]
    OutOfRange(String),
    /// The file cannot be read.
    #[error("cannot read {path} of the container: {source}")]
    Read {
        /// Which one.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Kinded for UserError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { .. } => ErrorKind::Internal,
            _ => ErrorKind::Invalid,
        }
    }
}

/// A line of `/etc/passwd`.
struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut f = line.trim().split(':');
        let (name, _, uid, gid) = (f.next()?, f.next()?, f.next()?, f.next()?);
        let home = f.nth(1).unwrap_or("");
        let known = !name.is_empty() && !name.starts_with('#');
        known.then_some(Passwd { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

/// Name, gid and members of each line of `/etc/group`.
fn group(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut f = line.trim().split(':');
        let (name, _, gid) = (f.next()?, f.next()?, f.next()?);
        Some((name, gid.parse().ok()?, f.next().unwrap_or("")))
    })
}

/// A file of the image; absent is empty.
fn read(root: &Root, path: &'static str) -> Result<String, UserError> {
    match root.read(path, MAX_FILE) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(String::new())
        }
        Err(source) => Err(UserError::Read { path, source }),
    }
}

/// A number in Docker's range; `None` is a name.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(n) if n <= i32::MAX as u32 => Ok(Some(n)),
        _ => Err(UserError::OutOfRange(text.to_owned())),
    }
}

/// Resolves `user[:group]` and further groups (names or numbers) in the container behind `root`. An empty `user` is
/// root. Without a group the user's own from the passwd file counts, with all groups that name the user.
pub fn resolve_user(root: &Root, user: &str, additional: &[String]) -> Result<oci::User, UserError> {
    let (who, which) = user.split_once(':').unwrap_or((user, ""));
    let who = if who.is_empty() { "0" } else { who };
    let users = read(root, "/etc/passwd")?;
    let wanted = number(who)?;
    // As Docker: an entry of that name wins over one of that number.
    let entry = passwd(&users)
        .find(|u| u.name == who)
        .or_else(|| wanted.and_then(|uid| passwd(&users).find(|u| u.uid == uid)));
    let (uid, mut gid) = match (&entry, wanted) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser(who.to_owned())),
    };
    let mut groups = Vec::new();
    let needs_file = which.is_empty() && entry.is_some() || !which.is_empty() || !additional.is_empty();
    let file = if needs_file { read(root, "/etc/group")? } else { String::new() };
    let find = |name: &str| -> Result<u32, UserError> {
        match (group(&file).find(|g| g.0 == name), number(name)?) {
            (Some((_, gid, _)), _) => Ok(gid),
            (None, Some(gid)) => Ok(gid),
            (None, None) => Err(UserError::NoGroup(name.to_owned())),
        }
    };
    if !which.is_empty() {
        gid = find(which)?;
    } else if let Some(entry) = &entry {
        let member = |members: &str| members.split(',').any(|m| m.trim() == entry.name);
        groups.extend(group(&file).filter(|g| member(g.2)).map(|g| g.1).take(MAX_GROUPS));
    }
    for name in additional {
        groups.push(find(name)?);
    }
    groups.retain(|g| *g != gid);
    groups.sort_unstable();
    groups.dedup();
    let mut resolved = oci::User::default();
    resolved.set_uid(uid).set_gid(gid).set_additional_gids((!groups.is_empty()).then_some(groups));
    Ok(resolved)
}

/// The home directory of a uid; `/` where the image names none.
pub fn home(root: &Root, uid: u32) -> String {
    let users = read(root, "/etc/passwd").unwrap_or_default();
    let home = passwd(&users).find(|u| u.uid == uid).map_or("", |u| u.home);
    if home.is_empty() { "/".into() } else { home.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image() -> (tempfile::TempDir, Root) {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\nbad\nalice:x:1000:1001::/home/alice:\n\
                      7:x:77:78::/seven:\n";
        let group = "root:x:0:\nalice:x:1001:\nwheel:x:10:root,alice\nvideo:x:44: alice\n";
        std::fs::write(tmp.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(tmp.path().join("etc/group"), group).unwrap();
        let root = Root::open(tmp.path()).unwrap();
        (tmp, root)
    }

    #[test]
    fn users_are_resolved_as_docker_resolves_them() {
        let (_tmp, root) = image();
        let ask = |user: &str, more: &[&str]| {
            let more: Vec<String> = more.iter().map(|s| s.to_string()).collect();
            resolve_user(&root, user, &more)
                .map(|u| (u.uid(), u.gid(), u.additional_gids().clone().unwrap_or_default()))
                .map_err(|e| e.to_string())
        };
        assert_eq!(ask("", &[]), Ok((0, 0, vec![10])));
        assert_eq!(ask("alice", &[]), Ok((1000, 1001, vec![10, 44])));
        assert_eq!(ask("1000", &[]), Ok((1000, 1001, vec![10, 44])));
        assert_eq!(ask("alice:wheel", &[]), Ok((1000, 10, vec![])));
        assert_eq!(ask("4242", &["video", "9"]), Ok((4242, 0, vec![9, 44])));
        assert_eq!(ask("4242:4243", &[]), Ok((4242, 4243, vec![])));
        assert_eq!(ask("7", &[]), Ok((77, 78, vec![])));
        let nobody = "unable to find user bob: no matching entries in passwd file";
        assert_eq!(ask("bob", &[]), Err(nobody.into()));
        let no_group = "unable to find group nope: no matching entries in group file";
        assert_eq!(ask("0:nope", &[]), Err(no_group.into()));
        assert!(ask("4294967295", &[]).is_err());
        assert_eq!(home(&root, 1000), "/home/alice");
        assert_eq!(home(&root, 5), "/");
    }

    #[test]
    fn passwd_may_not_lead_outside() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/../../../../etc/passwd", tmp.path().join("etc/passwd")).unwrap();
        let root = Root::open(tmp.path()).unwrap();
        assert!(resolve_user(&root, "root", &[]).is_err());
    }

    proptest! {
        #[test]
        fn hostile_files_do_no_harm(users in ".{0,200}", groups in ".{0,200}", name in "[a-z0-9:]{0,8}") {
            let tmp = tempfile::tempdir().unwrap();
            std::fs::create_dir(tmp.path().join("etc")).unwrap();
            std::fs::write(tmp.path().join("etc/passwd"), users).unwrap();
            std::fs::write(tmp.path().join("etc/group"), groups).unwrap();
            let _ = resolve_user(&Root::open(tmp.path()).unwrap(), &name, &[]);
        }
    }
}
