//! Everything of a request that this crate reads itself, for the fuzz target `api_request`: path, parameters, credentials,
//! and what the rules of `--restrict` make of a container.

use crate::ask;
use crate::docker::registry;
use crate::policy::Restrict;
use crate::query::Query;
use types::docker::{ContainerConfig, HostConfig};

/// Reads four lines: path and parameters, credentials, a rule, a container. None of them may be a panic, nor may the rules let
/// through what they always forbid.
pub fn fuzz_request(data: &[u8]) {
    let mut lines = data.splitn(4, |b| *b == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let target = String::from_utf8_lossy(next()).into_owned();
    let (path, parameters) = target.split_once('?').unwrap_or((&target, ""));
    if let Ok(path) = ask::percent_decode(path) {
        let _ = ask::version(&path);
    }
    parameters_of(&Query::parse(parameters));
    let _ = registry::credentials(next());
    let rules = Restrict::parse(&[String::from_utf8_lossy(next())]);
    if let (Ok(rules), Ok(host)) = (rules, serde_json::from_slice::<HostConfig>(next())) {
        let config = ContainerConfig { image: Some("image".into()), ..ContainerConfig::default() };
        if rules.admit(&config, &host).is_ok() {
            assert_ne!(host.privileged, Some(true), "a privileged workload was let through");
            let added = host.cap_add.as_ref().map_or(0, Vec::len) + host.devices.as_ref().map_or(0, Vec::len);
            assert_eq!(added, 0, "added capabilities or devices were let through");
        }
    }
}

fn parameters_of(query: &Query) {
    for name in ["a", "since", "t", "h"] {
        let _ = (query.get(name), query.all(name), query.flag(name), query.flag_or(name, true));
        let _ = (query.number(name), query.size(name), query.moment(name));
    }
    let _ = query.filters();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read() {
        fuzz_request(b"");
        fuzz_request(b"/v1.41/containers/json?filters=%7B%7D&since=1.5&t=x&h=70000\nbm8=\nvm,bind=/srv\n{\"Privileged\": true}");
        fuzz_request(b"/v1.%ff/x?a=%\n\n\n{\"Binds\": [\"/:/x\"], \"CapAdd\": [\"ALL\"]}");
    }
}
