//! Sizes, durations and times as Docker reads and writes them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Reads Docker's byte sizes: `512`, `64k`, `1.5g`, `10MiB` (binary multiples whatever the suffix says,
/// as `go-units` `RAMInBytes`). None if it is no size or beyond `i64::MAX`.
pub fn parse_bytes(s: &str) -> Option<i64> {
    let s = s.trim();
    let end = s.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(s.len());
    let (number, suffix) = s.split_at(end);
    let suffix = suffix.trim_start().to_ascii_lowercase();
    let suffix = suffix.strip_suffix("ib").or_else(|| suffix.strip_suffix('b')).unwrap_or(&suffix);
    let shift = match suffix {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let unit = 1i64 << shift;
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(unit);
    }
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    (bytes.is_finite() && bytes < i64::MAX as f64).then_some(bytes as i64)
}

/// Writes bytes with decimal units and three digits, as `go-units` `HumanSize`: `4.26MB`.
pub fn human_size(bytes: f64) -> String {
    human(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 3)
}

/// Writes bytes with binary units and four digits, as `go-units` `BytesSize`: `1.944GiB`.
pub fn binary_size(bytes: f64) -> String {
    human(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 4)
}

fn human(mut v: f64, base: f64, units: &[&str], digits: i32) -> String {
    let mut unit = 0;
    while v >= base && unit + 1 < units.len() {
        v /= base;
        unit += 1;
    }
    // Go's %.{digits}g: significant digits, no trailing zeros.
    let decimals = (digits - 1 - magnitude(v.abs())).max(0) as usize;
    let mut s = format!("{v:.decimals$}");
    if s.contains('.') {
        s.truncate(s.trim_end_matches('0').trim_end_matches('.').len());
    }
    s + units[unit]
}

/// Of the first digit that is not zero; 0 of what has none. The C library's logarithm would be a part of the agent.
fn magnitude(mut v: f64) -> i32 {
    if !v.is_normal() {
        return 0;
    }
    let mut out = 0;
    while v >= 10.0 {
        v /= 10.0;
        out += 1;
    }
    while v < 1.0 {
        v *= 10.0;
        out -= 1;
    }
    out
}

/// Reads a rate as tc(8) does into bits a second: `10mbit`, `1.5gbit`, `64kibit`, `2mbps` (bytes), `8000` (bits). None if
/// it is none, or less than one byte a second.
pub fn parse_rate(s: &str) -> Option<u64> {
    let s = s.trim().to_ascii_lowercase();
    let end = s.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(s.len());
    let (number, unit) = s.split_at(end);
    let (prefix, bits) = match unit.strip_suffix("bps") {
        Some(prefix) => (prefix, 8.0),
        None => (unit.strip_suffix("bit").unwrap_or(unit), 1.0),
    };
    let scale = match prefix {
        "" => 1.0,
        "k" => 1e3,
        "ki" => 1024.0,
        "m" => 1e6,
        "mi" => 1024.0 * 1024.0,
        "g" => 1e9,
        "gi" => 1024.0 * 1024.0 * 1024.0,
        "t" => 1e12,
        "ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let rate = number.parse::<f64>().ok()? * scale * bits;
    (8.0..1e18).contains(&rate).then_some(rate as u64)
}

/// Reads Go durations, `1h2m3.5s`, `100ms`, into nanoseconds. A bare number is refused, but for `0`.
pub fn parse_duration(s: &str) -> Option<i64> {
    let (negative, mut rest) = match s.strip_prefix('-') {
        Some(r) => (true, r),
        None => (false, s.strip_prefix('+').unwrap_or(s)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    let total = if negative { -total } else { total };
    (total.abs() < i64::MAX as f64).then_some(total.round() as i64)
}

/// Writes a span as Docker's `HumanDuration`: `About a minute`, `3 weeks`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds as f64 / 3600.0).round() as i64);
    match seconds {
        i64::MIN..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Writes nanoseconds since the epoch as RFC 3339 with all nine decimals, as Docker's logs have them; 0, which
/// stands for never, as Go's zero time.
pub fn rfc3339(ns: i64) -> String {
    if ns == 0 {
        return "0001-01-01T00:00:00Z".into();
    }
    let t = OffsetDateTime::from_unix_timestamp_nanos(ns.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.nanosecond()
    )
}

/// Reads RFC 3339 into nanoseconds since the epoch.
pub fn parse_rfc3339(s: &str) -> Option<i64> {
    i64::try_from(OffsetDateTime::parse(s, &Rfc3339).ok()?.unix_timestamp_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        for (s, want) in [
            ("512", Some(512)),
            ("64k", Some(65536)),
            ("1.5g", Some(1610612736)),
            ("10MiB", Some(10485760)),
            ("10mb", Some(10485760)),
            ("", None),
            ("g", None),
            ("-1", None),
            ("1x", None),
            ("99999999999g", None),
        ] {
            assert_eq!(parse_bytes(s), want, "{s}");
        }
    }

    #[test]
    fn rates() {
        let good =
            [("10mbit", 10_000_000), ("1.5Gbit", 1_500_000_000), ("64kibit", 65_536), ("2mbps", 16_000_000)];
        for (text, rate) in good.into_iter().chain([("8000", 8000), ("1bps", 8), ("10m", 10_000_000)]) {
            assert_eq!(parse_rate(text), Some(rate), "{text}");
        }
        for bad in ["", "0", "7bit", "mbit", "-1mbit", "1e3", "10 mbit", "10mb", "9999999999tbit", "1.2.3k"] {
            assert_eq!(parse_rate(bad), None, "{bad}");
        }
    }

    #[test]
    fn human_sizes() {
        assert_eq!(human_size(4_261_550.0), "4.26MB");
        assert_eq!(human_size(0.0), "0B");
        assert_eq!(human_size(999.0), "999B");
        assert_eq!(human_size(124_000_000.0), "124MB");
        assert_eq!(binary_size(2_087_354_105.0), "1.944GiB");
        assert_eq!(binary_size(1024.0), "1KiB");
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1h2m3.5s"), Some(3_723_500_000_000));
        assert_eq!(parse_duration("100ms"), Some(100_000_000));
        assert_eq!(parse_duration("0"), Some(0));
        for bad in ["", "5", "s", "1d", "1s2"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        assert_eq!(human_duration(0), "Less than a second");
        assert_eq!(human_duration(61), "About a minute");
        assert_eq!(human_duration(3600), "About an hour");
        assert_eq!(human_duration(86400 * 3), "3 days");
    }

    #[test]
    fn times() {
        assert_eq!(rfc3339(1_500_000_000_000_000_001), "2017-07-14T02:40:00.000000001Z");
        assert_eq!(parse_rfc3339("2017-07-14T02:40:00.000000001Z"), Some(1_500_000_000_000_000_001));
        assert_eq!(rfc3339(0), "0001-01-01T00:00:00Z");
    }
}
