//! Registries: pull (and import, which has the same path), push, search, sign in, and what a name stands for there.
//!
//! Credentials come with each request, in `X-Registry-Auth`; this host's own are nobody's on the other side of a socket.

use super::{Answer, Ask, ask};
use crate::body::{BodyReader, BodyWriter};
use crate::fault::Fault;
use crate::work::Late;
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use base64::prelude::BASE64_STANDARD;
use hyper::StatusCode;
use image::registry::Access;
use image::registry::credentials::Credentials;
use image::{ImportRequest, LayerEvent, Progress, PullOptions, PushOptions};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use types::{ImageRef, Platform};

/// Between two messages of the same layer's numbers.
const PACE: Duration = Duration::from_millis(100);

/// Docker's `AuthConfig`.
#[derive(Default, Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    serveraddress: String,
}

impl Auth {
    fn access(self) -> Access {
        let credentials = if !self.identitytoken.is_empty() {
            Some(Credentials::Token(self.identitytoken))
        } else if !self.username.is_empty() {
            Some(Credentials::Password { user: self.username, password: self.password })
        } else {
            None
        };
        Access { insecure: engine::insecure_registries(), anonymous: credentials.is_none(), credentials }
    }
}

/// How to reach the registry, by the request's header. Docker takes one that it cannot read for none.
fn access(ask: &Ask) -> Access {
    credentials(ask.headers.get("X-Registry-Auth").map(|v| v.as_bytes()).unwrap_or_default())
}

/// What the header says.
pub(crate) fn credentials(header: &[u8]) -> Access {
    let decoded = [URL_SAFE.decode(header), URL_SAFE_NO_PAD.decode(header), BASE64_STANDARD.decode(header)];
    let auth = decoded.into_iter().flatten().find_map(|bytes| serde_json::from_slice::<Auth>(&bytes).ok());
    auth.unwrap_or_default().access()
}

/// Progress as Docker's messages, one JSON document a line.
pub(super) struct Messages<'a>(Mutex<State<'a>>);

struct State<'a> {
    out: &'a mut BodyWriter,
    last: std::collections::HashMap<String, Instant>,
}

impl<'a> Messages<'a> {
    pub fn new(out: &'a mut BodyWriter) -> Self {
        Self(Mutex::new(State { out, last: std::collections::HashMap::new() }))
    }

    pub fn into_inner(self) -> &'a mut BodyWriter {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).out
    }

    fn with(&self, f: impl FnOnce(&mut State<'a>)) {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn say(&self, message: &Value) {
        self.with(|s| drop(write!(s.out, "{message}\r\n").and_then(|()| s.out.flush())));
    }
}

impl Progress for Messages<'_> {
    fn layer(&self, layer: &str, event: LayerEvent) {
        let status = event.words();
        let Some((done, total)) = event.amount() else {
            return self.say(&json!({"status": status, "progressDetail": {}, "id": layer}));
        };
        let mut due = false;
        self.with(|s| {
            let now = Instant::now();
            due = done >= total || s.last.get(layer).is_none_or(|then| now.duration_since(*then) >= PACE);
            if due {
                s.last.insert(layer.to_owned(), now);
            }
        });
        if due {
            self.say(&json!({
                "status": status, "progressDetail": {"current": done, "total": total},
                "progress": bar(done, total), "id": layer,
            }));
        }
    }

    /// As Docker's daemon, which breaks off what nobody waits for.
    fn is_wanted(&self) -> bool {
        let mut wanted = true;
        self.with(|s| wanted = !s.out.is_gone());
        wanted
    }

    fn status(&self, line: &str) {
        // `TAG: Pulling from REPOSITORY` has the tag for its id.
        match line.split_once(": ") {
            Some((id, rest)) if rest.starts_with("Pulling from ") => {
                self.say(&json!({"status": rest, "id": id}))
            }
            _ => self.say(&json!({"status": line})),
        }
    }
}

