//! Events: what happens to containers and images, as Docker tells it.

use crate::filters;
use crate::request::EventOptions;
use crate::store::Container;
use crate::{Engine, EngineError, Result};
use state::EventLog;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use types::{Bundle, Event, EventType};

/// Labels that are longer than this are not told: each follower would have to hold them.
const LONGEST_LABEL: usize = 4096;

/// Attributes that events carry of a container.
pub(crate) fn event_attributes(
    name: &str,
    image: &str,
    labels: impl Iterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    let mut out: BTreeMap<String, String> =
        labels.filter(|(_, value)| value.len() <= LONGEST_LABEL).collect();
    out.insert("name".into(), name.to_owned());
    out.insert("image".into(), image.to_owned());
    out
}

/// What the start or the end of a container means for its networks; of the default network nobody is told, as that would
/// cost each start a write.
pub(crate) fn of_networks<'a>(bundle: &'a Bundle, action: &str) -> impl Iterator<Item = Event> + 'a {
    let action = match action {
        "start" => Some("connect"),
        "die" => Some("disconnect"),
        _ => None,
    };
    let user_defined =
        bundle.network.attachments().iter().filter(|a| a.network_name != crate::network::DEFAULT);
    user_defined.filter_map(move |a| {
        let driver = if a.uplink.is_some() { "macvlan" } else { "bridge" };
        let attributes = [
            ("name".to_owned(), a.network_name.clone()),
            ("type".to_owned(), driver.to_owned()),
            ("container".to_owned(), bundle.id.to_string()),
        ];
        Some(Event {
            kind: EventType::Network,
            action: action?.to_owned(),
            id: a.network.clone(),
            attributes: attributes.into(),
            time_ns: sys::host::now_ns(),
        })
    })
}

impl Engine {
    /// Tells an event of a container.
    pub(crate) fn event(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        let labels = container.config.labels.clone().unwrap_or_default();
        let mut attributes = event_attributes(&container.name, &container.image, labels.into_iter());
        attributes.extend(more.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        self.tell(EventType::Container, action, container.id.as_str(), attributes);
    }

    /// Tells that the unused of a kind were removed.
    pub(crate) fn prune_event(&self, kind: EventType, reclaimed: u64) {
        self.tell(kind, "prune", "", [("reclaimed".to_owned(), reclaimed.to_string())].into());
    }

    /// Tells an event of an image.
    pub fn image_event(&self, action: &str, id: &str, name: &str) {
        self.tell(EventType::Image, action, id, [("name".to_owned(), name.to_owned())].into());
    }

    pub(crate) fn tell(&self, kind: EventType, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        let event = Event {
            kind,
            action: action.to_owned(),
            id: id.to_owned(),
            attributes,
            time_ns: sys::host::now_ns(),
        };
        // What was done is done, whether it could be told or not.
        let _ = self.events.append(&event);
    }

    /// The events that match.
    pub fn event_feed(&self, options: &EventOptions) -> Result<EventFeed> {
        const KNOWN: &[&str] =
            &["container", "image", "volume", "network", "event", "type", "label", "scope", "daemon"];
        filters::check(&options.filters, KNOWN)?;
        Ok(EventFeed { log: self.events.clone(), options: options.clone(), dir: self.paths.run.clone() })
    }

    /// Gives the events that match to `sink`, until the asked time or until `sink` or `idle` breaks.
    pub fn events(
        &self,
        options: &EventOptions,
        sink: &mut dyn FnMut(Event) -> ControlFlow<()>,
        idle: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<()> {
        self.event_feed(options)?.follow(sink, idle)
    }
}

/// Events of one store: followed without the engine, so that many can follow for long.
#[derive(Clone, Debug)]
pub struct EventFeed {
    log: EventLog,
    options: EventOptions,
    dir: PathBuf,
}

impl EventFeed {
    /// Gives them to `sink`, until the asked time or until `sink` or `idle` breaks.
    pub fn follow(
        &self,
        sink: &mut dyn FnMut(Event) -> ControlFlow<()>,
        idle: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<()> {
        let span = state::Follow { since_ns: self.options.since_ns, until_ns: self.options.until_ns };
        let mut matching = |event: Event| {
            if filters::event_matches(&self.options.filters, &event) {
                sink(event)
            } else {
                ControlFlow::Continue(())
            }
        };
        self.log
            .follow(span, &mut matching, idle)
            .map_err(EngineError::io("cannot read the events in", &self.dir))
    }
}
