//! A client of the OCI distribution specification 1.1, as far as images need it.
//!
//! Requests go out through [`http`], what they need to be let in comes from [`auth`] and [`credentials`].
//! `oci-client`, the field's crate, was weighed: it brings an async runtime onto every pull, follows redirects
//! by itself, knows no per-registry certificate directory, and sets no bound on what it reads into memory.

mod auth;
pub mod credentials;
mod dns;
mod http;

use crate::ImageError;
use auth::Auth;
use credentials::Credentials;
use http::Http;
pub(crate) use http::{Reply, read_error};
use serde::Deserialize;
use std::collections::HashMap;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use types::{Digest, ImageRef};
use ureq::http::{Method, StatusCode};

/// Bytes read of an error's or a token's body.
pub(crate) const MAX_SMALL: u64 = 64 << 10;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Tags that are read of a repository.
const MAX_TAGS: usize = 10_000;

/// How a registry is to be reached.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Registries, `host[:port]`, that may be spoken to without TLS, or without a trusted certificate.
    pub insecure: Vec<String>,
    /// In place of what `~/.docker/config.json` says.
    pub credentials: Option<Credentials>,
    /// Nor what that file says: for somebody else, whose it is not.
    pub anonymous: bool,
}

/// One registry.
pub(crate) struct Registry {
    /// As users name it.
    pub host: String,
    base: String,
    http: Http,
    credentials: Option<Credentials>,
    granted: Mutex<HashMap<String, Auth>>,
}

/// A request's body.
pub(crate) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// Opened again when the request must be repeated.
    File(&'a (dyn Body + 'a), u64),
}

/// A body that can be sent more than once.
pub(crate) trait Body {
    fn open(&self) -> Result<Box<dyn Read + '_>, ImageError>;
}

/// What a request needs beside method and place.
pub(crate) struct Ask<'a> {
    pub scope: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub payload: Payload<'a>,
}

impl<'a> Ask<'a> {
    pub fn new(scope: &'a str) -> Self {
        Self { scope, headers: &[], payload: Payload::None }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// A refusal, as the registry words it.
pub(crate) struct Refusal {
    pub status: StatusCode,
    pub code: String,
    pub message: String,
}

impl Registry {
    /// Finds out how to speak to a registry. Contacts it only where plain HTTP is allowed.
    pub fn connect(host: &str, access: &Access) -> Result<Self, ImageError> {
        // This very host needs no TLS, unless the user installed certificates for it.
        let known = http::has_certificates(host);
        let lax = http::is_loopback(host) && !known || access.insecure.iter().any(|i| matches(i, host));
        let http = Http::new(host, lax);
        let credentials = match &access.credentials {
            Some(given) => Some(given.clone()),
            None if access.anonymous => None,
            None => credentials::find(host)?,
        };
        let name = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let mut registry = Self {
            host: host.to_owned(),
            base: format!("https://{name}"),
            http,
            credentials,
            granted: Mutex::default(),
        };
        if lax && !known {
            // A server that wants TLS answers 400 or hangs up.
            let plain = format!("http://{name}");
            match registry.http.send(&Method::GET, &format!("{plain}/v2/"), None, &Ask::new("")) {
                Ok(r) if r.status() != StatusCode::BAD_REQUEST => registry.base = plain,
                Err(e) if !matches!(e, ImageError::Registry { .. }) => return Err(e),
                _ => {}
            }
        }
        Ok(registry)
    }

    /// Sends a request to a path of the registry or to a full address, signs in where that is asked for, and
    /// follows redirects. Credentials go to the registry itself only.
    pub fn send(&self, method: &Method, place: &str, ask: &Ask<'_>) -> Result<Reply, ImageError> {
        let mut url = if place.starts_with('/') { format!("{}{place}", self.base) } else { place.to_owned() };
        let mut signed_in = false;
        let mut redirects = 0;
        loop {
            let home = http::origin(&url) == http::origin(&self.base);
            let auth = if home { self.auth(ask.scope) } else { None };
            let reply = self.http.send(method, &url, auth.as_ref(), ask)?;
            match reply.status() {
                StatusCode::UNAUTHORIZED if home && !signed_in => {
                    signed_in = true;
                    let Some(auth) = self.sign_in(&reply, ask.scope)? else { return Ok(reply) };
                    self.granted
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(ask.scope.to_owned(), auth);
                }
                s if s.is_redirection() && matches!(*method, Method::GET | Method::HEAD) => {
                    redirects += 1;
                    if redirects > MAX_REDIRECTS {
                        return Err(self.wrong("it redirects in a circle"));
                    }
                    let to = reply.headers().get("location").and_then(|l| l.to_str().ok());
                    let to = to.ok_or_else(|| self.wrong("it redirects to nowhere"))?;
                    let next = http::join(&url, to);
                    if url.starts_with("https://") && !next.starts_with("https://") {
                        return Err(self.wrong("it redirects from HTTPS to an unprotected address"));
                    }
                    url = next;
                }
                _ => return Ok(reply),
            }
        }
    }

    fn auth(&self, scope: &str) -> Option<Auth> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).get(scope).cloned()
    }

