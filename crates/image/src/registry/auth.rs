//! How registries let one in: Basic (RFC 7617) and the Bearer token flow of the distribution project
//! (`spec/auth/token.md`, `spec/auth/oauth.md`).

use super::credentials::Credentials;
use super::http::{self, Http};
use super::{Ask, MAX_SMALL, Payload, Registry};
use crate::ImageError;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use ureq::http::{Method, StatusCode};

/// What an `Authorization` header says.
#[derive(Clone)]
pub(super) enum Auth {
    Basic(String),
    Bearer(String),
}

impl Auth {
    pub fn header(&self) -> String {
        match self {
            Self::Basic(pair) => format!("Basic {}", BASE64_STANDARD.encode(pair)),
            Self::Bearer(token) => format!("Bearer {token}"),
        }
    }
}

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// Where a token is to be had.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    pub realm: String,
    pub service: String,
    pub scope: String,
}

/// Reads a `WWW-Authenticate` header.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut bearer = Bearer::default();
    let mut rest = rest.trim();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        match name.trim().trim_start_matches(',').trim().to_ascii_lowercase().as_str() {
            "realm" => bearer.realm = value.to_owned(),
            "service" => bearer.service = value.to_owned(),
            "scope" => bearer.scope = value.to_owned(),
            _ => {}
        }
        rest = after.trim_start_matches([',', ' ']);
    }
    (!bearer.realm.is_empty()).then_some(Challenge::Bearer(bearer))
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// Fetches a token for `scope`, with credentials if there are any.
pub(super) fn fetch_token(
    http: &Http,
    registry: &Registry,
    bearer: &Bearer,
    scope: &str,
    credentials: Option<&Credentials>,
) -> Result<Auth, ImageError> {
    let local = http::is_loopback(http::origin(&bearer.realm).trim_start_matches("http://"));
    if !(bearer.realm.starts_with("https://")
        || bearer.realm.starts_with("http://") && (registry.is_plain() || local))
    {
        return Err(
            registry.wrong(format!("it wants a token from an unprotected address ({:.200})", bearer.realm))
        );
    }
    let scope = if scope.is_empty() { bearer.scope.as_str() } else { scope };
    let mut query = format!("service={}", encode(&bearer.service));
    // OAuth has one parameter with all scopes (RFC 6749, 3.3), the older flow one for each.
    let oauth = matches!(credentials, Some(Credentials::Token(_)));
    let scopes = if oauth { vec![scope] } else { scope.split(' ').collect() };
    for one in scopes.into_iter().filter(|s| !s.is_empty()) {
        query.push_str("&scope=");
        query.push_str(&encode(one));
    }
    let reply = match credentials {
        Some(Credentials::Token(refresh)) => {
            let body =
                format!("grant_type=refresh_token&client_id=dhow&refresh_token={}&{query}", encode(refresh));
            let headers = [("content-type", "application/x-www-form-urlencoded")];
            let ask = Ask { headers: &headers, payload: Payload::Bytes(body.as_bytes()), ..Ask::new("") };
            http.send(&Method::POST, &bearer.realm, None, &ask)?
        }
        other => {
            let basic = other.and_then(Credentials::basic).map(Auth::Basic);
            if let Some(Credentials::Password { user, .. }) = other {
                query.push_str("&account=");
                query.push_str(&encode(user));
            }
            let sign = if bearer.realm.contains('?') { '&' } else { '?' };
            http.send(&Method::GET, &format!("{}{sign}{query}", bearer.realm), basic.as_ref(), &Ask::new(""))?
        }
    };
    match reply.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
            let refusal = registry.refusal(reply);
            let reason = match (credentials, refusal.message.as_str()) {
                (None, _) => "its token service wants a user name and password".to_owned(),
                (_, "") => "incorrect username or password".to_owned(),
                (_, said) => said.to_owned(),
            };
            return Err(ImageError::Login { registry: registry.host.clone(), reason });
        }
        _ => return Err(registry.unexpected(&registry.refusal(reply), "the request for a token")),
    }
    let bytes = registry.body(reply, MAX_SMALL, "the token")?;
    let token: Token =
        serde_json::from_slice(&bytes).map_err(|_| registry.wrong("its token service answers no token"))?;
    let token = token.token.filter(|t| !t.is_empty()).or(token.access_token).unwrap_or_default();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(registry.wrong("its token service answers no token"));
    }
    Ok(Auth::Bearer(token))
}

/// Percent-encodes all but RFC 3986's unreserved characters.
pub(super) fn encode(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for b in s.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(b as char),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        assert_eq!(parse("Basic realm=\"x\""), Some(Challenge::Basic));
        let Some(Challenge::Bearer(b)) = parse(
            r#"Bearer realm="https://auth.example/token?a=b",service="registry, one",scope="repository:a/b:pull,push""#,
        ) else {
            panic!("no bearer")
        };
        assert_eq!(b.realm, "https://auth.example/token?a=b");
        assert_eq!((b.service.as_str(), b.scope.as_str()), ("registry, one", "repository:a/b:pull,push"));
        assert_eq!(parse("Negotiate"), None);
        assert_eq!(parse("Bearer service=x"), None);
        assert_eq!(parse("Bearer realm=\"x"), None);
    }

    #[test]
    fn encoding() {
        assert_eq!(encode("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
    }
}
