//! `images`: which there are, and the filters that `images` and `image prune` share.

use crate::db::{self, ImageRow};
use crate::{ImageError, ImageStore};
use std::collections::HashMap;
use types::docker::ImageSummary;
use types::{ImageConfig, ImageRef};

/// Docker's filters; several of one kind are alternatives unless Docker says otherwise.
#[derive(Clone, Debug, Default)]
pub struct ListFilters {
    /// Only images without a name, or only those with one.
    pub dangling: Option<bool>,
    /// `key` or `key=value`; all must match.
    pub label: Vec<String>,
    /// `key` or `key=value` that must not match.
    pub label_not: Vec<String>,
    /// Made before this image.
    pub before: Option<String>,
    /// Made since this image.
    pub since: Option<String>,
    /// Shell patterns of names, with or without a tag.
    pub reference: Vec<String>,
    /// Made before this time, in nanoseconds since the epoch.
    pub until_ns: Option<i64>,
}

impl ImageStore {
    /// The images that pass the filters, newest first.
    pub fn list(&self, filters: &ListFilters) -> Result<Vec<ImageSummary>, ImageError> {
        let mut out = Vec::new();
        for row in db::all(self.db.conn())? {
            let mut names = db::names(self.db.conn(), &row.id)?;
            if !self.admits(&row, &names, filters)? {
                continue;
            }
            if !filters.reference.is_empty() {
                names.retain(|n| filters.reference.iter().any(|p| matches(p, n)));
            }
            out.push(ImageSummary {
                id: row.id.to_string(),
                parent_id: row.parent.as_ref().map_or(String::new(), |p| format!("sha256:{p}")),
                repo_tags: names.iter().map(ImageRef::familiar).collect(),
                repo_digests: self.repo_digests(&row.id)?.iter().map(ImageRef::familiar).collect(),
                created: row.created_ns.div_euclid(1_000_000_000),
                size: row.size as i64,
                shared_size: -1,
                labels: labels(&row).into_iter().collect(),
                containers: -1,
                manifests: None,
                descriptor: None,
            });
        }
        Ok(out)
    }

    pub(crate) fn admits(
        &self,
        row: &ImageRow,
        names: &[ImageRef],
        f: &ListFilters,
    ) -> Result<bool, ImageError> {
        let label = |labels: &HashMap<String, String>, wanted: &str| match wanted.split_once('=') {
            Some((k, v)) => labels.get(k).is_some_and(|l| l == v),
            None => labels.contains_key(wanted),
        };
        if !f.label.is_empty() || !f.label_not.is_empty() {
            let labels = labels(row);
            if !f.label.iter().all(|l| label(&labels, l)) || f.label_not.iter().any(|l| label(&labels, l)) {
                return Ok(false);
            }
        }
        if let Some(other) = &f.before
            && row.created_ns >= self.find(other)?.created_ns
        {
            return Ok(false);
        }
        if let Some(other) = &f.since
            && row.created_ns <= self.find(other)?.created_ns
        {
            return Ok(false);
        }
        Ok(f.dangling.is_none_or(|d| d == names.is_empty())
            && f.until_ns.is_none_or(|t| row.created_ns < t)
            && (f.reference.is_empty() || f.reference.iter().any(|p| names.iter().any(|n| matches(p, n)))))
    }
}

fn labels(row: &ImageRow) -> HashMap<String, String> {
    let config: Option<ImageConfig> = serde_json::from_slice(&row.config).ok();
    config.map(|c| c.config.labels.into_iter().collect()).unwrap_or_default()
}

/// Docker's `reference` filter: Go's `path.Match` on the familiar name, with and without the tag.
fn matches(pattern: &str, name: &ImageRef) -> bool {
    glob(pattern.as_bytes(), name.familiar().as_bytes())
        || glob(pattern.as_bytes(), name.familiar_name().as_bytes())
}

/// `*`, `?`, `[a-z]` and `\`, none of which matches a slash but a literal one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on when a star was too short.
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() || p < pattern.len() {
        let step = match (pattern.get(p), text.get(t)) {
            (Some(b'*'), _) => {
                retry = Some((p, t + 1));
                p += 1;
                continue;
            }
            (Some(b'?'), Some(c)) if *c != b'/' => Some(1),
            (Some(b'['), Some(c)) if *c != b'/' => class(&pattern[p..], *c),
            (Some(b'\\'), Some(c)) if pattern.get(p + 1) == Some(c) => Some(2),
            (Some(x), Some(c)) if x == c && !matches!(x, b'[' | b'?' | b'\\') => Some(1),
            _ => None,
        };
        match (step, retry) {
            (Some(n), _) => {
                p += n;
                t += 1;
            }
            (None, Some((rp, rt))) if rt <= text.len() && text[rt - 1] != b'/' => {
                (p, t) = (rp, rt);
            }
            _ => return false,
        }
    }
    true
}

/// Length of the class at the start of `pattern` if `c` is in it.
fn class(pattern: &[u8], c: u8) -> Option<usize> {
    let end = pattern.iter().skip(2).position(|b| *b == b']')? + 2;
    let mut inside = &pattern[1..end];
    let negated = inside.first() == Some(&b'^');
    if negated {
        inside = &inside[1..];
    }
    let mut found = false;
    while let Some((first, rest)) = inside.split_first() {
        match rest {
            [b'-', last, after @ ..] => {
                found |= (*first..=*last).contains(&c);
                inside = after;
            }
            rest => {
                found |= *first == c;
                inside = rest;
            }
        }
    }
    (found != negated).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (p, t, want) in [
            ("deb*", "debian", true),
            ("deb*", "debian/x", false),
            ("*:latest", "busybox:latest", true),
            ("b[a-z]?ybox", "busybox", true),
            ("b[^u]sybox", "busybox", false),
            ("*/*", "a/b", true),
            ("*", "a/b", false),
            ("", "", true),
            ("a", "", false),
            ("[", "[", false),
            ("a*b*c", "axxbxxc", true),
        ] {
            assert_eq!(glob(p.as_bytes(), t.as_bytes()), want, "{p} {t}");
        }
    }
}
