//! Events, as `dhow events` and the Docker API tell them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventType {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A volume.
    Volume,
    /// A network.
    Network,
}

impl EventType {
    /// The word in Docker's JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// Docker's verb: `create`, `start`, `die`, `oom`, `health_status: healthy`, ….
    pub action: String,
    /// Id of the object.
    pub id: String,
    /// Docker's attributes: `name`, `image`, `exitCode`, `signal`, labels, ….
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Nanoseconds since the epoch.
    pub time_ns: i64,
}
