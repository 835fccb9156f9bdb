//! What a long operation tells while it runs. Drawing is the front end's business.

use std::io::Write;
use std::sync::Mutex;

/// Something that happened to one layer. Numbers are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerEvent {
    /// It will be fetched.
    Queued,
    /// Another process or an earlier layer is at it.
    Waiting,
    /// Bytes of the blob that are there, and its size.
    Downloading {
        /// There.
        done: u64,
        /// In all.
        total: u64,
    },
    /// The connection broke; it is taken up again.
    Retrying {
        /// Which attempt comes.
        attempt: u32,
        /// Why the last one ended.
        reason: String,
    },
    /// All bytes are there and have the right digest.
    DownloadComplete,
    /// Bytes of the blob that went into the layer, and its size.
    Extracting {
        /// Done.
        done: u64,
        /// In all.
        total: u64,
    },
    /// The layer can be used.
    PullComplete,
    /// The layer was there.
    AlreadyExists,
    /// Push: bytes sent, and the size.
    Pushing {
        /// Sent.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Push: the registry has it now.
    Pushed,
    /// Push: the registry had it.
    LayerExists,
    /// Push: the registry took it from a repository of its own.
    Mounted(String),
    /// Load: bytes read, and the size.
    Loading {
        /// Read.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Load: the layer can be used.
    Loaded,
}

impl LayerEvent {
    /// Docker's words for it, without numbers.
    pub fn words(&self) -> String {
        match self {
            Self::Queued => "Pulling fs layer".into(),
            Self::Waiting => "Waiting".into(),
            Self::Downloading { .. } => "Downloading".into(),
            Self::Retrying { attempt, reason } => format!("Retrying ({attempt}): {reason}"),
            Self::DownloadComplete => "Download complete".into(),
            Self::Extracting { .. } => "Extracting".into(),
            Self::PullComplete => "Pull complete".into(),
            Self::AlreadyExists => "Already exists".into(),
            Self::Pushing { .. } => "Pushing".into(),
            Self::Pushed => "Pushed".into(),
            Self::LayerExists => "Layer already exists".into(),
            Self::Mounted(from) => format!("Mounted from {from}"),
            Self::Loading { .. } => "Loading layer".into(),
            Self::Loaded => "Loaded".into(),
        }
    }

    /// Bytes done and in all, of the events that have them.
    pub fn amount(&self) -> Option<(u64, u64)> {
        match *self {
            Self::Downloading { done, total }
            | Self::Extracting { done, total }
            | Self::Pushing { done, total }
            | Self::Loading { done, total } => Some((done, total)),
            _ => None,
        }
    }
}

/// Hears of progress, from several threads.
pub trait Progress: Sync {
    /// `layer` is the short id that Docker shows.
    fn layer(&self, layer: &str, event: LayerEvent);
    /// A line about the whole.
    fn status(&self, line: &str);
    /// Whether anybody still waits for it. If not, the operation breaks off at its next step; what it has fetched by then is
    /// there for the next one.
    fn is_wanted(&self) -> bool {
        true
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn layer(&self, _: &str, _: LayerEvent) {}
    fn status(&self, _: &str) {}
}

/// Writes a line for each change, as `docker pull` does where there is no terminal.
#[derive(Debug)]
pub struct Plain<W>(Mutex<W>);

impl<W: Write + Send> Plain<W> {
    /// Writes to `out`; a failure to write (a closed pipe) is not the operation's failure.
    pub fn new(out: W) -> Self {
        Self(Mutex::new(out))
    }

    fn line(&self, line: std::fmt::Arguments<'_>) {
        let mut out = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

impl<W: Write + Send> Progress for Plain<W> {
    fn layer(&self, layer: &str, event: LayerEvent) {
        if event.amount().is_none() {
            self.line(format_args!("{layer}: {}", event.words()));
        }
    }

    fn status(&self, line: &str) {
        self.line(format_args!("{line}"));
    }
}