/// `[=====>     ]  1.2MB/3.4MB`, fifty wide.
fn bar(done: u64, total: u64) -> String {
    let size = |n: u64| types::units::human_size(n as f64);
    if total == 0 {
        return size(done);
    }
    let filled = usize::try_from((u128::from(done.min(total)) * 50) / u128::from(total)).unwrap_or(50);
    let line = if filled >= 50 {
        "=".repeat(50)
    } else {
        format!("{}>{}", "=".repeat(filled), " ".repeat(49 - filled))
    };
    format!("[{line}]  {}/{}", size(done), size(total))
}

fn platform(ask: &Ask) -> Result<Option<Platform>, Fault> {
    let given = ask.query.get("platform").map(Platform::parse).transpose();
    given.map_err(|e| Fault::invalid(e.to_string()))
}

/// `images/create`: a pull with `fromImage`, an import with `fromSrc`.
pub async fn create(ask: Ask) -> Answer {
    match (ask.query.get("fromImage"), ask.query.get("fromSrc")) {
        (Some(_), _) => pull(ask).await,
        (None, Some(_)) => import(ask).await,
        (None, None) => Err(Fault::invalid("missing parameter: fromImage or fromSrc")),
    }
}

async fn pull(ask: Ask) -> Answer {
    let name = ask.query.get("fromImage").unwrap_or_default().to_owned();
    let full = match ask.query.get("tag") {
        Some(tag) if tag.contains(':') => format!("{name}@{tag}"),
        Some(tag) => format!("{name}:{tag}"),
        None => name.clone(),
    };
    let reference = ImageRef::parse(&full).map_err(|e| Fault::invalid(e.to_string()))?;
    if let Some(rules) = &ask.server.settings.policy.restrict {
        rules.admit_image(&full)?;
    }
    let options = PullOptions { platform: platform(&ask)?, access: access(&ask) };
    let plain = ImageRef::parse(&name)
        .is_ok_and(|r| r.digest().is_none() && !name.rsplit('/').next().unwrap_or_default().contains(':'));
    let every = ask.query.get("tag").is_none() && plain;
    ask.stream(ask::head("application/json"), Late::Document, move |engine, out| {
        let told = Messages::new(out);
        if engine.is_embedded(&full) {
            engine.ensure_image(&full, &told)?;
            told.status(&format!("Status: Image is up to date for {}", reference.familiar()));
            return Ok(());
        }
        if every {
            engine.images().pull_all(&reference, &options, &told)?;
        } else {
            engine.images().pull(&reference, &options, &told)?;
        }
        engine.image_event("pull", &reference.familiar(), &reference.familiar());
        Ok(())
    })
    .await
}

async fn import(mut ask: Ask) -> Answer {
    if ask.query.get("fromSrc") != Some("-") {
        return Err(Fault::invalid(
            "importing from a URL is not supported: fetch it and send it as the request's body (fromSrc=-)",
        ));
    }
    if let Some(rules) = &ask.server.settings.policy.restrict {
        rules.admit_archive()?;
    }
    let name = ask.query.get("repo").map(|repository| match ask.query.get("tag") {
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    });
    let name = name.map(|n| ImageRef::parse(&n)).transpose().map_err(|e| Fault::invalid(e.to_string()))?;
    let changes: Vec<String> = ask.query.all("changes").to_vec();
    let message = ask.query.get("message").unwrap_or_default().to_owned();
    let platform = platform(&ask)?;
    let mut tar = BodyReader::new(ask.take_body()?);
    ask.stream(ask::head("application/json"), Late::Document, move |engine, out| {
        let request = ImportRequest {
            name: name.as_ref(),
            changes: &changes,
            message: &message,
            platform: platform.as_ref(),
        };
        let id = engine.images().import(&mut tar, &request).map_err(Fault::of_what_was_sent)?;
        engine.image_event(
            "import",
            &id.to_string(),
            &name.as_ref().map(ImageRef::familiar).unwrap_or_default(),
        );
        Messages::new(out).status(&id.to_string());
        Ok(())
    })
    .await
}

