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
use crate::hull::{HullError, Pending};
use crate::protocol::{Failure, Request, Response};

/// What follows an answer.
pub(super) type Then = Box<dyn FnOnce(&mut Core<'_>, Result<Response, HullError>) -> Next>;

/// What becomes of a request when a guest has answered.
pub(super) enum Next {
    /// It is carried out, or not.
    Done(Result<Response, Failure>),
    /// There is more to ask.
    Ask(Request, Then),
}

impl Next {
    /// Asks, and then does the rest.
    pub(super) fn ask(
        request: Request,
        then: impl FnOnce(&mut Core<'_>, Result<Response, HullError>) -> Next + 'static,
    ) -> Self {
        Self::Ask(request, Box::new(then))
    }
}

/// A question under way.
pub(super) struct Asked {
    pub(super) pending: Box<dyn Pending<Response>>,
    then: Then,
    /// The client that waits; none has the id 0.
    client: u64,
    change: bool,
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
            let (request, then) = match next {
                Next::Done(done) => return Some(done),
                Next::Ask(request, then) => (request, then),
            };
            next = match self.question(&request) {
                Ok(Some(pending)) if TAKES_TIME => {
                    let change = is_change(&request);
                    let id = self.new_id();
                    self.asked.insert(id, Asked { pending, then, client, change });
                    return None;
                }
                Ok(_) => then(self, Ok(Response::Done)),
                Err(e) => then(self, Err(e)),
            }
        }
    }

    fn question(&self, request: &Request) -> Result<Option<Box<dyn Pending<Response>>>, HullError> {
        match self.main.as_ref().filter(|main| TAKES_TIME && !main.is_draining()) {
            Some(main) => main.sandbox.ask(request),
            None => Ok(None),
        }
    }

    /// A guest may have answered, or its time is up.
    pub(super) fn asked_proceeds(&mut self, id: u64) {
        let Some(asked) = self.asked.get_mut(&id) else { return };
        if let Some(answer) = asked.pending.result() {
            self.answered(id, answer);
        }
    }

    fn answered(&mut self, id: u64, answer: Result<Response, HullError>) {
        let Some(Asked { then, client, change, .. }) = self.asked.remove(&id) else { return };
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
        while let Some(id) = self.asked.keys().next().copied() {
            let why = self.not_running();
            self.answered(id, Err(HullError::Guest(why)));
        }
    }

    /// Whether a change is under way.
    pub(super) fn is_changing(&self) -> bool {
        TAKES_TIME && self.asked.values().any(|asked| asked.change)
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
        if let Some(next) = self.sizes.get_mut(&exec) {
            *next = Some((rows, columns));
            return;
        }
        self.sizes.insert(exec.clone(), Some((rows, columns)));
        let next = self.next_size(exec);
        let _ = self.ask(0, next);
    }

    fn next_size(&mut self, exec: Option<String>) -> Next {
        match self.sizes.get_mut(&exec).and_then(Option::take) {
            Some((rows, columns)) => {
                let request = Request::Resize { exec: exec.clone(), rows, columns };
                Next::ask(request, move |core, _| core.next_size(exec))
            }
            None => {
                self.sizes.remove(&exec);
                Next::Done(Ok(Response::Done))
            }
        }
    }
}
