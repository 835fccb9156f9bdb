//! Dhow's front page: every verb of the command line and of the API is one method of [`Engine`].
//!
//! ```text
//! create ─► resolve image ─► check everything ─► one row in state.db: the container exists
//! start  ─► plan network ─► build the OCI spec ─► write the bundle ─► spawn a supervisor ─► attach
//! ```
//!
//! The engine keeps no process and no memory between commands: what it knows is in the database, in the files of
//! each sandbox, and with the supervisors, which it asks over their control sockets. Any command may die at any
//! moment; the next one that meets what it left ([`recover`](Engine::recover)) finishes or undoes it.
#![forbid(unsafe_code)]

mod commit;
mod config;
mod copy;
mod create;
mod disk;
pub mod doctor;
mod error;
mod events;
mod exec;
mod exec_record;
mod feed;
mod filters;
mod footprint;
mod ids;
mod images;
mod info;
mod inside;
mod inspect;
pub mod keys;
mod lifecycle;
mod list;
mod listed;
mod logs;
pub mod machine;
mod merge;
mod mounts;
mod names;
mod network;
mod paths;
mod pattern;
mod prune;
mod reach;
mod record;
mod recover;
mod remove;
mod request;
mod resolver;
mod sentry;
mod signals;
mod spec;
mod start;
mod stats;
mod store;
mod supervise;
mod users;
mod volumes;
mod wait;

pub use create::insecure_registries;
pub use disk::Usage;
pub use error::{EngineError, Result};
pub use events::EventFeed;
pub use exec_record::CreatedExec;
pub use feed::Feed;
pub use footprint::Footprint;
pub use info::{API_VERSION, BuildInfo, MIN_API_VERSION, version};
pub use inside::inside;
pub use lifecycle::{DEATH, failed_start};
pub use list::Summary;
pub use listed::{Text, Words};
pub use logs::ContainerLog;
pub use machine::{RUNTIME as VM_RUNTIME, is_vm};
pub use network::{EGRESS, HOST_ACCESS, parse_egress};
pub use paths::Paths;
pub use reach::{MOST_FILES, Reach};
pub use request::{
    CommitOptions, CreateRequest, Created, EventOptions, ExecRequest, Filters, ListOptions, LogOptions,
    Pruned, PullPolicy, RemoveOptions,
};
pub use spec::{MASKED_PATHS, READ_ONLY_PATHS};
pub use stats::GUEST_MEMORY;
pub use supervise::supervise;
pub use volumes::{CreateVolume, Driver, VolumeFormat, VolumeInfo};
pub use wait::Waiting;

use state::{Db, EventLog};
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

/// Where the state lies unless `--root` says otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/dhow";
/// Where what a reboot clears lies unless `--run` says otherwise.
pub const DEFAULT_RUN: &str = "/run/dhow";

/// The program that is PID 1 of a microVM.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agent {
    /// Its bytes; empty where there is none.
    pub program: &'static [u8],
    /// Another one for other bytes, made when it was built: nobody hashes the program at each start.
    pub tag: &'static str,
}

/// How to open a store.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// [`DEFAULT_ROOT`] if none.
    pub root: Option<PathBuf>,
    /// [`DEFAULT_RUN`] if none; for another root, its `run` directory.
    pub run: Option<PathBuf>,
    /// The program of the embedded image `hello`; empty where there is none.
    pub hello: &'static [u8],
    /// The agent of microVMs.
    pub guest: Agent,
}

/// One store, open.
pub struct Engine {
    paths: Paths,
    db: Rc<Db>,
    images: image::ImageStore,
    events: EventLog,
    hello: &'static [u8],
    guest: Agent,
    /// The microVM whose files are within reach, see [`Engine::with_files`].
    kept: RefCell<Option<machine::files::Kept>>,
}

impl Engine {
    /// Opens a store; a new one is made.
    pub fn open(options: &OpenOptions) -> Result<Self> {
        let absolute =
            |p: &PathBuf| std::path::absolute(p).map_err(EngineError::io("cannot use the directory", p));
        let root = options.root.as_ref().map_or_else(|| Ok(DEFAULT_ROOT.into()), absolute)?;
        let run = match (&options.run, &options.root) {
            (Some(run), _) => absolute(run)?,
            (None, Some(_)) => root.join("run"),
            (None, None) => DEFAULT_RUN.into(),
        };
        let paths = Paths { root, run };
        paths.ensure()?;
        let db = Rc::new(Db::open(&paths.db())?);
        db.migrate("engine", store::SCHEMA)?;
        let format = paths.layer_format();
        let images = image::ImageStore::open_with(&paths.root, Rc::clone(&db), format)?;
        let events = EventLog::new(&paths.run);
        Ok(Self {
            paths,
            db,
            images,
            events,
            hello: options.hello,
            guest: options.guest,
            kept: RefCell::default(),
        })
    }

    /// Where this store lies.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }
}
