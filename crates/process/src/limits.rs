//! Resource limits (`setrlimit(2)`), checked against what this host lets us give.

use crate::error::{LaunchError, Step};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use types::oci::{PosixRlimit, PosixRlimitType as Kind};

/// The kernel's resource and Docker's name of it.
fn resource(kind: Kind) -> Option<(Resource, &'static str)> {
    Some(match kind {
        Kind::RlimitCpu => (Resource::Cpu, "cpu"),
        Kind::RlimitFsize => (Resource::Fsize, "fsize"),
        Kind::RlimitData => (Resource::Data, "data"),
        Kind::RlimitStack => (Resource::Stack, "stack"),
        Kind::RlimitCore => (Resource::Core, "core"),
        Kind::RlimitRss => (Resource::Rss, "rss"),
        Kind::RlimitNproc => (Resource::Nproc, "nproc"),
        Kind::RlimitNofile => (Resource::Nofile, "nofile"),
        Kind::RlimitMemlock => (Resource::Memlock, "memlock"),
        Kind::RlimitAs => (Resource::As, "as"),
        Kind::RlimitLocks => (Resource::Locks, "locks"),
        Kind::RlimitSigpending => (Resource::Sigpending, "sigpending"),
        Kind::RlimitMsgqueue => (Resource::Msgqueue, "msgqueue"),
        Kind::RlimitNice => (Resource::Nice, "nice"),
        Kind::RlimitRtprio => (Resource::Rtprio, "rtprio"),
        Kind::RlimitRttime => (Resource::Rttime, "rttime"),
    })
}

/// A limit, ready to be set.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    resource: Resource,
    name: &'static str,
    value: Rlimit,
}

/// Turns the specification's limits into the kernel's; refuses one that is above the hard limit of this process if
/// it may not raise it (`may_raise`: CAP_SYS_RESOURCE).
pub(crate) fn check(wanted: &[PosixRlimit], may_raise: bool) -> Result<Vec<Limit>, LaunchError> {
    wanted.iter().map(|w| check_one(w, may_raise)).collect()
}

fn check_one(wanted: &PosixRlimit, may_raise: bool) -> Result<Limit, LaunchError> {
    let invalid = LaunchError::Invalid;
    let Some((resource, name)) = resource(wanted.typ()) else {
        return Err(invalid(format!("ulimit {:?} is not known on Linux", wanted.typ())));
    };
    let (soft, hard) = (wanted.soft(), wanted.hard());
    if soft > hard {
        return Err(invalid(format!("ulimit {name}: the soft limit {soft} is above the hard limit {hard}")));
    }
    // u64::MAX is RLIM_INFINITY, which rustix calls None.
    let limit = |v: u64| (v != u64::MAX).then_some(v);
    if !may_raise {
        let ours = getrlimit(resource).maximum;
        if let Some(ours) = ours.filter(|ours| hard > *ours) {
            let hard = limit(hard).map_or("unlimited".to_owned(), |h| h.to_string());
            return Err(invalid(format!(
                "ulimit {name}={hard} is above this host's hard limit of {ours}, which may not be raised here \
                 (CAP_SYS_RESOURCE is missing): ask for at most {ours}"
            )));
        }
    }
    Ok(Limit { resource, name, value: Rlimit { current: limit(soft), maximum: limit(hard) } })
}

/// Sets them for this process.
pub(crate) fn apply(limits: &[Limit]) -> Result<(), LaunchError> {
    limits.iter().try_for_each(|l| setrlimit(l.resource, l.value).step(|| format!("set ulimit {}", l.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::oci::PosixRlimitBuilder;

    #[test]
    fn a_limit_that_the_host_cannot_give_is_named() {
        let limit = |soft: u64, hard: u64| {
            let limit = PosixRlimitBuilder::default().typ(Kind::RlimitNofile);
            limit.soft(soft).hard(hard).build().unwrap()
        };
        let Some(ours) = getrlimit(Resource::Nofile).maximum else {
            return println!("skipped: no hard limit");
        };
        assert!(check(&[limit(10, ours)], false).is_ok());
        assert!(check(&[limit(10, ours + 1)], true).is_ok());
        let said = check(&[limit(10, ours + 1)], false).unwrap_err().to_string();
        assert!(said.contains("nofile") && said.contains(&ours.to_string()), "{said}");
        assert!(check(&[limit(11, 10)], true).is_err());
    }
}
