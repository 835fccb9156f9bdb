//! One request, taken apart.

use crate::body::BodyWriter;
use crate::body::{self, Body};
use crate::client::{Handover, Place, Raw, Wire};
use crate::fault::Fault;
use crate::fold;
use crate::query::Query;
use crate::shared::Server;
use crate::work::{self, Late};
use engine::Engine;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, UPGRADE};
use hyper::http::response::Builder;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::{SemaphorePermit, oneshot};

/// An answer.
pub(crate) type Answer = Result<Response<Body>, Fault>;

/// A request.
pub(crate) struct Ask {
    pub server: Arc<Server>,
    pub method: Method,
    /// Without the version.
    pub path: String,
    /// Minor version of the API that the client speaks.
    pub version: u32,
    pub query: Query,
    pub headers: HeaderMap,
    pub wire: Option<Wire>,
    /// Held as long as anybody is at work for this request.
    _place: Option<Place>,
    body: Option<Incoming>,
    /// The client asks for the connection itself.
    pub wants_upgrade: bool,
    handover: Option<Handover>,
}

impl Ask {
    /// Takes a request apart. The version in its path must be one that is spoken.
    pub fn new(server: Arc<Server>, request: Request<Incoming>) -> Result<Self, Fault> {
        let (parts, body) = request.into_parts();
        let decoded = percent_decode(parts.uri.path())?;
        let (version, path) = version(&decoded)?;
        Ok(Self {
            server,
            method: parts.method,
            path: path.to_owned(),
            version,
            query: Query::parse(parts.uri.query().unwrap_or_default()),
            wants_upgrade: wants_upgrade(&parts.headers),
            headers: parts.headers,
            wire: parts.extensions.get::<Wire>().cloned(),
            _place: parts.extensions.get::<Place>().cloned(),
            handover: parts.extensions.get::<Handover>().cloned(),
            body: Some(body),
        })
    }

    /// Calls the engine.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Engine) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        work::run(&self.server.settings.store, job).await
    }

    /// Calls the engine for what nobody keeps waiting, neither a workload nor another client: there are threads left for it
    /// when all others wait.
    pub async fn look<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Engine) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        work::look(&self.server.settings.store, job).await
    }

    /// Calls the engine for what depends on what the client sends meanwhile.
    pub async fn run_apart<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Engine) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        work::run_apart(&self.server.settings.store, job).await
    }

    /// Calls the engine for a stream.
    pub async fn stream(
        &self,
        head: Builder,
        late: Late,
        job: impl FnOnce(&Engine, &mut BodyWriter) -> Result<(), Fault> + Send + 'static,
    ) -> Answer {
        work::stream(&self.server.settings.store, head, late, job).await
    }

    /// The body as it comes.
    pub fn take_body(&mut self) -> Result<Incoming, Fault> {
        self.body.take().ok_or_else(|| Fault::internal("the request's body was taken twice"))
    }

    /// Whether some of the body may still come.
    pub fn has_body(&self) -> bool {
        self.body.as_ref().is_some_and(|body| !body.is_end_stream())
    }

    /// The connection itself, once the answer is out; what the client may still send of a body is dropped.
    pub fn take_connection(&mut self) -> Result<oneshot::Receiver<Raw>, Fault> {
        self.body = None;
        let handover = self.handover.take();
        let handover =
            handover.ok_or_else(|| Fault::internal("the request's connection was taken over already"))?;
        Ok(handover.take())
    }

    /// The body as JSON; `None` where there is none. The second is to be kept until it has been worked through.
    pub async fn document(&mut self) -> Result<Option<(Value, Option<SemaphorePermit<'static>>)>, Fault> {
        let body::Whole { bytes, turn, .. } = body::whole(self.take_body()?).await?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let kind = self.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if essence != "application/json" {
            return Err(Fault::invalid(format!(
                "unsupported Content-Type header ({kind}): must be 'application/json'"
            )));
        }
        let value: Value =
            serde_json::from_slice(&bytes).map_err(|e| Fault::invalid(format!("invalid JSON: {e}")))?;
        match value {
            Value::Object(_) => Ok(Some((value, turn))),
            Value::Null => Ok(None),
            _ => Err(Fault::invalid("invalid JSON: an object is expected")),
        }
    }

    /// The body as one of Docker's shapes; fields that it does not have are ignored.
    pub async fn shape<T: DeserializeOwned + Default>(&mut self) -> Result<T, Fault> {
        match self.document().await? {
            Some((value, _turn)) => shaped(value),
            None => Ok(T::default()),
        }
    }
}

