//! Ids of private user namespaces: each container that wants one holds a range of the host's ids that no other
//! container of this store has, from its first start until it is removed.
//!
//! Where the search begins is drawn from the container's id, so that other stores of this host, which know nothing of
//! ours, hardly ever meet the same range.

use crate::spec::{invalid, is_privileged};
use crate::store::Container;
use crate::{Engine, EngineError, Result};
use state::rusqlite::{OptionalExtension, params};
use types::ContainerId;
use types::docker::HostConfig;

/// Ids that a private user namespace has.
pub(crate) const IDS: u32 = 65_536;
/// Where the first range begins. The last one ends below 2^31, beyond which some programs take ids for negative.
pub(crate) const FIRST_ID: u32 = 1 << 17;
/// Ranges that there are.
const SLOTS: u32 = 30_000;

/// Whether a container is to have a user namespace of its own.
pub(crate) fn is_private(host: &HostConfig) -> bool {
    matches!(host.userns_mode.as_deref(), Some("auto" | "private"))
}

/// Refuses modes that there are not, and with a private user namespace what its root has no power over.
pub(crate) fn check(host: &HostConfig) -> Result<()> {
    match host.userns_mode.as_deref().unwrap_or("") {
        "" | "host" => return Ok(()),
        "auto" | "private" => {}
        other => {
            return Err(invalid(format!(
                "invalid --userns mode {other:?}: host, private and auto are known"
            )));
        }
    }
    if is_privileged(host) {
        return Err(invalid("a private user namespace cannot be combined with --privileged"));
    }
    let modes = [("--pid", &host.pid_mode), ("--ipc", &host.ipc_mode), ("--network", &host.network_mode)];
    for (flag, mode) in modes {
        if let Some(mode) = mode.as_deref().filter(|m| *m == "host" || m.starts_with("container:")) {
            return Err(invalid(format!("a private user namespace cannot be combined with {flag} {mode}")));
        }
    }
    match host.uts_mode.as_deref() {
        Some(mode) if mode.starts_with("container:") => {
            Err(invalid(format!("a private user namespace cannot be combined with --uts {mode}")))
        }
        _ => Ok(()),
    }
}

impl Engine {
    /// The first host id of the range of a container that is about to start: the one it had, or the next free one.
    pub(crate) fn user_ids(&self, container: &Container) -> Result<Option<u32>> {
        if !is_private(&container.host) {
            return Ok(None);
        }
        let granted: Vec<_> =
            ["/etc/subuid", "/etc/subgid"].iter().filter_map(|f| std::fs::read_to_string(f).ok()).collect();
        let granted: Vec<_> = granted.iter().flat_map(|text| subordinate(text)).collect();
        let slot = self.lease_slot(&container.id, &|slot| {
            let first = u64::from(first_id(slot));
            granted.iter().any(|(start, count)| first < start + count && *start < first + u64::from(IDS))
        })?;
        Ok(Some(first_id(slot)))
    }

    fn lease_slot(&self, id: &ContainerId, granted: &dyn Fn(u32) -> bool) -> Result<u32> {
        let held = "SELECT slot FROM user_ranges WHERE container = ?1";
        let mut statement = self.db.conn().prepare_cached(held)?;
        if let Some(slot) = statement.query_row([id.as_str()], |r| r.get(0)).optional()? {
            return Ok(slot);
        }
        let begin = id.as_str().get(..7).and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(0);
        self.db.write(|tx| {
            let mut taken = tx.prepare_cached("SELECT 1 FROM user_ranges WHERE slot = ?1")?;
            for slot in (0..SLOTS).map(|n| (begin + n) % SLOTS) {
                if granted(slot) || taken.exists([slot])? {
                    continue;
                }
                tx.prepare_cached("INSERT INTO user_ranges VALUES (?1, ?2)")?
                    .execute(params![slot, id.as_str()])?;
                return Ok(slot);
            }
            Err(EngineError::Exhausted(
                "no range of user ids is free: remove containers with --userns private that are not needed"
                    .into(),
            ))
        })
    }
}

fn first_id(slot: u32) -> u32 {
    FIRST_ID + slot * IDS
}

/// The ranges that `subuid(5)` grants to users of the host: start and count.
fn subordinate(text: &str) -> impl Iterator<Item = (u64, u64)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':').skip(1).map(str::parse::<u32>);
        Some((fields.next()?.ok()?.into(), fields.next()?.ok()?.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_apart_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let options = crate::OpenOptions { root: Some(dir.path().into()), ..Default::default() };
        let engine = Engine::open(&options).unwrap();
        let id = |byte: u8, last: u8| {
            let mut bytes = [byte; 32];
            bytes[31] = last;
            ContainerId::from_random(bytes)
        };
        let add = |id: &ContainerId| {
            let sql = "INSERT INTO containers VALUES (?1, ?1, 0, '', '', '{}', '{}', '[]')";
            engine.db.conn().execute(sql, [id.as_str()]).unwrap();
        };
        let ids = [id(7, 1), id(7, 2), id(7, 3), id(9, 1)];
        ids.iter().for_each(add);
        let none = |_: u32| false;
        let first = engine.lease_slot(&ids[0], &none).unwrap();
        let second = engine.lease_slot(&ids[1], &none).unwrap();
        assert_eq!((second, engine.lease_slot(&ids[0], &none).unwrap()), (first + 1, first));
        assert_eq!(engine.lease_slot(&ids[2], &|slot| slot == first + 2).unwrap(), first + 3);
        let exhausted = engine.lease_slot(&ids[3], &|_| true).unwrap_err();
        assert!(exhausted.to_string().contains("no range"), "{exhausted}");
        crate::store::delete(&engine.db, &ids[0], false).unwrap();
        add(&id(7, 4));
        assert_eq!(engine.lease_slot(&id(7, 4), &none).unwrap(), first);
        assert!(first_id(SLOTS) < 1 << 31);
    }

    #[test]
    fn grants_are_read() {
        let all: Vec<_> = subordinate("ann:100000:65536\n# x\nbad:1\n\n1000:165536:10\n").collect();
        assert_eq!(all, [(100_000, 65_536), (165_536, 10)]);
    }
}
