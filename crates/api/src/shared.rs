//! What all connections of a server share.

use crate::policy::Policy;
use crate::rendezvous::Rendezvous;
use engine::{BuildInfo, OpenOptions};

/// What a server is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The store.
    pub store: OpenOptions,
    /// What this program is.
    pub build: BuildInfo,
    /// What clients may do.
    pub policy: Policy,
    /// Workloads whose client names no runtime are microVMs.
    pub vm_by_default: bool,
}

/// Its settings, and who waits for a start.
#[derive(Debug)]
pub(crate) struct Server {
    pub settings: &'static Settings,
    pub rendezvous: Rendezvous,
}
