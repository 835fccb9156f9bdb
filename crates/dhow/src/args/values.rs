//! Values of single flags: sizes, times, limits. Each parser takes what stands after the flag and answers a sentence
//! where it is wrong; the front puts the flag's name before it.

use types::{docker, units};

/// A whole number.
pub fn int(s: &str) -> Result<i64, String> {
    s.parse().map_err(|_| format!("{s:?} is not a whole number"))
}

/// Go's `strconv.ParseBool`.
pub fn boolean(s: &str) -> Result<bool, String> {
    match s {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{s:?} is neither true nor false")),
    }
}

/// A size in bytes: `512m`, `1.5g`.
pub fn bytes(s: &str) -> Result<i64, String> {
    units::parse_bytes(s).ok_or_else(|| format!("invalid size: '{s}'"))
}

/// A size in bytes, or -1 for no limit.
pub fn bytes_or_minus_one(s: &str) -> Result<i64, String> {
    if s == "-1" { Ok(-1) } else { bytes(s) }
}

/// Seconds and parts of it in nanoseconds: `1m30s`.
pub fn duration(s: &str) -> Result<i64, String> {
    units::parse_duration(s).ok_or_else(|| {
        if s.parse::<f64>().is_ok() {
            format!("missing unit in duration {s:?}")
        } else {
            format!("invalid duration {s:?}")
        }
    })
}

/// A number of CPUs, as billionths.
pub fn nano_cpus(s: &str) -> Result<i64, String> {
    let wrong = || format!("failed to parse {s} as a rational number");
    let (whole, fraction) = s.split_once('.').unwrap_or((s, ""));
    let digits = |p: &str| p.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    if fraction.trim_end_matches('0').len() > 9 {
        return Err(format!("{s} is too precise: at most nine digits after the point"));
    }
    let mut nano = String::from(fraction.trim_end_matches('0'));
    while nano.len() < 9 {
        nano.push('0');
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
    let nano: i64 = nano.parse().map_err(|_| wrong())?;
    whole.checked_mul(1_000_000_000).and_then(|w| w.checked_add(nano)).ok_or_else(wrong)
}

/// `--blkio-weight`: 0, or 10 to 1000.
pub fn blkio_weight(s: &str) -> Result<u16, String> {
    match s.parse() {
        Ok(w @ (0 | 10..=1000)) => Ok(w),
        _ => Err(format!("{s:?} is not a weight between 10 and 1000, or 0")),
    }
}

/// `--blkio-weight-device`: `/dev/sda:500`.
pub fn weight_device(s: &str) -> Result<docker::ResourcesBlkioWeightDevice, String> {
    let (path, weight) = device_and(s)?;
    match weight.parse::<usize>() {
        Ok(w @ (0 | 10..=1000)) => {
            Ok(docker::ResourcesBlkioWeightDevice { path: Some(path), weight: Some(w) })
        }
        _ => Err(format!("invalid weight for device: {s}")),
    }
}

/// `--device-read-bps`: `/dev/sda:1mb`.
pub fn throttle_bytes(s: &str) -> Result<docker::ThrottleDevice, String> {
    let (path, rate) = device_and(s)?;
    let rate = units::parse_bytes(rate).ok_or_else(|| {
        format!(
            "invalid rate for device: {s}. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
        )
    })?;
    Ok(docker::ThrottleDevice { path: Some(path), rate: Some(rate) })
}

/// `--device-read-iops`: `/dev/sda:1000`.
pub fn throttle_count(s: &str) -> Result<docker::ThrottleDevice, String> {
    let (path, rate) = device_and(s)?;
    let rate = rate.parse::<u32>().map_err(|_| {
        format!(
            "invalid rate for device: {s}. The correct format is <device-path>:<number>. Number must be a positive integer"
        )
    })?;
    Ok(docker::ThrottleDevice { path: Some(path), rate: Some(rate.into()) })
}

fn device_and(s: &str) -> Result<(String, &str), String> {
    let (path, rest) = s.split_once(':').ok_or_else(|| format!("bad format: {s}"))?;
    if !path.starts_with("/dev/") {
        return Err(format!("bad format for device path: {s}"));
    }
    Ok((path.to_owned(), rest))
}

/// Names of resource limits, as `setrlimit(2)` and Docker have them.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `--ulimit`: `nofile=1024:2048`.
pub fn ulimit(s: &str) -> Result<docker::ResourcesUlimits, String> {
    let (name, value) = s.split_once('=').ok_or_else(|| format!("invalid ulimit argument: {s}"))?;
    if !ULIMITS.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let (soft, hard) = value.split_once(':').unwrap_or((value, value));
    let number = |v: &str| match v.parse::<i64>() {
        Ok(n) if n >= -1 => Ok(n),
        _ => Err(format!("invalid ulimit value {v:?} in {s}")),
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"));
    }
    Ok(docker::ResourcesUlimits { name: Some(name.to_owned()), soft: Some(soft), hard: Some(hard) })
}

/// `--restart`: `no`, `always`, `unless-stopped`, `on-failure[:max]`.
pub fn restart_policy(s: &str) -> Result<docker::RestartPolicy, String> {
    use docker::RestartPolicyNameEnum as Name;
    let (name, count) = s.split_once(':').map_or((s, None), |(n, c)| (n, Some(c)));
    let policy = match name {
        "" | "no" => Name::NO,
        "always" => Name::ALWAYS,
        "unless-stopped" => Name::UNLESS_STOPPED,
        "on-failure" => Name::ON_FAILURE,
        _ => {
            return Err(format!(
                "invalid restart policy {name:?}: use one of no, always, on-failure[:max-retries], unless-stopped"
            ));
        }
    };
    let count = match count {
        None => 0,
        Some(_) if policy != Name::ON_FAILURE => {
            return Err(format!(
                "invalid restart policy {s:?}: maximum retry count can only be used with on-failure"
            ));
        }
        Some(c) => match c.parse::<u32>() {
            Ok(n) => i64::from(n),
            Err(_) => {
                return Err(format!(
                    "invalid restart policy {s:?}: maximum retry count must be a positive integer"
                ));
            }
        },
    };
    Ok(docker::RestartPolicy { name: Some(policy), maximum_retry_count: Some(count) })
}

/// A device of the host: `/dev/sda[:/dev/xvda[:rwm]]`.
pub fn device(s: &str) -> Result<docker::DeviceMapping, String> {
    let parts: Vec<&str> = s.split(':').collect();
    let mode_ok = |m: &str| {
        !m.is_empty()
            && m.bytes().all(|b| b"rwm".contains(&b))
            && !(1..m.len()).any(|i| m[..i].contains(&m[i..=i]))
    };
    let (host, inside, mode) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, second] if mode_ok(second) => (host, host, second),
        [host, inside] => (host, inside, "rwm"),
        [host, inside, mode] if mode_ok(mode) => (host, inside, mode),
        [_, _, mode] => return Err(format!("invalid device mode: {mode}")),
        _ => return Err(format!("invalid device specification: {s}")),
    };
    if !host.starts_with('/') {
        return Err(format!("{host} is not an absolute path"));
    }
    if !inside.starts_with('/') {
        return Err(format!("{inside} is not an absolute path"));
    }
    Ok(docker::DeviceMapping {
        path_on_host: Some(host.into()),
        path_in_container: Some(inside.into()),
        cgroup_permissions: Some(mode.into()),
    })
}

