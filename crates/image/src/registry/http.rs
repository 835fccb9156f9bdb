//! HTTP as registries need it: an agent per origin with its certificates and its proxy, no redirects followed by
//! itself, time-outs on every step.

use super::auth::Auth;
use super::{Ask, Payload, dns};
use crate::ImageError;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use ureq::http::{Method, Request, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Proxy, SendBody};

/// Until the connection stands.
const CONNECT: Duration = Duration::from_secs(10);
/// Without a byte.
const SILENCE: Duration = Duration::from_secs(30);
/// Socket buffers: a layer is megabytes.
const BUFFER: usize = 256 << 10;

pub(crate) type Reply = Response<ureq::Body>;

/// Sends requests on behalf of one registry, to it and to where it redirects.
pub(super) struct Http {
    registry: String,
    /// Certificates of the registry itself are not verified.
    lax: bool,
    silence: Duration,
    agents: Mutex<HashMap<String, Agent>>,
}

impl Http {
    pub fn new(registry: &str, lax: bool) -> Self {
        // For tests of silent registries.
        let silence =
            std::env::var("DHOW_REGISTRY_TIMEOUT").ok().and_then(|s| s.parse().ok()).filter(|s| *s > 0);
        let silence = silence.map_or(SILENCE, Duration::from_secs);
        Self { registry: registry.to_owned(), lax, silence, agents: Mutex::default() }
    }

    /// Sends one request and waits for the head of the reply.
    pub fn send(
        &self,
        method: &Method,
        url: &str,
        auth: Option<&Auth>,
        ask: &Ask<'_>,
    ) -> Result<Reply, ImageError> {
        let wrong = |reason: String| ImageError::Registry { registry: self.registry.clone(), reason };
        let agent = self.agent(url)?;
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in ask.headers {
            request = request.header(*name, *value);
        }
        if let Some(auth) = auth {
            request = request.header("authorization", auth.header());
        }
        let bad = |e: ureq::http::Error| wrong(format!("the address {url:.300} cannot be used ({e})"));
        let reply = match ask.payload {
            Payload::None => agent.run(request.body(()).map_err(bad)?),
            Payload::Bytes(bytes) => agent.run(request.body(bytes).map_err(bad)?),
            Payload::File(open, size) => {
                let mut reader = open.open()?;
                let body = SendBody::from_reader(&mut reader);
                agent.run(request.header("content-length", size).body(body).map_err(bad)?)
            }
        };
        reply.map_err(|e| self.error(e))
    }

    fn error(&self, e: ureq::Error) -> ImageError {
        let registry = self.registry.clone();
        let down = |reason: String| ImageError::Unavailable { registry: registry.clone(), reason };
        match e {
            ureq::Error::Timeout(ureq::Timeout::Resolve) => {
                down("its name cannot be resolved in time".into())
            }
            ureq::Error::Timeout(ureq::Timeout::Connect) => {
                down(format!("no connection within {} seconds", CONNECT.as_secs()))
            }
            ureq::Error::Timeout(_) => {
                down(format!("it is silent for more than {} s", self.silence.as_secs()))
            }
            ureq::Error::HostNotFound => down("its name cannot be resolved".into()),
            ureq::Error::Io(e) => read_error(&registry, e),
            ureq::Error::Protocol(_) | ureq::Error::Http(_) => {
                ImageError::Registry { registry, reason: format!("it does not speak HTTP ({e})") }
            }
            other => down(other.to_string()),
        }
    }

    fn agent(&self, url: &str) -> Result<Agent, ImageError> {
        let origin = origin(url);
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(origin) {
            return Ok(agent.clone());
        }
        let (scheme, authority) = origin.split_once("://").unwrap_or(("https", origin));
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("dhow/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(self.silence))
            .timeout_per_write(Some(self.silence))
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            .proxy(self.proxy(scheme, authority)?);
        if scheme == "https" {
            let lax = self.lax && authority == self.registry;
            config = config.tls_config(
                TlsConfig::builder().root_certs(roots(authority)?).disable_verification(lax).build(),
            );
        }
        let agent = Agent::with_parts(config.build(), DefaultConnector::default(), dns::Dns);
        agents.insert(origin.to_owned(), agent.clone());
        Ok(agent)
    }

    fn proxy(&self, scheme: &str, authority: &str) -> Result<Option<Proxy>, ImageError> {
        let variable =
            |names: &[&str]| names.iter().find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()));
        let own: &[&str] = match scheme {
            "https" => &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
            _ => &["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
        };
        let Some(address) = variable(own) else { return Ok(None) };
        let except = variable(&["NO_PROXY", "no_proxy"]).unwrap_or_default();
        if is_loopback(authority) || no_proxy(&except, authority) {
            return Ok(None);
        }
        Proxy::new(&address).map(Some).map_err(|_| ImageError::Unavailable {
            registry: self.registry.clone(),
            reason: "the proxy that the environment names is not an address".into(),
        })
    }
}

/// What a failed read from a registry means.
pub(crate) fn read_error(registry: &str, e: io::Error) -> ImageError {
    let registry = registry.to_owned();
    if let Some(ureq::Error::Timeout(_)) = e.get_ref().and_then(|r| r.downcast_ref::<ureq::Error>()) {
        return ImageError::Unavailable { registry, reason: "it went silent".into() };
    }
    let reason = match e.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
            "the connection broke".to_owned()
        }
        io::ErrorKind::TimedOut => "it went silent".to_owned(),
        _ => {
            let text = e.to_string();
            match text.contains("certificate") {
                true => format!(
                    "its certificate is not trusted ({text}); put its CA into /etc/docker/certs.d/{registry}/ca.crt"
                ),
                false => text,
            }
        }
    };
    ImageError::Unavailable { registry, reason }
}