/// What nobody wanted to read is read all the same, within reason: a client that still writes when the connection closes
/// does not see the answer.
impl Drop for Ask {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|b| !b.is_end_stream()) {
            tokio::spawn(body::drain(body));
        }
    }
}

/// One of Docker's shapes out of JSON.
pub(crate) fn shaped<T: DeserializeOwned>(value: Value) -> Result<T, Fault> {
    fold::shaped(value).map_err(|e| Fault::invalid(format!("invalid JSON: {e}")))
}

/// An answer of JSON.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    document(status, bytes)
}

/// An answer of JSON that is written already.
pub(crate) fn document(status: StatusCode, bytes: Vec<u8>) -> Answer {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json")
        .body(Body::of(bytes))
        .map_err(|e| Fault::internal(e.to_string()))
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Answer {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    Ok(response)
}

/// The head of a stream of this type.
pub(crate) fn head(kind: &str) -> Builder {
    Response::builder().status(StatusCode::OK).header(CONTENT_TYPE, kind)
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    let words =
        |name| headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>().join(",");
    let upgrade = words(UPGRADE).to_ascii_lowercase();
    words(CONNECTION).to_ascii_lowercase().contains("upgrade")
        && matches!(upgrade.as_str(), "tcp" | "websocket")
}

/// `/v1.41/containers/json` is `(41, "/containers/json")`.
pub(crate) fn version(path: &str) -> Result<(u32, &str), Fault> {
    let newest = minor(engine::API_VERSION).unwrap_or(0);
    let Some((version, rest)) = path.strip_prefix("/v").map(|p| p.split_once('/').unwrap_or((p, ""))) else {
        return Ok((newest, path));
    };
    if !version.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok((newest, path));
    }
    let asked = version
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    let Some(asked) = asked else {
        return Err(Fault::invalid(format!(
            "invalid version {version:?} in the path: give one such as v{}",
            engine::API_VERSION
        )));
    };
    if asked > (1, newest) {
        return Err(Fault::invalid(format!(
            "client version {version} is too new. Maximum supported API version is {}",
            engine::API_VERSION
        )));
    }
    if asked < (1, minor(engine::MIN_API_VERSION).unwrap_or(0)) {
        return Err(Fault::invalid(format!(
            "client version {version} is too old. Minimum supported API version is {}, please upgrade your client to a newer version",
            engine::MIN_API_VERSION
        )));
    }
    Ok((asked.1, rest))
}

fn minor(version: &str) -> Option<u32> {
    version.split_once('.')?.1.parse().ok()
}

pub(crate) fn percent_decode(path: &str) -> Result<String, Fault> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let digits = hex(bytes.next()).zip(hex(bytes.next()));
        let (high, low) = digits
            .ok_or_else(|| Fault::invalid(format!("the path {path:?} is not encoded as it should be")))?;
        out.extend(u8::try_from(high * 16 + low));
    }
    String::from_utf8(out).map_err(|_| Fault::invalid("the path is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_negotiated() {
        assert_eq!(version("/v1.24/info").unwrap(), (24, "info"));
        assert_eq!(version("/info").unwrap().1, "/info");
        assert_eq!(version("/volumes/x").unwrap().1, "/volumes/x");
        assert!(version("/v1.23/info").unwrap_err().message.contains("too old"));
        assert!(version("/v9.1/info").unwrap_err().message.contains("too new"));
        assert!(version("/v1.x/info").is_err());
    }

    #[test]
    fn paths_are_decoded() {
        assert_eq!(percent_decode("/images/a%2Fb:1/json").unwrap(), "/images/a/b:1/json");
        assert!(percent_decode("/a%2").is_err() && percent_decode("/%ff").is_err());
    }
}
