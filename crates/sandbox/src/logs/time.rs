//! Go's `time.RFC3339Nano` in UTC, which Docker's logs carry: no trailing zeros in the fraction.

use ::time::format_description::well_known::Rfc3339;
use ::time::{Date, Month, OffsetDateTime};

/// Nanoseconds since the epoch as `2006-01-02T15:04:05.999999999Z`.
pub fn format_time(ns: i64) -> String {
    let (seconds, fraction) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let Ok(t) = OffsetDateTime::from_unix_timestamp(seconds) else { return String::new() };
    let (year, month, day) = t.to_calendar_date();
    let (hour, minute, second) = t.to_hms();
    let mut out = format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}", u8::from(month));
    if fraction != 0 {
        out.push_str(format!(".{fraction:09}").trim_end_matches('0'));
    }
    out.push('Z');
    out
}

/// Reads what [`format_time`] wrote, and any other RFC 3339 time.
pub fn parse_time(text: &str) -> Option<i64> {
    parse_utc(text.as_bytes())
        .or_else(|| OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos().try_into().ok())
}

/// The form that logs have, without the cost of a general parser.
fn parse_utc(text: &[u8]) -> Option<i64> {
    let (fixed, rest) = text.split_first_chunk::<19>()?;
    let number = |range: std::ops::Range<usize>| {
        fixed.get(range)?.iter().try_fold(0u32, |n, b| Some(n * 10 + char::from(*b).to_digit(10)?))
    };
    let date = Date::from_calendar_date(
        number(0..4)? as i32,
        Month::try_from(u8::try_from(number(5..7)?).ok()?).ok()?,
        u8::try_from(number(8..10)?).ok()?,
    );
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let at = date.ok()?.with_hms(hour as u8, minute as u8, second as u8).ok()?.assume_utc();
    let fraction = match rest.strip_suffix(b"Z")? {
        [] => 0,
        [b'.', digits @ ..] if (1..=9).contains(&digits.len()) => {
            let n = digits
                .iter()
                .try_fold(0i64, |n, b| Some(n * 10 + i64::from(char::from(*b).to_digit(10)?)))?;
            n * 10i64.pow(9 - digits.len() as u32)
        }
        _ => return None,
    };
    at.unix_timestamp().checked_mul(1_000_000_000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn like_go() {
        assert_eq!(format_time(0), "1970-01-01T00:00:00Z");
        assert_eq!(format_time(1_700_000_000_120_000_000), "2023-11-14T22:13:20.12Z");
        assert_eq!(parse_time("2023-11-14T23:13:20.12+01:00"), Some(1_700_000_000_120_000_000));
        assert_eq!(parse_time("yesterday"), None);
    }

    proptest! {
        #[test]
        fn there_and_back(ns in 0i64..4_000_000_000_000_000_000) {
            prop_assert_eq!(parse_time(&format_time(ns)), Some(ns));
        }

        #[test]
        fn garbage_never_panics(s in ".{0,40}") {
            let _ = parse_time(&s);
        }
    }
}
