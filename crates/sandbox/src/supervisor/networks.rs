//! Networks that come and go while the container is there: the sandbox gets or loses an interface, and the bundle says so,
//! for restarts and for a supervisor that adopts.
//!
//! Where the default route and the published ports lead is decided here: they stay where they are, and when their network
//! goes, the next one that leads outside has them. Not here: addresses and names, which the engine decides.

use super::asking::Next;
use super::core::{Core, internal};
use crate::hull::{HookError, HullError, Sandbox, Wiring};
use crate::protocol::{Failure, Request, Response};
use types::{Attachment, ErrorKind, NetworkPlan};

impl From<HookError> for Failure {
    fn from(e: HookError) -> Self {
        Self { kind: e.kind, message: e.message, exit_code: 125 }
    }
}

impl Core<'_> {
    pub(super) fn connect_network(&mut self, mut new: Attachment) -> Result<Next, Failure> {
        self.is_reachable()?;
        let mut list = self.attachments()?;
        let known = list.iter().position(|a| a.network == new.network);
        match known {
            // A guest is told of what it has when its default route moves.
            Some(place) if cfg!(not(feature = "host")) => drop(list.remove(place)),
            Some(_) => {
                let message = format!(
                    "Container {} is already connected to network {}",
                    self.bundle.id.as_str(),
                    new.network_name
                );
                return Err(Failure { kind: ErrorKind::Conflict, message, exit_code: 1 });
            }
            None => {}
        }
        let routed = list.iter().any(|a| a.default_route);
        new.default_route |= !routed && !new.bridge.internal;
        let old_route = list.iter_mut().filter(|a| a.default_route && new.default_route);
        old_route.for_each(|a| a.default_route = false);
        list.push(new.clone());
        list.sort_by_key(Attachment::slot);
        let before = std::mem::replace(&mut self.bundle.network, NetworkPlan::Networks(list));
        // First, so that who adopts half of this finishes it.
        if let Err(failure) = self.note_networks() {
            self.bundle.network = before;
            let _ = self.note_networks();
            return Err(failure);
        }
        let wanted = new.clone();
        let request = || Request::ConnectNetwork(Box::new(wanted));
        Ok(self.first(request, move |core, told| {
            let connected = told
                .map_err(Into::into)
                .and_then(|_| core.with_wiring(|sandbox, wiring| sandbox.connect(&new, wiring)))
                .and_then(|()| core.networks_changed());
            match connected {
                Ok(done) => Next::Done(Ok(done)),
                Err(failure) => core.undo_connecting(before, &new, failure),
            }
        }))
    }

    /// As if nobody had asked.
    fn undo_connecting(&mut self, before: NetworkPlan, new: &Attachment, failure: Failure) -> Next {
        self.bundle.network = before;
        let _ = self.note_networks();
        let _ = self.with_wiring(|sandbox, wiring| sandbox.disconnect(new, wiring));
        let request = || Request::DisconnectNetwork { network: new.network.clone() };
        self.first(request, move |core, _| {
            let _ = core.networks_changed();
            Next::Done(Err(failure))
        })
    }

    pub(super) fn disconnect_network(&mut self, network: &str) -> Result<Next, Failure> {
        self.is_reachable()?;
        let mut list = self.attachments()?;
        let place = list.iter().position(|a| a.network == network).ok_or_else(|| {
            let id = self.bundle.id.as_str();
            let message = format!("container {id} is not connected to the network {network}");
            Failure { kind: ErrorKind::NotFound, message, exit_code: 1 }
        })?;
        let gone = list.remove(place);
        let heir = list.iter_mut().find(|a| !a.bridge.internal).map(|heir| {
            heir.default_route |= gone.default_route;
            if heir.uplink.is_none() {
                heir.ports.extend(gone.ports.clone());
            }
            heir.clone()
        });
        let before = std::mem::replace(&mut self.bundle.network, NetworkPlan::Networks(list));
        self.note_networks()?;
        if let Err(e) = self.with_wiring(|sandbox, wiring| sandbox.disconnect(&gone, wiring)) {
            self.bundle.network = before;
            let _ = self.note_networks();
            return Err(e);
        }
        let heir = heir.filter(|_| gone.default_route);
        let request = || Request::DisconnectNetwork { network: gone.network };
        // Whatever a guest says: it has no part in the network any more.
        Ok(self.first(request, move |core, _| match heir {
            Some(heir) => core.reroute(heir),
            None => Next::Done(core.networks_changed()),
        }))
    }

    /// Another interface has the default route now.
    fn reroute(&mut self, heir: Attachment) -> Next {
        let wanted = heir.clone();
        let request = || Request::ConnectNetwork(Box::new(wanted));
        self.first(request, move |core, told| {
            let rerouted = told
                .map_err(Into::into)
                .and_then(|_| core.with_wiring(|sandbox, wiring| sandbox.reconfigure(&heir, wiring)));
            Next::Done(core.networks_changed().and_then(|done| rerouted.map(|()| done)))
        })
    }

    /// Of one who died while it connected the sandbox.
    pub(super) fn finish_connecting(&mut self) {
        for attachment in self.bundle.network.attachments().to_vec() {
            if !self.hooks.is_connected(&attachment) {
                // What cannot be connected stays in the plan, for the next start.
                let wanted = attachment.clone();
                let request = || Request::ConnectNetwork(Box::new(wanted));
                let next = self.first(request, move |core, told| {
                    let connect = |_| core.with_wiring(|sandbox, w| sandbox.connect(&attachment, w));
                    let done = told.map_err(Into::into).and_then(connect);
                    Next::Done(done.map(|()| Response::Done))
                });
                let _ = self.ask(0, next);
            }
        }
    }

    /// The container has another name: so others find it by that one.
    pub(super) fn renamed(&mut self, old: &str) -> Result<Response, Failure> {
        if let NetworkPlan::Networks(list) = &mut self.bundle.network {
            let names = list.iter_mut().flat_map(|a| &mut a.names).filter(|name| *name == old);
            names.for_each(|name| name.clone_from(&self.bundle.name));
            self.note_networks()?;
        }
        self.networks_changed()
    }

    /// Runs something that the sandbox does together with the engine; nothing has to be done while it does not run.
    fn with_wiring(
        &mut self,
        change: impl FnOnce(&mut dyn Sandbox, &mut dyn Wiring) -> Result<(), HullError>,
    ) -> Result<(), Failure> {
        match self.main.as_mut().filter(|main| !main.is_draining()) {
            Some(main) => Ok(change(&mut *main.sandbox, &mut *self.hooks)?),
            None => Ok(()),
        }
    }

    /// Its own networks; with those of others nothing can be done.
    fn attachments(&self) -> Result<Vec<Attachment>, Failure> {
        let what = match &self.bundle.network {
            NetworkPlan::Networks(list) => return Ok(list.clone()),
            NetworkPlan::Host => "the host's network",
            NetworkPlan::None => "no network (none)",
            NetworkPlan::Container(_) => "the network of another container",
        };
        let id = self.bundle.id.as_str();
        let message =
            format!("container {id} has {what}: it cannot be connected to others, nor disconnected");
        Err(Failure { kind: ErrorKind::Invalid, message, exit_code: 1 })
    }

    fn is_reachable(&self) -> Result<(), Failure> {
        if self.is_deaf() { Err(self.not_running()) } else { Ok(()) }
    }

    /// Ports and names follow.
    fn networks_changed(&mut self) -> Result<Response, Failure> {
        if self.main.as_ref().is_some_and(|main| !main.is_draining()) {
            self.state.ports = self.hooks.networks_changed(&self.bundle)?;
            self.save();
        }
        Ok(Response::Done)
    }

    /// Writes them into the bundle, and leaves all else there as it was. A guest has no bundle to keep.
    fn note_networks(&self) -> Result<(), Failure> {
        if cfg!(not(feature = "host")) {
            return Ok(());
        }
        let path = self.dir.join("bundle.json");
        let note = || -> std::io::Result<()> {
            let mut bundle: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
            bundle["network"] = serde_json::to_value(&self.bundle.network)?;
            sys::file::replace(&path, &serde_json::to_vec(&bundle)?, false)
        };
        note().map_err(|e| internal(format!("cannot note the networks in {}: {e}", path.display())))
    }
}
