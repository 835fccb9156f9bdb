//! `--filter key=value`: which containers and events match.

use crate::listed::Listed;
use crate::network::Places;
use crate::pattern::Patterns;
use crate::request::Filters;
use crate::spec::invalid;
use crate::{Engine, Result};
use types::{Event, EventType, RunState, Status};

/// Refuses keys that nobody knows.
pub(crate) fn check(filters: &Filters, known: &[&str]) -> Result<()> {
    match filters.keys().find(|k| !known.contains(&k.as_str())) {
        Some(key) => Err(invalid(format!("invalid filter {key:?}: {} are known", known.join(", ")))),
        None => Ok(()),
    }
}

/// `label=key`, `label=key=value`; with `!` the other way round.
pub(crate) fn label_matches<T: AsRef<str>>(wanted: &str, get: impl Fn(&str) -> Option<T>) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => get(key).is_some_and(|v| v.as_ref() == value),
        None => get(wanted).is_some(),
    }
}

/// How the values of one key count together: all of the labels, any of another key's (moby's `MatchKVList` and `Match`).
pub(crate) struct Tally {
    all: bool,
    seen: usize,
    matched: usize,
}

impl Tally {
    pub(crate) fn of(key: &str) -> Self {
        Self { all: key == "label", seen: 0, matched: 0 }
    }

    /// Counts one value.
    pub(crate) fn add(&mut self, matches: bool) {
        self.seen += 1;
        self.matched += usize::from(matches);
    }

    pub(crate) fn holds(&self) -> bool {
        self.seen == 0 || if self.all { self.matched == self.seen } else { self.matched > 0 }
    }
}

pub(crate) fn event_matches(filters: &Filters, event: &Event) -> bool {
    filters.iter().all(|(key, values)| {
        if key == "label" {
            return values.iter().all(|v| label_matches(v, |k| event.attributes.get(k)));
        }
        values.is_empty()
            || values.iter().any(|v| match key.as_str() {
                "type" | "scope" | "daemon" => key != "type" || event.kind.as_str() == v,
                // `health_status` stands for all of `health_status: …`.
                "event" => event.action == *v || event.action.split(':').next() == Some(v),
                "image" => {
                    let key = match event.kind {
                        EventType::Container => "image",
                        EventType::Image => "name",
                        _ => return false,
                    };
                    let name = event.attributes.get(key);
                    event.id == *v || name.is_some_and(|name| name == v || without_tag(name) == v)
                }
                kind => {
                    event.kind.as_str() == kind
                        && (event.id == *v
                            || v.len() >= 4 && event.id.starts_with(v.as_str())
                            || event.attributes.get("name") == Some(v))
                }
            })
    })
}

/// Keys of `ps --filter`.
pub(crate) const CONTAINER: &[&str] = &[
    "id", "name", "label", "exited", "status", "ancestor", "before", "since", "volume", "network", "publish",
    "expose", "health", "is-task",
];