/// `scheme://host:port` of an address.
pub(super) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |i| start + i);
    &url[..end]
}

/// Resolves `Location` against the address that answered it.
pub(super) fn join(base: &str, location: &str) -> String {
    let origin = origin(base);
    if location.contains("://") {
        return location.to_owned();
    }
    if let Some(rest) = location.strip_prefix("//") {
        let scheme = origin.split_once("://").map_or("https", |(s, _)| s);
        return format!("{scheme}://{rest}");
    }
    if location.starts_with('/') {
        return format!("{origin}{location}");
    }
    let path = base[origin.len()..].split(['?', '#']).next().unwrap_or_default();
    let dir = path.rsplit_once('/').map_or("", |(d, _)| d);
    format!("{origin}{dir}/{location}")
}

/// Host and port of `host:port`, brackets of an IPv6 address removed.
pub(super) fn split_port(authority: &str) -> (&str, Option<u16>) {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, a)| a);
    if let Some((v6, rest)) = authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        return (v6, rest.strip_prefix(':').and_then(|p| p.parse().ok()));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (authority, None),
    }
}

/// Whether an authority is this very host.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = split_port(authority).0;
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Go's rules for NO_PROXY, which Docker follows: names match themselves and what is below, `*` all.
fn no_proxy(list: &str, authority: &str) -> bool {
    let (host, port) = split_port(authority);
    list.split(',').map(str::trim).filter(|e| !e.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let (Some((net, bits)), Ok(ip)) = (entry.split_once('/'), host.parse::<IpAddr>()) {
            return in_network(ip, net, bits);
        }
        let (name, wanted) = split_port(entry);
        let name = name.trim_start_matches("*.").trim_start_matches('.');
        (wanted.is_none() || wanted == port)
            && (host.eq_ignore_ascii_case(name)
                || host.to_ascii_lowercase().ends_with(&format!(".{}", name.to_ascii_lowercase())))
    })
}

fn in_network(ip: IpAddr, net: &str, bits: &str) -> bool {
    let Ok(bits) = bits.parse::<u32>() else { return false };
    match (ip, net.parse()) {
        (IpAddr::V4(ip), Ok(IpAddr::V4(net))) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            ip.to_bits() & mask == net.to_bits() & mask
        }
        (IpAddr::V6(ip), Ok(IpAddr::V6(net))) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            ip.to_bits() & mask == net.to_bits() & mask
        }
        _ => false,
    }
}

/// Directories with certificates for one registry, as Docker has them, and below `DHOW_CERTS`.
fn certificate_dirs(host: &str) -> Vec<PathBuf> {
    let own = std::env::var_os("DHOW_CERTS").map(PathBuf::from);
    let mut dirs = vec![Path::new("/etc/docker/certs.d").join(host)];
    dirs.extend(own.iter().flat_map(|d| [d.join(host), d.clone()]));
    dirs
}

fn certificate_files(host: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = certificate_dirs(host)
        .iter()
        .filter_map(|d| std::fs::read_dir(d).ok())
        .flat_map(|d| d.flatten().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "crt"))
        .collect();
    files.sort();
    files
}

/// Whether the user installed certificates for this registry, which says that it speaks TLS.
pub(super) fn has_certificates(host: &str) -> bool {
    !certificate_files(host).is_empty()
}

/// The host's trusted certificates (`SSL_CERT_FILE`, `SSL_CERT_DIR`, or where distributions keep them), else
/// Mozilla's, and those that the user installed for this registry.
fn roots(host: &str) -> Result<RootCerts, ImageError> {
    let mut certs: Vec<Certificate<'static>> = Vec::new();
    for path in certificate_files(host) {
        let pem = std::fs::read(&path).map_err(|e| ImageError::io("read the certificate", &path, e))?;
        let before = certs.len();
        certs.extend(ureq::tls::parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(c)) => Some(c),
            _ => None,
        }));
        if certs.len() == before {
            return Err(ImageError::Invalid(format!("{} holds no PEM certificate", path.display())));
        }
    }
    let native = rustls_native_certs::load_native_certs().certs;
    if native.is_empty() && certs.is_empty() {
        return Ok(RootCerts::WebPki);
    }
    certs.extend(native.iter().map(|c| Certificate::from_der(c).to_owned()));
    Ok(RootCerts::new_with_certs(&certs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(origin("https://a:1/b/c?d"), "https://a:1");
        assert_eq!(join("https://a/v2/x/uploads/1?y", "/v2/z"), "https://a/v2/z");
        assert_eq!(join("https://a/v2/x/1?y", "2"), "https://a/v2/x/2");
        assert_eq!(join("https://a/v2", "http://b/c"), "http://b/c");
        assert_eq!(join("https://a/v2", "//b/c"), "https://b/c");
        assert!(is_loopback("[::1]:5000") && is_loopback("127.0.0.9") && is_loopback("localhost:1"));
        assert!(!is_loopback("localhost.example.org"));
    }

    #[test]
    fn proxies_are_passed_by() {
        let list = "example.org, .corp:8443,10.0.0.0/8";
        for host in ["example.org", "a.example.org:443", "x.corp:8443", "10.2.3.4:5000"] {
            assert!(no_proxy(list, host), "{host}");
        }
        for host in ["badexample.org", "x.corp:443", "11.0.0.1", "example.com"] {
            assert!(!no_proxy(list, host), "{host}");
        }
        assert!(no_proxy("*", "any"));
    }
}