    fn sign_in(&self, reply: &Reply, scope: &str) -> Result<Option<Auth>, ImageError> {
        let challenges = reply.headers().get_all("www-authenticate");
        let challenge = challenges.iter().filter_map(|v| auth::parse(v.to_str().ok()?)).next();
        match challenge {
            None => Ok(None),
            Some(auth::Challenge::Basic) => {
                Ok(self.credentials.as_ref().and_then(Credentials::basic).map(Auth::Basic))
            }
            Some(auth::Challenge::Bearer(bearer)) => {
                auth::fetch_token(&self.http, self, &bearer, scope, self.credentials.as_ref()).map(Some)
            }
        }
    }

    /// Whether this connection is without TLS.
    pub fn is_plain(&self) -> bool {
        self.base.starts_with("http://")
    }

    /// Resolves an address that the registry gave (`Location`).
    pub fn place(&self, location: &str) -> String {
        http::join(&format!("{}/", self.base), location)
    }

    pub fn wrong(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Registry { registry: self.host.clone(), reason: reason.into() }
    }

    pub fn down(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Unavailable { registry: self.host.clone(), reason: reason.into() }
    }

    /// Reads a body that must be small.
    pub fn body(&self, reply: Reply, limit: u64, what: &str) -> Result<Vec<u8>, ImageError> {
        let mut out = Vec::new();
        let mut body = reply.into_body().into_with_config().limit(u64::MAX).reader().take(limit + 1);
        body.read_to_end(&mut out).map_err(|e| http::read_error(&self.host, e))?;
        if out.len() as u64 > limit {
            let reason = format!("the registry sends more than {limit} bytes");
            return Err(ImageError::Limit { what: what.to_owned(), reason });
        }
        Ok(out)
    }

    /// Reads the body of an error.
    pub fn refusal(&self, reply: Reply) -> Refusal {
        let status = reply.status();
        let mut out = Vec::new();
        let _ = reply
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader()
            .take(MAX_SMALL)
            .read_to_end(&mut out);
        let first = serde_json::from_slice::<ErrorBody>(&out).ok().and_then(|b| b.errors.into_iter().next());
        let clean = |s: String| s.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
        let (code, message) = first.map(|e| (clean(e.code), clean(e.message))).unwrap_or_default();
        Refusal { status, code, message }
    }

    /// The error of a reply that nothing else explains.
    pub fn unexpected(&self, refusal: &Refusal, doing: &str) -> ImageError {
        let words = match (refusal.code.as_str(), refusal.message.as_str()) {
            ("", "") => String::new(),
            (code, "") => format!(" ({code})"),
            (_, message) => format!(" ({message})"),
        };
        let reason = format!("{doing} was answered with {}{words}", refusal.status);
        match refusal.status {
            StatusCode::TOO_MANY_REQUESTS => {
                self.down(format!("it limits how often one may ask{words}; wait, or log in"))
            }
            s if s.is_server_error() => self.down(reason),
            _ => self.wrong(reason),
        }
    }

    /// Sends a request that is safe to repeat, up to three times if the registry stumbles.
    pub fn send_patiently(&self, method: &Method, place: &str, ask: &Ask<'_>) -> Result<Reply, ImageError> {
        for pause in [200, 800] {
            match self.send(method, place, ask) {
                Ok(r) if r.status().is_server_error() => std::thread::sleep(Duration::from_millis(pause)),
                done => return done,
            }
        }
        self.send(method, place, ask)
    }

    /// Fetches the bytes of a manifest and what it came as. Verified if the reference has a digest or the
    /// registry tells one.
    pub fn manifest(
        &self,
        name: &ImageRef,
        reference: &str,
    ) -> Result<(Vec<u8>, Option<String>), ImageError> {
        let place = format!("/v2/{}/manifests/{reference}", name.repository());
        let accept = crate::manifest::ACCEPT.join(", ");
        let scope = pull_scope(name);
        let ask = Ask { headers: &[("accept", &accept)], ..Ask::new(&scope) };
        let reply = self.send_patiently(&Method::GET, &place, &ask)?;
        if reply.status() != StatusCode::OK {
            return Err(self.pull_refused(name, reference, reply));
        }
        let text = |h: &str| reply.headers().get(h).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (kind, told) = (text("content-type"), text("docker-content-digest"));
        let bytes = self.body(reply, crate::manifest::MAX_MANIFEST, "the manifest")?;
        let found = crate::manifest::digest_of(&bytes);
        let told = Digest::parse(reference).ok().or_else(|| told.and_then(|t| Digest::parse(&t).ok()));
        match told {
            Some(expected) if expected != found => Err(ImageError::DigestMismatch {
                what: format!("the manifest of {} from {}", name.familiar(), self.host),
                expected,
                found,
            }),
            _ => Ok((bytes, kind)),
        }
    }

