//! One sandbox comes, goes, or learns where it may go: each is one transaction on the elements of [`super::members`].

use super::element::{Element, all_in};
use super::members::{self, Held, Wanted, is_confined, is_guarded};
use super::{Family, POLICY_GENERATION, attempt, is_absent, is_missing, policy, refused, request, transact};
use super::{GETCHAIN, TABLE};
use crate::{NetError, conntrack};
use rustix::io::Errno;
use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use sys::netlink::{Batch, Socket, errno};
use types::{Attachment, BridgePlan, EgressRule};

/// How often rules that somebody else flushes are loaded again.
const TRIES: usize = 5;

/// Holds a sandbox to its addresses and to its policy, or lets it reach the host, as the attachment says: before its
/// interface is there. What was left by another with these addresses goes. May be repeated.
///
/// `socket` is opened only if there is something to do. A kernel that cannot hold it to its addresses lets it go
/// unguarded; one that cannot hold it to its policy makes this fail.
pub(crate) fn enter(a: &Attachment) -> Result<(), NetError> {
    let elements = members::of(a);
    if elements.is_empty() {
        return Ok(());
    }
    if is_confined(a) {
        // What is established passes its policy: nothing shall be that was its predecessor's.
        conntrack::forget_all(members::given(a).into_iter());
    }
    let done = super::open().and_then(|mut socket| {
        let mut tries = 0;
        loop {
            match load_and_write(&mut socket, a, &elements) {
                // Somebody flushed the rules since the bridge was ensured, or since they were loaded.
                Err(e) if is_absent(&e) && tries < TRIES => super::install(&mut socket, &a.bridge)?,
                done => return done,
            }
            tries += 1;
        }
    });
    match done {
        Err(e) if is_missing(&e) && is_confined(a) => {
            Err(NetError::EgressUnsupported { id: a.id.clone(), source: Box::new(e) })
        }
        Err(e) if is_missing(&e) => without_guard(a, &elements),
        done => done,
    }
}

fn load_and_write(socket: &mut Socket, a: &Attachment, elements: &[Element]) -> Result<(), NetError> {
    if is_guarded(a) && !loaded(socket) {
        attempt(socket, policy::load).map_err(refused("load the rules of policies"))?;
    }
    write(socket, a, elements)
}

fn write(socket: &mut Socket, a: &Attachment, elements: &[Element]) -> Result<(), NetError> {
    let failed = || refused("write a sandbox's policy");
    let held = match is_confined(a) {
        true => Held::of(members::policies(socket).map_err(failed())?),
        false => Held::default(),
    };
    let old: Vec<_> = held.about(a).into_iter().filter(|old| !elements.iter().any(|e| e.is(old))).collect();
    transact(socket, |b| {
        old.iter().for_each(|e| e.away(b));
        elements.iter().for_each(|e| e.put(b));
    })
    .map_err(failed())
}

/// On a kernel without tables for bridges: host access, where there are tables at all.
fn without_guard(a: &Attachment, elements: &[Element]) -> Result<(), NetError> {
    let access: Vec<_> =
        elements.iter().filter(|e| matches!(e.family, Family::V4 | Family::V6)).cloned().collect();
    if access.is_empty() {
        return Ok(());
    }
    match super::open().and_then(|mut socket| write(&mut socket, a, &access)) {
        Err(e) if is_missing(&e) => Ok(()),
        done => done,
    }
}

/// Whether what [`enter`] writes is there.
pub(crate) fn is_entered(socket: &mut Socket, a: &Attachment) -> bool {
    let (ranges, others): (Vec<_>, Vec<_>) = members::of(a).into_iter().partition(|e| e.end.is_some());
    let mut batch = Batch::new();
    others.iter().for_each(|e| e.ask(&mut batch));
    let there =
        batch.is_empty() || (!is_guarded(a) || loaded(socket)) && socket.query(batch, &mut |_| ()).is_ok();
    there && are_there(socket, &ranges)
}

