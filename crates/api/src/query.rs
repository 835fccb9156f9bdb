//! The parameters behind a path's question mark, read as Docker's server reads them.

use crate::fault::Fault;
use engine::Filters;
use serde_json::Value;
use std::collections::BTreeMap;

/// The parameters of a request.
#[derive(Clone, Debug, Default)]
pub struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    /// Reads `a=1&b=2`.
    pub fn parse(text: &str) -> Self {
        let mut out = BTreeMap::<String, Vec<String>>::new();
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            out.entry(key.into_owned()).or_default().push(value.into_owned());
        }
        Self(out)
    }

    /// The first value, if it is not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.first().map(String::as_str).filter(|v| !v.is_empty())
    }

    /// All values.
    pub fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// A truth, as Docker's `httputils.BoolValue`: everything but these words.
    pub fn flag(&self, key: &str) -> bool {
        let word = self.get(key).unwrap_or("").trim().to_ascii_lowercase();
        !matches!(word.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// The same where it is true unless denied.
    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        if self.get(key).is_none() { default } else { self.flag(key) }
    }

    /// A whole number.
    pub fn number(&self, key: &str) -> Result<Option<i64>, Fault> {
        let number =
            |v: &str| v.parse().map_err(|_| Fault::invalid(format!("invalid {key} {v:?}: give a number")));
        self.get(key).map(number).transpose()
    }

    /// A height or width of a terminal.
    pub fn size(&self, key: &str) -> Result<u16, Fault> {
        let given = self.get(key).unwrap_or_default();
        given
            .parse()
            .map_err(|_| Fault::invalid(format!("invalid {key} {given:?}: give a number up to 65535")))
    }

    /// A moment, in nanoseconds since the epoch: seconds with a fraction, RFC 3339, or a span before now. Docker's clients
    /// send 0 for "none".
    pub fn moment(&self, key: &str) -> Result<Option<i64>, Fault> {
        match self.get(key) {
            None | Some("0" | "0.000000000") => Ok(None),
            Some(text) => moment(text).map(Some).ok_or_else(|| {
                Fault::invalid(format!(
                    "invalid {key} {text:?}: give seconds since 1970, RFC 3339, or a span such as 10m"
                ))
            }),
        }
    }

    /// `filters`, in either of the forms that Docker takes: `{"key": {"value": true}}` and `{"key": ["value"]}`.
    pub fn filters(&self) -> Result<Filters, Fault> {
        let Some(text) = self.get("filters") else { return Ok(Filters::new()) };
        let wrong = || Fault::invalid("invalid filter: give a JSON object of names and lists of values");
        let Ok(Value::Object(map)) = serde_json::from_str(text) else { return Err(wrong()) };
        let mut out = Filters::new();
        for (key, values) in map {
            let values = match values {
                Value::Array(list) => {
                    list.into_iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
                }
                Value::Object(set) => {
                    Some(set.into_iter().filter(|(_, on)| on != false).map(|(v, _)| v).collect())
                }
                _ => None,
            };
            out.insert(key, values.ok_or_else(wrong)?);
        }
        Ok(out)
    }
}

fn moment(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if let Ok(seconds) = seconds.parse::<i64>()
        && fraction.len() <= 9
        && fraction.bytes().all(|b| b.is_ascii_digit())
    {
        let nanos = format!("{fraction:0<9}").parse::<i64>().ok()?;
        return seconds.checked_mul(1_000_000_000)?.checked_add(nanos);
    }
    types::units::parse_rfc3339(text)
        .or_else(|| types::units::parse_duration(text).map(|span| sys::host::now_ns().saturating_sub(span)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_dockers() {
        let q = Query::parse(
            "all=1&size=no&filters=%7B%22a%22%3A%5B%22x%22%5D%2C%22b%22%3A%7B%22y%22%3Atrue%7D%7D&since=5.5&h=70000",
        );
        assert!(q.flag("all") && !q.flag("size") && !q.flag("none") && q.flag_or("none", true));
        assert_eq!(
            q.filters().unwrap(),
            [("a".to_owned(), vec!["x".to_owned()]), ("b".to_owned(), vec!["y".to_owned()])].into()
        );
        assert_eq!(q.moment("since").unwrap(), Some(5_500_000_000));
        assert_eq!(q.moment("until").unwrap(), None);
        assert!(q.size("h").is_err());
        for bad in ["[]", "{", "{\"a\":1}", "{\"a\":[1]}"] {
            let q = Query(BTreeMap::from([("filters".to_owned(), vec![bad.to_owned()])]));
            assert!(q.filters().is_err(), "{bad}");
        }
    }
}
