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

impl Event {
    /// Docker's `EventMessage`.
    pub fn docker(&self) -> serde_json::Value {
        let mut message = serde_json::json!({
            "Type": self.kind.as_str(), "Action": self.action,
            "Actor": {"ID": self.id, "Attributes": self.attributes},
            "scope": "local", "time": self.time_ns / 1_000_000_000, "timeNano": self.time_ns,
        });
        // As before API 1.22, which clients still read.
        if matches!(self.kind, EventType::Container | EventType::Image) {
            message["status"] = self.action.clone().into();
            message["id"] = self.id.clone().into();
            if let Some(image) = self.attributes.get("image") {
                message["from"] = image.clone().into();
            }
        }
        message
    }
}
