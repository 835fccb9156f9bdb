//! `container prune`, `image prune`, `system prune`, `system reset`: takes only what nobody uses.

use crate::images::{list_filters, until};
use crate::recover::remove_tree;
use crate::request::{Filters, Pruned, RemoveOptions};
use crate::store;
use crate::volumes::place;
use crate::{Engine, EngineError, Result, filters};
use std::collections::HashSet;
use types::EventType;

/// How long supervisors may take to unmount what they have used.
const UNMOUNTED: std::time::Duration = std::time::Duration::from_secs(5);

impl Engine {
    /// Removes containers that do not run.
    pub fn prune_containers(&self, filter: &Filters) -> Result<Pruned> {
        filters::check(filter, &["until", "label", "label!"])?;
        let mut out = Pruned::default();
        for container in store::all(&self.db)? {
            let labels = container.config.labels.clone().unwrap_or_default();
            if !prunable(filter, container.created_ns, |k| labels.get(k))?
                || self.state(&container)?.status.is_active()
            {
                continue;
            }
            // All of its directory, as `system df` counts it.
            let size = rootfs::usage(&self.paths.sandbox(&container.id)).unwrap_or(0);
            match self.remove(container.id.as_str(), RemoveOptions::default()) {
                Ok(()) => {
                    out.reclaimed += size;
                    out.containers.push(container.id.to_string());
                }
                // It was started, or removed, meanwhile.
                Err(EngineError::Conflict(_) | EngineError::NoSuchContainer(_)) => {}
                Err(e) => return Err(e),
            }
        }
        self.prune_event(EventType::Container, out.reclaimed);
        Ok(out)
    }

    /// Removes images without a name, or with `all` those without a container.
    pub fn prune_images(&self, all: bool, filter: &Filters) -> Result<Pruned> {
        let all = all || filter.get("dangling").is_some_and(|v| v.iter().any(|v| v == "false" || v == "0"));
        let mut filter = filter.clone();
        filter.remove("dangling");
        let pruned = self.images.prune(all, &list_filters(&filter)?, &|id| self.users_of(id))?;
        let items = pruned.items.into_iter().filter_map(|i| match (i.untagged, i.deleted) {
            (Some(name), _) => Some(format!("untagged: {name}")),
            (_, Some(id)) => Some(format!("deleted: {id}")),
            _ => None,
        });
        self.prune_event(EventType::Image, pruned.reclaimed);
        Ok(Pruned { images: items.collect(), reclaimed: pruned.reclaimed, ..Pruned::default() })
    }

    /// All of these, after a recovery of whatever a crash left.
    pub fn prune_system(&self, all_images: bool, volumes: bool, filter: &Filters) -> Result<Pruned> {
        let images = || Ok::<u64, EngineError>(self.images.disk_usage(&HashSet::new())?.bytes);
        // What a recovery, and the removal of an image's last container, take away is not in any list.
        let before = images()?;
        self.recover()?;
        let mut out = self.prune_containers(filter)?;
        out.networks = self.prune_networks(filter)?;
        if volumes {
            let labels = filter.iter().filter(|(key, _)| key.starts_with("label"));
            let labels = labels.map(|(k, v)| (k.clone(), v.clone())).collect();
            let pruned = self.prune_volumes(false, &labels)?;
            out.volumes = pruned.volumes;
            out.reclaimed += pruned.reclaimed;
        }
        let pruned = self.prune_images(all_images, filter)?;
        out.images = pruned.images;
        out.reclaimed += before.saturating_sub(images()?).max(pruned.reclaimed);
        Ok(out)
    }

    /// Removes everything that this store has made: containers, images, volumes, its bridge, its directories.
    pub fn reset(self) -> Result<()> {
        for container in store::all(&self.db)? {
            let options = RemoveOptions { force: true, volumes: true };
            match self.remove(container.id.as_str(), options) {
                Ok(()) | Err(EngineError::NoSuchContainer(_)) => {}
                Err(e) => return Err(e),
            }
        }
        self.recover()?;
        self.remove_bridges()?;
        sandbox::container::cgroup::Cgroup::clean(&format!("/{}", self.cgroup_parent()))
            .map_err(|e| EngineError::Conflict(e.to_string()))?;
        for volume in self.volumes()? {
            place::clear(&self.place(&volume.name))?;
        }
        place::sweep(&self.places());
        refuse_mounted(&self.places())?;
        let paths = self.paths.clone();
        drop(self);
        // Only what is ours: the directories themselves may have been made by somebody else.
        for name in ["sandboxes", "volumes", "layers", "content", "templates", "run"] {
            remove_tree(&paths.root.join(name))?;
        }
        for name in ["state.db", "state.db-wal", "state.db-shm"] {
            remove_file(&paths.root.join(name))?;
        }
        remove_tree(&paths.run.join("sandboxes"))?;
        remove_tree(&paths.run.join("execs"))?;
        remove_tree(&paths.run.join("volumes"))?;
        remove_tree(&paths.run.join("networks"))?;
        remove_layer_mounts(&paths.layer_mounts())?;
        for name in ["events.jsonl", "events.jsonl.1", "layer-format"] {
            remove_file(&paths.run.join(name))?;
        }
        let _ = std::fs::remove_dir(&paths.run);
        let _ = std::fs::remove_dir(&paths.root);
        Ok(())
    }
}

/// Nothing is deleted beneath what is still mounted.
fn refuse_mounted(places: &std::path::Path) -> Result<()> {
    for entry in std::fs::read_dir(places).into_iter().flatten().flatten() {
        if place::is_mounted(&entry.path().join("mnt"))? {
            return Err(EngineError::Conflict(format!(
                "{} is still mounted and in use: end what uses it, and try again",
                entry.path().join("mnt").display()
            )));
        }
    }
    Ok(())
}

/// Supervisors that have answered already may still be unmounting.
fn remove_layer_mounts(dir: &std::path::Path) -> Result<()> {
    let begun = std::time::Instant::now();
    loop {
        rootfs::sweep(dir)?;
        match remove_tree(dir) {
            Err(_) if begun.elapsed() < UNMOUNTED => std::thread::sleep(std::time::Duration::from_millis(2)),
            done => return done,
        }
    }
}

fn remove_file(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(EngineError::io("cannot remove", path)(e)),
        _ => Ok(()),
    }
}

/// Whether something of that age, with these labels, may be taken.
pub(crate) fn prunable<'a>(
    filter: &Filters,
    created_ns: i64,
    label: impl Fn(&str) -> Option<&'a String>,
) -> Result<bool> {
    let has = |wanted: &String| filters::label_matches(wanted, &label);
    for (key, values) in filter {
        let ok = match key.as_str() {
            "until" => {
                let mut ok = true;
                for value in values {
                    ok &= created_ns < until(value)?;
                }
                ok
            }
            "label" => values.iter().all(has),
            _ => !values.iter().any(has),
        };
        if !ok {
            return Ok(false);
        }
    }
    Ok(true)
}