pub async fn push(ask: Ask, name: &str) -> Answer {
    let every =
        ask.query.get("tag").is_none() && ImageRef::parse(name).is_ok_and(|r| r.familiar_name() == name);
    let full = match ask.query.get("tag") {
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    };
    let reference = ImageRef::parse(&full).map_err(|e| Fault::invalid(e.to_string()))?;
    if let Some(rules) = &ask.server.settings.policy.restrict {
        rules.admit_image(&full)?;
    }
    let options = PushOptions { access: access(&ask) };
    ask.stream(ask::head("application/json"), Late::Document, move |engine, out| {
        let all = if every { engine.tags_of(&reference)? } else { vec![reference.clone()] };
        if all.is_empty() {
            return Err(Fault::not_found(format!(
                "An image does not exist locally with the tag: {}",
                reference.familiar_name()
            )));
        }
        let told = Messages::new(out);
        told.status(&format!("The push refers to repository [{}]", reference.name()));
        for one in &all {
            let pushed = engine.images().push(one, &options, &told)?;
            engine.image_event("push", &one.familiar(), &one.familiar());
            let tag = one.tag().unwrap_or_default();
            let aux = json!({"Tag": tag, "Digest": pushed.digest.to_string(), "Size": pushed.size});
            told.say(&json!({"progressDetail": {}, "aux": aux}));
        }
        Ok(())
    })
    .await
}

/// `auth`: whether a registry takes these credentials. They are not kept.
pub async fn auth(mut ask: Ask) -> Answer {
    let auth: Auth = ask.shape().await?;
    let given = auth.serveraddress.trim_start_matches("https://").trim_start_matches("http://");
    let host = match given.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    };
    let access = auth.access();
    ask.run_apart(move |_| image::verify_login(&host, &access).map_err(refused_login)).await?;
    ask::json(StatusCode::OK, &json!({"Status": "Login Succeeded", "IdentityToken": ""}))
}

fn refused_login(e: image::ImageError) -> Fault {
    match e {
        image::ImageError::Login { .. } => Fault::new(401, e.to_string()),
        e => e.into(),
    }
}

/// `distribution/{name}/json`.
pub async fn distribution(ask: Ask, name: &str) -> Answer {
    let reference = ImageRef::parse(name).map_err(|e| Fault::invalid(e.to_string()))?;
    if let Some(rules) = &ask.server.settings.policy.restrict {
        rules.admit_image(name)?;
    }
    let access = access(&ask);
    let found = ask.run_apart(move |_| Ok(image::describe(&reference, &access)?)).await?;
    let platforms: Vec<Value> = found
        .platforms
        .iter()
        .map(|p| {
            let mut shown = json!({"architecture": p.architecture, "os": p.os});
            if let Some(variant) = &p.variant {
                shown["variant"] = json!(variant);
            }
            shown
        })
        .collect();
    ask::json(
        StatusCode::OK,
        &json!({
            "Descriptor": {"mediaType": found.media_type, "digest": found.digest.to_string(), "size": found.size},
            "Platforms": platforms,
        }),
    )
}

/// `images/search`, which only Docker Hub has.
pub async fn search(ask: Ask) -> Answer {
    let term = ask.query.get("term").ok_or_else(|| Fault::invalid("missing parameter: term"))?.to_owned();
    let limit = ask.query.number("limit")?.unwrap_or(25);
    if !(1..=100).contains(&limit) {
        return Err(Fault::invalid(format!("limit {limit} is outside the range of [1, 100]")));
    }
    let found = ask.run_apart(move |_| Ok(image::search(&term, limit)?)).await?;
    ask::json(StatusCode::OK, &found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_dockers() {
        assert_eq!(bar(0, 100), format!("[>{}]  0B/100B", " ".repeat(49)));
        assert_eq!(bar(100, 100), format!("[{}]  100B/100B", "=".repeat(50)));
        assert_eq!(bar(5, 0), "5B");
    }
}
