//! `events`.

use super::common::{filters, moment, printable};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::format::Template;
use engine::EventOptions;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use types::{Event, EventType, units};

/// Flags of `events`.
#[derive(clap::Args, Debug)]
pub struct Events {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// Format output using a Go template or 'json'
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Show all events created since timestamp
    #[arg(long, value_name = "string")]
    since: Option<String>,
    /// Stream events until this timestamp
    #[arg(long, value_name = "string")]
    until: Option<String>,
}

impl Verb for Events {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let template = match self.format.as_deref().map(str::trim) {
            None | Some("") => None,
            Some("json") => Some(Template::parse("{{json .}}")?),
            Some(t) => Some(Template::parse(t)?),
        };
        let options = EventOptions {
            since_ns: moment(self.since.as_deref())?,
            until_ns: moment(self.until.as_deref())?,
            filters: filters(&self.filter)?,
        };
        let mut failed: Option<Failure> = None;
        cx.engine()?.events(
            &options,
            &mut |event| {
                let line = match &template {
                    Some(t) => t.over(&message(&event)).map_err(Failure::from),
                    None => Ok(line(&event)),
                };
                match line.and_then(|l| Ok(cx.out.line(&l)?)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(e) => {
                        failed = Some(e);
                        ControlFlow::Break(())
                    }
                }
            },
            &mut || ControlFlow::Continue(()),
        )?;
        failed.map_or(Ok(0), Err)
    }
}

/// `TIME TYPE ACTION ID (key=value, …)`.
fn line(e: &Event) -> String {
    let mut text = format!("{} {} {} {}", units::rfc3339(e.time_ns), e.kind.as_str(), e.action, e.id);
    if !e.attributes.is_empty() {
        let pairs: Vec<String> = e.attributes.iter().map(|(k, v)| format!("{k}={v}")).collect();
        text += &format!(" ({})", pairs.join(", "));
    }
    printable(&text)
}

/// Docker's event message.
fn message(e: &Event) -> Value {
    let mut v = e.docker();
    // Templates use the names of Go's fields, `json` those of its tags; both find theirs.
    for (field, value) in [
        ("Scope", json!("local")),
        ("Time", v["time"].clone()),
        ("TimeNano", v["timeNano"].clone()),
        ("ID", json!(e.id)),
    ] {
        v[field] = value;
    }
    if matches!(e.kind, EventType::Container | EventType::Image) {
        v["Status"] = json!(e.action);
        let from = e.attributes.get("image").cloned().unwrap_or_default();
        v["from"] = json!(from);
        v["From"] = json!(from);
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_docker_prints_it() {
        let e = Event {
            kind: EventType::Container,
            action: "die".into(),
            id: "abc".into(),
            attributes: [("exitCode".to_owned(), "1".to_owned()), ("image".to_owned(), "x".to_owned())]
                .into(),
            time_ns: 1_500_000_000_000_000_001,
        };
        assert_eq!(line(&e), "2017-07-14T02:40:00.000000001Z container die abc (exitCode=1, image=x)");
        let t =
            crate::format::one("{{.Type}} {{.Status}} {{.Actor.Attributes.exitCode}}", &message(&e)).unwrap();
        assert_eq!(t, "container die 1");
    }
}
