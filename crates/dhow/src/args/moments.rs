//! `--since` and `--until`: RFC 3339, its shorter forms, seconds since the epoch, or a span before now.

use types::units;

/// Nanoseconds since the epoch, `now` being given.
pub fn parse(s: &str, now_ns: i64) -> Result<i64, String> {
    let wrong =
        || format!("invalid time {s:?}: give RFC 3339, seconds since the epoch, or a span such as 10m");
    if let Some(span) = units::parse_duration(s) {
        return Ok(now_ns.saturating_sub(span));
    }
    if let Some(ns) = units::parse_rfc3339(s) {
        return Ok(ns);
    }
    if let Some(ns) = seconds(s) {
        return Ok(ns);
    }
    // Docker's shorter forms; without a zone we mean UTC.
    let padded = match s.len() {
        10 => format!("{s}T00:00:00Z"),
        11 if s.ends_with('Z') => format!("{}T00:00:00Z", s.trim_end_matches('Z')),
        13 => format!("{s}:00:00Z"),
        16 => format!("{s}:00Z"),
        _ => format!("{s}Z"),
    };
    units::parse_rfc3339(&padded).ok_or_else(wrong)
}

fn seconds(s: &str) -> Option<i64> {
    let (whole, fraction) = s.split_once('.').unwrap_or((s, ""));
    let digits = |p: &str| p.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanos: i64 = if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").parse().ok()? };
    whole.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let now = 2_000_000_000_000_000_000;
        for (s, want) in [
            ("10s", now - 10_000_000_000),
            ("1500000000", 1_500_000_000_000_000_000),
            ("1500000000.5", 1_500_000_000_500_000_000),
            ("2017-07-14T02:40:00Z", 1_500_000_000_000_000_000),
            ("2017-07-14T02:40:00", 1_500_000_000_000_000_000),
            ("2017-07-14T02:40", 1_500_000_000_000_000_000),
            ("2017-07-14", 1_499_990_400_000_000_000),
        ] {
            assert_eq!(parse(s, now), Ok(want), "{s}");
        }
        for bad in ["", "yesterday", "2017-99-01", "1.2.3"] {
            assert!(parse(bad, now).is_err(), "{bad}");
        }
    }
}