impl Engine {
    /// Whether a container matches.
    pub(crate) fn container_matches(
        &self,
        filters: &Filters,
        c: &Listed<'_>,
        state: &RunState,
        places: &Places,
        patterns: &Patterns,
    ) -> Result<bool> {
        for (key, values) in filters {
            let mut tally = Tally::of(key);
            for value in values {
                tally.add(self.one_matches((key, value), c, state, places, patterns)?);
            }
            if !tally.holds() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn one_matches(
        &self,
        (key, value): (&str, &str),
        c: &Listed<'_>,
        state: &RunState,
        places: &Places,
        patterns: &Patterns,
    ) -> Result<bool> {
        let labels = c.config.labels.as_ref();
        Ok(match key {
            "id" => patterns.finds(value, c.id),
            // Docker's own names begin with a slash.
            "name" => patterns.finds(value, c.name) || patterns.finds(value, &format!("/{}", c.name)),
            "label" => label_matches(value, |k| labels.and_then(|l| l.get(k))),
            "exited" => {
                let code: i32 =
                    value.parse().map_err(|_| invalid(format!("invalid filter exited={value}")))?;
                state.status == Status::Exited && state.exit_code == code
            }
            "status" => {
                const KNOWN: &[&str] =
                    &["created", "running", "paused", "restarting", "removing", "exited", "dead"];
                if !KNOWN.contains(&value) {
                    return Err(invalid(format!(
                        "invalid filter status={value}: {} are known",
                        KNOWN.join(", ")
                    )));
                }
                state.status.as_str() == value
            }
            "ancestor" => {
                c.image == value
                    || c.image_id == value
                    || self.images.id(value).is_ok_and(|id| id.to_string() == c.image_id)
            }
            "before" => c.created_ns < self.find(value)?.created_ns,
            "since" => c.created_ns > self.find(value)?.created_ns,
            "volume" => c.mounts.iter().any(|m| m.volume == value || m.target.to_str() == Some(value)),
            "network" => places.is_on(c.id, c.network_mode(), value),
            "publish" => ports_match(value, c.host.port_bindings.iter().flatten().map(|(p, _)| p.as_str())),
            "expose" => ports_match(value, c.config.exposed_ports.iter().flatten().map(|(p, _)| p.as_str())),
            "health" => {
                const KNOWN: &[&str] = &["starting", "healthy", "unhealthy", "none"];
                if !KNOWN.contains(&value) {
                    return Err(invalid(format!("unrecognised filter value for health: {value}")));
                }
                state.health.as_ref().map_or("none", |h| h.status.as_str()) == value
            }
            "is-task" => value == "false",
            _ => false,
        })
    }
}

/// The name of an image without its tag.
fn without_tag(image: &str) -> &str {
    match image.rsplit_once(':') {
        // What is behind the colon of a registry's port has a slash.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

fn ports_match<'a>(wanted: &str, mut ports: impl Iterator<Item = &'a str>) -> bool {
    let (range, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else { return false };
    ports.any(|p| {
        let (number, proto) = p.split_once('/').unwrap_or((p, "tcp"));
        proto == protocol && number.parse::<u16>().is_ok_and(|n| (first..=last).contains(&n))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_match_by_key() {
        let event = Event {
            kind: EventType::Container,
            action: "health_status: healthy".into(),
            id: "abcdef".into(),
            attributes: [("name".to_owned(), "web".to_owned()), ("image".to_owned(), "nginx:1".to_owned())]
                .into(),
            time_ns: 0,
        };
        let of = |k: &str, v: &str| Filters::from([(k.to_owned(), vec![v.to_owned()])]);
        for (key, value, want) in [
            ("event", "health_status", true),
            ("event", "start", false),
            ("container", "web", true),
            ("container", "abcd", true),
            ("container", "db", false),
            ("image", "nginx", true),
            ("image", "ngin", false),
            ("type", "image", false),
        ] {
            assert_eq!(event_matches(&of(key, value), &event), want, "{key}={value}");
        }
        assert!(check(&of("colour", "red"), CONTAINER).is_err());
        let tagged = Event {
            kind: EventType::Image,
            action: "tag".into(),
            id: "sha256:1".into(),
            attributes: [("name".to_owned(), "host:5000/cc:2".to_owned())].into(),
            time_ns: 0,
        };
        for (image, want) in [
            ("host:5000/cc", true),
            ("host:5000/cc:2", true),
            ("host", false),
            ("sha256:1", true),
            ("cc", false),
        ] {
            assert_eq!(event_matches(&of("image", image), &tagged), want, "{image}");
        }
    }

    #[test]
    fn of_labels_all_must_match_of_others_any() {
        for (key, seen, want) in [
            ("label", &[true, false][..], false),
            ("label", &[true, true], true),
            ("label", &[], true),
            ("name", &[true, false], true),
            ("name", &[false, false], false),
            ("name", &[], true),
        ] {
            let mut tally = Tally::of(key);
            seen.iter().for_each(|matches| tally.add(*matches));
            assert_eq!(tally.holds(), want, "{key} {seen:?}");
        }
        let event = Event {
            kind: EventType::Container,
            action: "start".into(),
            id: "abcdef".into(),
            attributes: [("a".to_owned(), "1".to_owned())].into(),
            time_ns: 0,
        };
        let of = |values: &[&str]| {
            Filters::from([("label".to_owned(), values.iter().map(|v| (*v).to_owned()).collect())])
        };
        assert!(event_matches(&of(&["a", "a=1"]), &event));
        assert!(!event_matches(&of(&["a", "b"]), &event));
    }
}
