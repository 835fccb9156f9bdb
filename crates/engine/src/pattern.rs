//! Filters by name and by id: regular expressions, as in Docker (moby's `Args.Match`), of clients that are hostile.

use crate::request::Filters;
use regex::bytes::{Regex, RegexBuilder};
use std::collections::HashMap;

/// What all expressions of a request may take together, in bytes.
const ROOM: usize = 1 << 20;
/// No expression has more than this part of it.
const PARTS: usize = 16;

/// The expressions of a request, made once.
pub(crate) struct Patterns(HashMap<String, Regex>);

impl Patterns {
    /// Those of the keys `id` and `name`.
    pub(crate) fn of(filters: &Filters) -> Self {
        let all = || ["id", "name"].iter().filter_map(|key| filters.get(*key)).flatten();
        let most = ROOM / all().count().max(PARTS);
        // Names and ids are ASCII.
        let made = all().filter_map(|text| {
            let made = RegexBuilder::new(text).unicode(false).size_limit(most).dfa_size_limit(most).build();
            Some((text.clone(), made.ok()?))
        });
        Self(made.collect())
    }

    /// Whether this is the text itself or an expression that finds something in it.
    pub(crate) fn finds(&self, pattern: &str, text: &str) -> bool {
        pattern == text || self.0.get(pattern).is_some_and(|made| made.is_match(text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_gos() {
        for (pattern, text, want) in [
            ("web", "a-web-1", true),
            ("web-.*", "web-1", true),
            ("^web-[0-9]+$", "web-12", true),
            ("^web-[0-9]+$", "web-12a", false),
            ("web-1|web-2", "web-2", true),
            ("^/web$", "/web", true),
            ("", "web", true),
            // What is no expression is a name.
            ("we(b", "web", false),
            ("we(b", "we(b", true),
            // What would take too much room finds nothing.
            ("(((a{1000}){1000}){1000}){1000}", "a", false),
        ] {
            let filters = Filters::from([("name".to_owned(), vec![pattern.to_owned()])]);
            assert_eq!(Patterns::of(&filters).finds(pattern, text), want, "{pattern} in {text}");
        }
    }
}
