//! What several verbs say the same way.

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::format::{self, pretty};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use types::units;

/// No flags at all.
#[derive(clap::Args, Debug)]
pub struct NoFlags {}

/// `--filter`, read.
pub fn filters(list: &[String]) -> Result<engine::Filters, Failure> {
    Ok(crate::args::lists::filters(list)?)
}

/// Twelve digits of an id, without `sha256:`; everything with `--no-trunc`.
pub fn short_id(id: &str, whole: bool) -> String {
    if whole {
        return id.to_owned();
    }
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect()
}

/// At most `n` characters, the last of which is then `…`.
pub fn ellipsis(s: &str, n: usize) -> String {
    if s.chars().count() <= n {
        return s.to_owned();
    }
    s.chars().take(n.saturating_sub(1)).chain(['…']).collect()
}

/// Seconds since the epoch as `2 hours ago`.
pub fn ago(seconds: i64) -> String {
    if seconds <= 0 {
        return "N/A".into();
    }
    format!("{} ago", units::human_duration(now_seconds() - seconds))
}

/// Seconds since the epoch as Go prints a time: `2017-07-14 02:40:00 +0000 UTC`.
pub fn timestamp(seconds: i64) -> String {
    let t = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02} +0000 UTC",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    )
}

/// Seconds since the epoch.
pub fn now_seconds() -> i64 {
    sys::host::now_ns() / 1_000_000_000
}

/// A time flag: nanoseconds since the epoch.
pub fn moment(s: Option<&str>) -> Result<Option<i64>, Failure> {
    Ok(s.filter(|s| !s.is_empty())
        .map(|s| crate::args::moments::parse(s, sys::host::now_ns()))
        .transpose()?)
}

/// As JSON.
pub fn value<T: Serialize>(v: &T) -> Result<Value, Failure> {
    serde_json::to_value(v).map_err(|e| e.to_string().into())
}

/// `inspect`: a JSON list of what was found, or a line of the template for each; what was not found is said after it.
pub fn inspect_all(
    cx: &Context,
    names: &[String],
    template: Option<&str>,
    mut find: impl FnMut(&str) -> Result<Value, Failure>,
) -> Result<i32, Failure> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        match find(name) {
            Ok(v) => found.push(v),
            Err(Failure::Message { text, .. }) => missing.push(text),
            Err(other) => return Err(other),
        }
    }
    match template {
        None => cx.out.line(&pretty::pretty(&Value::Array(found)))?,
        Some(t) => {
            for v in &found {
                cx.out.line(&format::one(t, v)?)?;
            }
        }
    }
    for text in &missing {
        cx.out.error(text);
    }
    Ok(i32::from(!missing.is_empty()))
}

/// Lines of a prune.
pub fn print_pruned(cx: &Context, heading: &str, lines: &[String]) -> Result<(), Failure> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut text = format!("{heading}\n");
    for l in lines {
        text += l;
        text.push('\n');
    }
    text.push('\n');
    Ok(cx.out.raw(text.as_bytes())?)
}

/// The last line of a prune.
pub fn print_reclaimed(cx: &Context, bytes: u64) -> Result<(), Failure> {
    Ok(cx.out.line(&format!("Total reclaimed space: {}", units::human_size(bytes as f64)))?)
}

/// Control characters escaped: what a container names must neither steer the terminal nor forge lines.
pub(crate) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(ellipsis("abcdef", 4), "abc…");
        assert_eq!(ellipsis("abcd", 4), "abcd");
        assert_eq!(short_id(&format!("sha256:{}", "a".repeat(64)), false), "aaaaaaaaaaaa");
        assert_eq!(timestamp(1_500_000_000), "2017-07-14 02:40:00 +0000 UTC");
    }
}
