//! Names to addresses without libc: a static glibc has no dependable resolver. `/etc/hosts` and
//! `/etc/resolv.conf` are read as usual.

use hickory_resolver::Resolver as Hickory;
use hickory_resolver::config::ResolverConfig;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

#[derive(Debug)]
pub(super) struct Dns;

impl Resolver for Dns {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().ok_or(Error::HostNotFound)?.trim_start_matches('[').trim_end_matches(']');
        let standard = if uri.scheme_str() == Some("http") { 80 } else { 443 };
        let port = uri.port_u16().unwrap_or(standard);
        let mut out = self.empty();
        let found = match host.parse::<IpAddr>() {
            Ok(ip) => vec![ip],
            Err(_) if host == "localhost" || host.ends_with(".localhost") => {
                vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            }
            Err(_) => look_up(host, &timeout)?,
        };
        // The array that ureq gives holds sixteen.
        found.into_iter().take(16).for_each(|ip| out.push(SocketAddr::new(ip, port)));
        if out.is_empty() { Err(Error::HostNotFound) } else { Ok(out) }
    }
}

fn look_up(host: &str, timeout: &NextTimeout) -> Result<Vec<IpAddr>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let failed = |_| Error::HostNotFound;
        // Without a resolv.conf there are still the hosts of /etc/hosts.
        let builder = Hickory::builder_tokio().unwrap_or_else(|_| {
            Hickory::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default())
        });
        let resolver = builder.build().map_err(failed)?;
        let limit = (*timeout.after).min(std::time::Duration::from_secs(60));
        match tokio::time::timeout(limit, resolver.lookup_ip(host)).await {
            Err(_) => Err(Error::Timeout(timeout.reason)),
            Ok(Err(_)) => Err(Error::HostNotFound),
            Ok(Ok(found)) => {
                let mut found: Vec<IpAddr> = found.iter().collect();
                // A host without IPv6 would wait for its first failure.
                found.sort_by_key(IpAddr::is_ipv6);
                Ok(found)
            }
        }
    })
}