    pub fn pull_refused(&self, name: &ImageRef, reference: &str, reply: Reply) -> ImageError {
        let refusal = self.refusal(reply);
        let denied =
            || ImageError::PullDenied { repository: name.familiar_name(), registry: self.host.clone() };
        match refusal.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => denied(),
            StatusCode::NOT_FOUND if refusal.code == "NAME_UNKNOWN" => denied(),
            StatusCode::NOT_FOUND => ImageError::ManifestUnknown(match reference.contains(':') {
                true => format!("{}@{reference}", name.familiar_name()),
                false => format!("{}:{reference}", name.familiar_name()),
            }),
            _ => self.unexpected(&refusal, "the request for the manifest"),
        }
    }

    /// The tags of a repository.
    pub fn tags(&self, name: &ImageRef) -> Result<Vec<String>, ImageError> {
        #[derive(Deserialize)]
        struct Tags {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let scope = pull_scope(name);
        let mut place = format!("/v2/{}/tags/list?n=1000", name.repository());
        let mut tags = Vec::new();
        loop {
            let reply = self.send_patiently(&Method::GET, &place, &Ask::new(&scope))?;
            if reply.status() != StatusCode::OK {
                return Err(self.pull_refused(name, "latest", reply));
            }
            let next = reply.headers().get("link").and_then(|l| l.to_str().ok()).and_then(|l| {
                let (place, rest) = l.strip_prefix('<')?.split_once('>')?;
                rest.contains("rel=\"next\"").then(|| self.place(place))
            });
            let bytes = self.body(reply, crate::manifest::MAX_MANIFEST, "the list of tags")?;
            let list: Tags = serde_json::from_slice(&bytes)
                .map_err(|e| self.wrong(format!("its list of tags cannot be read ({e})")))?;
            tags.extend(list.tags.unwrap_or_default());
            match next {
                Some(next) if tags.len() < MAX_TAGS && next != place => place = next,
                _ => return Ok(tags),
            }
        }
    }

    /// Starts to read a blob at `offset`. Answers the reply and whether the registry heeded the offset.
    pub fn blob(&self, name: &ImageRef, digest: &Digest, offset: u64) -> Result<(Reply, bool), ImageError> {
        let place = format!("/v2/{}/blobs/{digest}", name.repository());
        let range = format!("bytes={offset}-");
        let headers = [("range", range.as_str())];
        let scope = pull_scope(name);
        let ask = Ask { headers: if offset > 0 { &headers } else { &[] }, ..Ask::new(&scope) };
        let reply = self.send(&Method::GET, &place, &ask)?;
        match reply.status() {
            StatusCode::OK => Ok((reply, false)),
            StatusCode::PARTIAL_CONTENT if offset > 0 => {
                let start = format!("bytes {offset}-");
                let range = reply.headers().get("content-range").and_then(|r| r.to_str().ok());
                match range.is_some_and(|r| r.starts_with(&start)) {
                    true => Ok((reply, true)),
                    false => Err(self.wrong("it answers with another range than the one asked for")),
                }
            }
            StatusCode::NOT_FOUND => {
                Err(self.wrong(format!("it does not have the blob {digest} that its manifest names")))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(ImageError::PullDenied { repository: name.familiar_name(), registry: self.host.clone() })
            }
            _ => Err(self.unexpected(&self.refusal(reply), "the request for a blob")),
        }
    }

    /// Asks whether the registry lets these credentials in.
    pub fn verify_login(&self) -> Result<(), ImageError> {
        let reply = self.send(&Method::GET, "/v2/", &Ask::new(""))?;
        let failed = |reason: String| ImageError::Login { registry: self.host.clone(), reason };
        match reply.status() {
            StatusCode::OK => Ok(()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(failed("incorrect username or password".into()))
            }
            StatusCode::NOT_FOUND => Err(failed("it is not a registry (no /v2/)".into())),
            _ => Err(self.unexpected(&self.refusal(reply), "the login")),
        }
    }
}

/// The scope of reading a repository.
pub(crate) fn pull_scope(name: &ImageRef) -> String {
    format!("repository:{}:pull", name.repository())
}

fn matches(insecure: &str, host: &str) -> bool {
    let insecure = insecure.trim().trim_start_matches("http://").trim_end_matches('/');
    insecure == host || http::split_port(host).0 == insecure
}