/// `--device-cgroup-rule`: `c 1:3 rwm`.
pub fn device_rule(s: &str) -> Result<String, String> {
    let wrong = || format!("invalid device cgroup format '{s}'");
    let parts: Vec<&str> = s.split(' ').collect();
    let [kind, numbers, mode] = parts[..] else { return Err(wrong()) };
    let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
    let number = |n: &str| n == "*" || (!n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let ok = matches!(kind, "a" | "b" | "c")
        && number(major)
        && number(minor)
        && (1..=3).contains(&mode.len())
        && mode.bytes().all(|b| b"rwm".contains(&b));
    ok.then(|| s.to_owned()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_exact() {
        for (s, want) in
            [("1", 1_000_000_000), ("0.5", 500_000_000), (".25", 250_000_000), ("1.000000001", 1_000_000_001)]
        {
            assert_eq!(nano_cpus(s), Ok(want), "{s}");
        }
        for bad in ["", ".", "x", "-1", "1.0000000001", "99999999999999999999"] {
            assert!(nano_cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ulimits() {
        let u = ulimit("nofile=1024:2048").unwrap();
        assert_eq!((u.soft, u.hard), (Some(1024), Some(2048)));
        let u = ulimit("core=-1").unwrap();
        assert_eq!((u.soft, u.hard), (Some(-1), Some(-1)));
        for bad in ["nofile", "what=1", "nofile=a", "nofile=5:3", "nofile=-1:3", "nofile=1:2:3"] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn restart_policies() {
        use docker::RestartPolicyNameEnum as Name;
        let p = restart_policy("on-failure:3").unwrap();
        assert_eq!((p.name, p.maximum_retry_count), (Some(Name::ON_FAILURE), Some(3)));
        assert_eq!(restart_policy("").unwrap().name, Some(Name::NO));
        for bad in ["sometimes", "always:3", "on-failure:x", "on-failure:-1"] {
            assert!(restart_policy(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices() {
        let three = |s: &str| {
            let d = device(s).unwrap();
            (d.path_on_host.unwrap(), d.path_in_container.unwrap(), d.cgroup_permissions.unwrap())
        };
        assert_eq!(three("/dev/x"), ("/dev/x".into(), "/dev/x".into(), "rwm".into()));
        assert_eq!(three("/dev/x:r"), ("/dev/x".into(), "/dev/x".into(), "r".into()));
        assert_eq!(three("/dev/x:/dev/y"), ("/dev/x".into(), "/dev/y".into(), "rwm".into()));
        assert_eq!(three("/dev/x:/dev/y:rw"), ("/dev/x".into(), "/dev/y".into(), "rw".into()));
        for bad in ["", "dev/x", "/dev/x:/dev/y:rr", "/dev/x:y", "/a:/b:r:c"] {
            assert!(device(bad).is_err(), "{bad}");
        }
        assert!(device_rule("c 1:* rmw").is_ok());
        for bad in ["", "c 1:3", "d 1:3 r", "c 1 r", "c 1:3 x"] {
            assert!(device_rule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(throttle_bytes("/dev/sda:1mb").unwrap().rate, Some(1 << 20));
        assert_eq!(throttle_count("/dev/sda:100").unwrap().rate, Some(100));
        assert!(throttle_bytes("sda:1mb").is_err());
        assert!(throttle_count("/dev/sda:1mb").is_err());
        assert!(weight_device("/dev/sda:5").is_err());
    }
}
