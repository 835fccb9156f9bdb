//! The supervisor's part in names: it tells the others of its workload's names, and serves theirs to its workload
//! ([`net::dns`]).
//!
//! ```text
//! announced as soon as there is an interface ─► served before the workload starts ─► withdrawn when the run has ended
//! ```
//!
//! Only on networks of the user's; on the default bridge nothing is done here.

use net::NetError;
use net::dns::{Names, Server, announce, is_named, withdraw};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use types::{Attachment, Bundle};

/// The names of one workload, and those that it asks for.
#[derive(Default)]
pub(crate) struct NameService {
    run: PathBuf,
    server: Option<Server>,
    /// What the others know of it.
    announced: Vec<Attachment>,
}

/// Where the workload asks.
pub(crate) enum At<'a> {
    /// In this network namespace.
    Inside(BorrowedFd<'a>),
    /// Behind the agent of the microVM with this run directory.
    Behind(&'a Path),
}

fn has_names(attachments: &[Attachment]) -> bool {
    attachments.iter().any(is_named)
}

impl NameService {
    pub(crate) fn new(run: &Path) -> Self {
        Self { run: run.to_owned(), ..Self::default() }
    }

    /// Tells the others of the workload's names, and takes back what is not so any more.
    pub(crate) fn announce(&mut self, attachments: &[Attachment]) -> Result<(), NetError> {
        let list: Vec<_> = attachments.iter().filter(|a| is_named(a)).cloned().collect();
        for gone in self.announced.iter().filter(|old| list.iter().all(|a| a.network != old.network)) {
            withdraw(&self.run, gone)?;
        }
        list.iter().try_for_each(|a| announce(&self.run, a))?;
        self.announced = list;
        Ok(())
    }

    /// Serves names to the workload from now on, if it is on a network that has any.
    pub(crate) fn serve(&mut self, bundle: &Bundle, at: At<'_>) -> Result<(), NetError> {
        let attachments = bundle.network.attachments();
        if !has_names(attachments) {
            return Ok(());
        }
        let names = Names {
            run: self.run.clone(),
            attachments: attachments.to_vec(),
            servers: bundle.name_servers.clone(),
            permit: net::egress::permit,
        };
        self.server = Some(match at {
            At::Inside(netns) => Server::inside(names, netns)?,
            At::Behind(run) => {
                let listener = sandbox::vm::listen_for_guest(run, net::dns::relay::PORT);
                let failed = |source| NetError::System { action: "listen for the microVM's names", source };
                Server::behind(names, listener.map_err(failed)?)?
            }
        });
        Ok(())
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.server.is_some()
    }

    /// The workload's networks are others.
    pub(crate) fn change(&mut self, attachments: &[Attachment]) -> Result<(), NetError> {
        if let Some(server) = &mut self.server {
            server.change(attachments);
        }
        self.announce(attachments)
    }

    /// Nobody finds the workload any more, and it finds nobody. What stays behind after a failure is swept.
    pub(crate) fn end(&mut self) {
        self.server = None;
        for attachment in std::mem::take(&mut self.announced) {
            let _ = withdraw(&self.run, &attachment);
        }
    }

    /// Readable when [`Self::answer`] has work.
    pub(crate) fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.server.as_ref().map(Server::poll_fd)
    }

    /// The firewall has forgotten what names led to.
    pub(crate) fn permit_again(&mut self) {
        if let Some(server) = &mut self.server {
            server.permit_again();
        }
    }

    /// Answers what waits.
    pub(crate) fn answer(&mut self) {
        if let Some(server) = &mut self.server {
            server.serve();
        }
    }
}