/// Whether ranges are there. They cannot be asked for one by one: the kernel answers with whichever holds the key.
fn are_there(socket: &mut Socket, ranges: &[Element]) -> bool {
    let sets: HashSet<_> = ranges.iter().map(|e| (e.family, e.set)).collect();
    sets.into_iter().all(|(family, set)| {
        let found = all_in(socket, family, set).unwrap_or_default();
        let mut here = ranges.iter().filter(|e| (e.family, e.set) == (family, set));
        here.all(|range| found.iter().any(|e| e.is(range)))
    })
}

/// Whether the rules of policies are loaded; one round trip to the kernel.
pub(super) fn loaded(socket: &mut Socket) -> bool {
    let mut batch = Batch::new();
    for family in [Family::Inet, Family::Bridge] {
        request(&mut batch, GETCHAIN, 0, family).attr_str(1, TABLE).attr_str(3, POLICY_GENERATION);
    }
    socket.query(batch, &mut |_| ()).is_ok()
}

/// Takes back what [`enter`] and [`permit`] wrote for these sandboxes. May be repeated. Answers with the socket if there was
/// anything: closing it waits for the kernel to free what was removed.
pub(crate) fn leave<'a>(list: impl Iterator<Item = &'a Attachment>) -> Result<Option<Socket>, NetError> {
    let mut held = None;
    let mut gone = Vec::new();
    let mut socket = None;
    for a in list {
        let elements = members::of(a);
        if elements.is_empty() {
            continue;
        }
        let socket = match &mut socket {
            Some(socket) => socket,
            none => none.insert(super::open()?),
        };
        if is_confined(a) {
            let held = match &held {
                Some(held) => held,
                None => &*held.insert(self::held(socket)?),
            };
            gone.extend(held.about(a).into_iter().cloned());
        } else {
            gone.extend(elements);
        }
    }
    if let Some(socket) = &mut socket {
        remove(socket, &gone).map_err(refused("take back a sandbox's policy"))?;
    }
    Ok(socket)
}

/// Removes elements, whichever of them are there.
fn remove(socket: &mut Socket, list: &[Element]) -> io::Result<()> {
    match transact(socket, |b| list.iter().for_each(|e| e.away(b))) {
        // Without its table nothing is there.
        Err(e) if errno(&e) == Some(Errno::NOENT) => {
            for family in [Family::V4, Family::V6, Family::Inet, Family::Bridge] {
                let here = list.iter().filter(|e| e.family == family);
                match transact(socket, |b| here.for_each(|e| e.away(b))) {
                    Err(e) if errno(&e) == Some(Errno::NOENT) => {}
                    done => done?,
                }
            }
            Ok(())
        }
        done => done,
    }
}

/// Lets a sandbox go where a name of its policy leads, to each address for as long as it is valid.
pub(crate) fn permit(
    socket: &mut Socket,
    a: &Attachment,
    rule: &EgressRule,
    found: &[(IpAddr, Duration)],
) -> Result<(), NetError> {
    let list = members::resolved(a, rule, found);
    // An element that is there keeps its time, before Linux 6.12: it has to be made anew.
    transact(socket, |b| {
        for e in &list {
            e.away(b);
            e.put(b);
        }
    })
    .map_err(refused("permit what a name resolved to"))
}

/// Everything that is held for sandboxes, of any bridge.
pub(crate) fn held(socket: &mut Socket) -> Result<Held, NetError> {
    Held::read(socket).map_err(refused("read the policies of sandboxes"))
}

/// Removes what is held for sandboxes of this bridge that are not among the live ones; how many elements that were.
pub(crate) fn sweep(
    socket: &mut Socket,
    plan: &BridgePlan,
    live: &[Attachment],
    held: &Held,
) -> Result<usize, NetError> {
    let wanted = Wanted::by(live);
    let dead: Vec<_> =
        held.elements.iter().filter(|e| held.belongs(e, plan) && !wanted.keeps(e)).cloned().collect();
    remove(socket, &dead).map_err(refused("remove the policies of the dead"))?;
    Ok(dead.len())
}
