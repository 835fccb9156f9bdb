//! The mounts of a container: Docker's standard ones, the three files that name things, and the user's.

use crate::mounts::{Kind, UserMount};
use crate::spec::namespaces::private_ids;
use crate::spec::{Context, invalid, is_privileged};
use crate::{EngineError, Result};
use std::path::Path;
use types::oci::{Mount, MountBuilder};
use types::{SUBPATH, VolumePlan, VolumeSource};

/// Docker's default size of `/dev/shm`.
const SHM: i64 = 64 << 20;

pub(super) fn all(cx: &Context<'_>) -> Result<Vec<Mount>> {
    let host = &cx.container.host;
    let privileged = is_privileged(host);
    let host_ipc = host.ipc_mode.as_deref().is_some_and(|m| m == "host" || m.starts_with("container:"));
    let ro = |rest: &[&'static str]| {
        let mut all = vec!["nosuid", "noexec", "nodev"];
        all.extend(rest);
        all.push(if privileged { "rw" } else { "ro" });
        all
    };
    let mut out = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/sys", "sysfs", "sysfs", &ro(&[]))?,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &ro(&["relatime"]))?,
    ];
    let wants = |target: &str| cx.mounts.iter().any(|m| m.target == Path::new(target));
    if !wants("/dev/mqueue") {
        out.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?);
    }
    if !wants("/dev/shm") && host.ipc_mode.as_deref() != Some("none") {
        out.push(if host_ipc {
            mount("/dev/shm", "bind", "/dev/shm", &["rbind", "rprivate"])?
        } else {
            let size = format!("size={}", host.shm_size.filter(|s| *s > 0).unwrap_or(SHM));
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size])?
        });
    }
    for file in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{file}");
        if !wants(&target) {
            let source = cx.paths.sandbox(cx.names_of).join(file);
            let mode = if host.readonly_rootfs.unwrap_or(false) { "ro" } else { "rw" };
            let file = mount(&target, "bind", &source.to_string_lossy(), &["rbind", "rprivate", mode])?;
            out.push(translated(cx, file)?);
        }
    }
    for user in cx.mounts {
        out.push(of_user(cx, user)?);
    }
    Ok(out)
}

fn of_user(cx: &Context<'_>, user: &UserMount) -> Result<Mount> {
    let target = user.target.to_string_lossy();
    let mounted = cx.volumes.iter().find(|v| v.name == user.volume);
    let read_only = user.read_only || mounted.is_some_and(is_read_only);
    let mode = if read_only { "ro" } else { "rw" };
    let source = match user.kind {
        Kind::Tmpfs => {
            let mut options = vec!["nosuid", "nodev"];
            // Docker's tmpfs is noexec unless `exec` is asked for.
            if !user.options.iter().any(|o| o == "exec" || o == "noexec") {
                options.push("noexec");
            }
            options.extend(user.options.iter().map(String::as_str));
            if user.read_only {
                options.push("ro");
            }
            return mount(&target, "tmpfs", "tmpfs", &options);
        }
        Kind::Volume | Kind::Image => match mounted {
            Some(mounted) => mounted.mountpoint(),
            None => cx.paths.volume(&user.volume),
        },
        // A link of the host's user is followed here, once: the hull gets the real path.
        Kind::Bind => {
            // Checked again: what it was at the container's creation may be a link into our own state by now.
            crate::mounts::check_source(user, cx.paths)?;
            let what = EngineError::io("bind source", &user.source);
            std::fs::canonicalize(&user.source).map_err(what)?
        }
    };
    let bind = if user.non_recursive { "bind" } else { "rbind" };
    let propagation = if user.propagation.is_empty() { "rprivate" } else { &user.propagation };
    // What is read-only is so all the way down, mounts below the source included.
    let mode = if mode == "ro" && !user.non_recursive { "rro" } else { mode };
    let subpath = format!("{SUBPATH}{}", user.subpath);
    let words = [bind, propagation, mode, &subpath];
    let count = if user.subpath.is_empty() { words.len() - 1 } else { words.len() };
    let mount = mount(&target, "bind", &source.to_string_lossy(), words.get(..count).unwrap_or(&words))?;
    match user.kind {
        Kind::Volume | Kind::Image => translated(cx, mount),
        // Belongs to the host, whose owners are to be told from the container's.
        _ => Ok(mount),
    }
}

/// Whether a volume's own options say that nobody writes to it.
fn is_read_only(plan: &VolumePlan) -> bool {
    matches!(&plan.source, VolumeSource::Mount { options, .. } if options.iter().any(|word| word == "ro"))
}

/// What is the container's own keeps the ids of the inside on the disk, whatever range the container has: so volumes
/// can be shared, also with containers that have no user namespace.
fn translated(cx: &Context<'_>, mut mount: Mount) -> Result<Mount> {
    if let Some(ids) = private_ids(cx)? {
        mount.options_mut().get_or_insert_default().push("idmap".to_owned());
        mount.set_uid_mappings(Some(ids.clone())).set_gid_mappings(Some(ids));
    }
    Ok(mount)
}

/// A shared or slave mount inside needs the root to let it through.
pub(super) fn propagation(mounts: &[UserMount]) -> &'static str {
    let any = |word: &str| mounts.iter().any(|m| m.propagation.ends_with(word));
    match () {
        () if any("shared") => "shared",
        () if any("slave") => "rslave",
        () => "rprivate",
    }
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Result<Mount> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
        .map_err(invalid)
}
