//! All our tables anew, in one transaction: after somebody has changed or flushed them.
//!
//! Stores of one host share the tables. What another store has in them stays as it is: whoever rebuilds takes it over,
//! and begins again if anything changed meanwhile (nf_tables counts its generations).

use super::element::{Element, INTERVAL_END, all_in};
use super::members::{self, Held, Wanted};
use super::rules::SUBNETS;
use super::{
    DELTABLE, Family, GETGEN, Published, TABLE, attempt_at, elements, families, policy, refused, request,
    rules, schema,
};
use crate::NetError;
use rustix::io::Errno;
use std::io;
use sys::netlink::{Batch, Socket, attributes, errno};
use types::{Attachment, BridgePlan};

/// How often it is tried while others change the tables.
const TRIES: usize = 50;

/// Builds every table, with these bridges and these sandboxes.
pub(crate) fn rebuild(
    socket: &mut Socket,
    plans: &[BridgePlan],
    live: &dyn Fn() -> Option<Vec<Attachment>>,
) -> Result<(), NetError> {
    let mut failed = None;
    for _ in 0..TRIES {
        match once(socket, plans, &|| live().ok_or(NetError::Unknown))? {
            Err(e) if matches!(errno(&e), Some(Errno::RESTART)) => failed = Some(e),
            done => return done.map_err(refused("rebuild the rules")),
        }
    }
    Err(refused("rebuild the rules")(failed.unwrap_or_else(|| Errno::RESTART.into())))
}

/// Tries it once: what `live` fails with, or what the kernel says.
fn once(
    socket: &mut Socket,
    plans: &[BridgePlan],
    live: &dyn Fn() -> Result<Vec<Attachment>, NetError>,
) -> Result<io::Result<()>, NetError> {
    let read = |socket: &mut Socket| Ok::<_, io::Error>((generation(socket)?, everything(socket)?));
    let (generation, found) = match read(socket) {
        Ok(read) => read,
        Err(e) => return Ok(Err(e)),
    };
    let live = live()?;
    let (wanted, held) = (Wanted::by(&live), Held::of(found.clone()));
    let ours = |e: &Element| {
        plans.iter().any(|p| match e.family {
            Family::V4 | Family::V6 => elements::belongs(e, p) || held.belongs(e, p),
            _ => held.belongs(e, p),
        })
    };
    // Names of ours resolved to these; all else of ours is made anew.
    let kept = found.iter().filter(|e| !ours(e) || (e.timeout.is_some() && wanted.keeps(e)));
    let kept = in_order(kept.cloned().collect());
    let made: Vec<Element> =
        live.iter().flat_map(members::of).chain(live.iter().flat_map(published)).collect();
    let policies = kept.iter().chain(&made).any(|e| matches!(e.family, Family::Inet | Family::Bridge));

    Ok(attempt_at(socket, Some(generation), |batch, refuse| {
        for family in families() {
            anew(batch, family);
            rules::load(batch, family, refuse);
            plans.iter().for_each(|p| elements::register(batch, family, p));
        }
        if policies {
            anew(batch, Family::Inet);
            anew(batch, Family::Bridge);
            policy::load(batch, refuse);
        }
        kept.iter().chain(&made).for_each(|e| e.put(batch));
    }))
}

/// Deletes our table, there or not.
fn anew(batch: &mut Batch, family: Family) {
    schema::table(batch, family);
    request(batch, DELTABLE, 0, family).attr_str(1, TABLE);
}

fn published(a: &Attachment) -> Vec<Element> {
    let decided = a.ports.iter().filter(|p| p.host_port != 0);
    decided.filter_map(|b| Published::of(b, a)).map(|p| p.element()).collect()
}

pub(super) fn everything(socket: &mut Socket) -> io::Result<Vec<Element>> {
    let mut found = members::policies(socket)?;
    for family in families() {
        for set in rules::names(family) {
            found.extend(all_in(socket, family, set)?);
        }
    }
    Ok(found)
}

/// Each end of a range after its beginning, as the kernel wants them; it tells them in another order.
fn in_order(mut list: Vec<Element>) -> Vec<Element> {
    let place = |e: &Element| {
        let end = e.flags & INTERVAL_END != 0;
        (e.family, e.set, if e.set == SUBNETS { Some((e.key.clone(), !end)) } else { None })
    };
    list.sort_by_cached_key(place);
    list
}

/// The number of the last change of any nf_tables rule of this network namespace.
fn generation(socket: &mut Socket) -> io::Result<u32> {
    let mut batch = Batch::new();
    request(&mut batch, GETGEN, 0, Family::V4);
    let mut found = None;
    socket.query(batch, &mut |m| {
        let id = attributes(m.payload.get(4..).unwrap_or_default()).find(1);
        found = id.and_then(|v| v.first_chunk::<4>()).map(|v| u32::from_be_bytes(*v));
    })?;
    found.ok_or_else(|| Errno::OPNOTSUPP.into())
}
