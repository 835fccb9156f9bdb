//! What is asked of a guest, and what is done once it has answered: a guest that hangs costs who asked its time, nobody else's.
//!
//! ```text
//! request ──► asked ── answer, or the time is up ──► the host's part ──► answered
//!               │ ▲                                       │
//!               │ └──────── a further question ◄──────────┘
//!               └── the end of the run: failed
//! ```
//!
//! A sandbox without a guest is asked nothing, and all is done at once. Questions go on beside each other, but for two things.
//! Changes of what the container is (networks, limits, its name) are one at a time: each begins where the one before has ended.
//! Of sizes of a terminal that come while one is on its way the last follows it, so that this is the one that stays.

use super::connection::{Connection, Role};
use super::core::Core;
use super::requests::Outcome;
use super::starting::TAKES_TIME;
use crate::host_only::OnHost;
use crate::hull::{HullError, Pending};
use crate::protocol::{Failure, Request, Response};

/// What follows an answer.
pub(super) type Then = Box<dyn FnOnce(&mut Core<'_>, Result<Response, HullError>) -> Next>;

/// What becomes of a request when a guest has answered.
pub(super) enum Next {
    /// It is carried out, or not.
    Done(Result<Response, Failure>),
    /// There is something to ask. Never of a guest's own making.
    #[cfg_attr(not(feature = "host"), allow(dead_code))]
    Ask(OnHost, Request, Then),
}

/// A question under way.
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) pending: Box<dyn Pending<Response>>,
    then: Then,
    /// The client that waits; none has the id 0.
    client: u64,
    change: bool,
    _proof: OnHost,
}

/// A terminal whose size a guest is being told, of an exec session or of the main process, and the size to follow.
pub(super) struct Size {
    exec: Option<String>,
    next: Option<(u16, u16)>,
}

/// Whether it changes what the container is.
pub(super) fn is_change(request: &Request) -> bool {
    matches!(
        request,
        Request::Update { .. }
            | Request::Rename { .. }
            | Request::ConnectNetwork(_)
            | Request::DisconnectNetwork { .. }
    )
}

impl Core<'_> {
    /// First the question, and then the rest.
    #[cfg(feature = "host")]
    pub(super) fn first(
        &mut self,
        request: impl FnOnce() -> Request,
        then: impl FnOnce(&mut Core<'_>, Result<Response, HullError>) -> Next + 'static,
    ) -> Next {
        Next::Ask((), request(), Box::new(then))
    }

    /// In a guest, nobody is asked.
    #[cfg(not(feature = "host"))]
    pub(super) fn first(
        &mut self,
        _: impl FnOnce() -> Request,
        then: impl FnOnce(&mut Core<'_>, Result<Response, HullError>) -> Next + 'static,
    ) -> Next {
        then(self, Ok(Response::Done))
    }

    /// Has a request carried out, beginning with a question to the guest; the client is told then.
    pub(super) fn ask_for(
        &mut self,
        (id, client): (u64, &mut Connection),
        next: Next,
    ) -> Result<Outcome, Failure> {
        match self.ask(id, next) {
            Some(done) => done.map(Outcome::Now),
            None => {
                client.role = Role::Postponed;
                Ok(Outcome::Later)
            }
        }
    }

    /// The same for a client of this id, or for nobody (0); gives what is known at once.
    pub(super) fn ask(&mut self, client: u64, mut next: Next) -> Option<Result<Response, Failure>> {
        loop {
            let (proof, request, then) = match next {
                Next::Done(done) => return Some(done),
                Next::Ask(proof, request, then) => (proof, request, then),
            };
            next = match self.question(&request) {
                Ok(Some(pending)) => {
                    let change = is_change(&request);
                    let id = self.new_id();
                    self.asked.push(Asked { id, pending, then, client, change, _proof: proof });
                    return None;
                }
                Ok(_) => then(self, Ok(Response::Done)),
                Err(e) => then(self, Err(e)),
            }
        }
    }

    fn question(&self, request: &Request) -> Result<Option<Box<dyn Pending<Response>>>, HullError> {
        match self.main.as_ref().filter(|main| !main.is_draining()) {
            Some(main) => main.sandbox.ask(request),
            None => Ok(None),
        }
    }

    /// A guest may have answered, or its time is up.
    pub(super) fn asked_proceeds(&mut self, id: u64) {
        let Some(asked) = self.asked.iter_mut().find(|a| a.id == id) else { return };
        if let Some(answer) = asked.pending.result() {
            self.answered(id, answer);
        }
    }

    fn answered(&mut self, id: u64, answer: Result<Response, HullError>) {
        let place = self.asked.iter().position(|a| a.id == id);
        let asked = place.map(|place| self.asked.remove(place));
        let Some(Asked { then, client, change, .. }) = asked else { return };
        let next = then(self, answer);
        let Some(done) = self.ask(client, next) else { return };
        if let Some(client) = self.clients.get_mut(&client).filter(|c| c.role == Role::Postponed) {
            client.role = Role::Idle;
            client.answer(done.unwrap_or_else(Response::Failed));
        }
        if change {
            self.resume_postponed(None);
        }
    }

    /// The run ends, and nobody answers any more.
    pub(super) fn end_questions(&mut self) {
        while let Some(id) = self.asked.first().map(|a| a.id).filter(|_| TAKES_TIME) {
            let why = self.not_running();
            self.answered(id, Err(HullError::Guest(why)));
        }
    }

    /// Whether a change is under way.
    pub(super) fn is_changing(&self) -> bool {
        TAKES_TIME && self.asked.iter().any(|asked| asked.change)
    }

    /// Carries out, in their order, the requests that were put off, or refuses them.
    pub(super) fn resume_postponed(&mut self, refusal: Option<Failure>) {
        for (id, request) in std::mem::take(&mut self.postponed) {
            let Some(mut client) = self.clients.remove(&id) else { continue };
            client.role = Role::Idle;
            match &refusal {
                Some(failure) => client.answer(Response::Failed(failure.clone())),
                None => self.request(id, &mut client, request),
            }
            self.clients.insert(id, client);
        }
    }

    /// Tells the guest a terminal's size, of an exec session or of the main process, for nobody who waits.
    pub(super) fn tell_size(&mut self, exec: Option<String>, rows: u16, columns: u16) {
        let next = Some((rows, columns));
        if let Some(size) = self.sizes.iter_mut().find(|s| s.exec == exec) {
            size.next = next;
            return;
        }
        self.sizes.push(Size { exec: exec.clone(), next });
        let next = self.next_size(exec);
        let _ = self.ask(0, next);
    }

    fn next_size(&mut self, exec: Option<String>) -> Next {
        match self.sizes.iter_mut().find(|s| s.exec == exec).and_then(|s| s.next.take()) {
            Some((rows, columns)) => {
                let name = exec.clone();
                let request = || Request::Resize { exec: name, rows, columns };
                self.first(request, move |core, _| core.next_size(exec))
            }
            None => {
                self.sizes.retain(|s| s.exec != exec);
                Next::Done(Ok(Response::Done))
            }
        }
    }
}
