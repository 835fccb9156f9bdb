//! `NAME=value` lists and the files that hold them: environment, labels, options, filters.

use std::collections::{BTreeMap, HashMap};

/// `NAME=value`, or `NAME` alone, which means the value in our own environment (and nothing if it has none).
pub fn check_env(s: &str) -> Result<(), String> {
    if s.is_empty() || s.starts_with('=') {
        return Err(format!("invalid environment variable: {s:?}"));
    }
    Ok(())
}

/// Splits the text of an `--env-file` by Docker's rules: `#` begins a comment line, blank lines and leading white
/// space are skipped, nothing is unquoted or expanded, a name holds no white space.
pub fn env_file(text: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = if number == 0 { line.trim_start_matches('\u{feff}') } else { line };
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or(line);
        if name.is_empty() {
            return Err(format!("line {}: no variable name on line '{line}'", number + 1));
        }
        if name.contains(char::is_whitespace) {
            return Err(format!("line {}: variable '{name}' contains whitespaces", number + 1));
        }
        out.push(line.to_owned());
    }
    Ok(out)
}

/// `key=value`, or `key` for an empty value, later ones first.
pub fn label_map<'a>(
    labels: impl IntoIterator<Item = &'a String>,
) -> Result<HashMap<String, String>, String> {
    labels
        .into_iter()
        .map(|l| {
            let (k, v) = l.split_once('=').unwrap_or((l, ""));
            if k.is_empty() {
                Err(format!("invalid label format: {l:?}"))
            } else {
                Ok((k.to_owned(), v.to_owned()))
            }
        })
        .collect()
}

/// `key=value`, where the value must be there.
pub fn option_map(flag: &str, options: &[String]) -> Result<HashMap<String, String>, String> {
    options
        .iter()
        .map(|o| match o.split_once('=') {
            Some((k, v)) if !k.is_empty() => Ok((k.to_owned(), v.to_owned())),
            _ => Err(format!("invalid argument {o:?} for \"--{flag}\" flag: must be formatted as key=value")),
        })
        .collect()
}

/// `--filter`: by key, all values given for it.
pub fn filters(list: &[String]) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for f in list {
        match f.split_once('=') {
            Some((k, v)) if !k.trim().is_empty() => {
                out.entry(k.trim().to_ascii_lowercase()).or_default().push(v.trim().to_owned());
            }
            _ => return Err(format!("invalid filter '{f}': use the form 'key=value'")),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn env_files() {
        let text = "\u{feff}# comment\n\nA=1\n  B=two words\nC\nD=a#b\nE=\"q\"\n";
        assert_eq!(env_file(text).unwrap(), ["A=1", "B=two words", "C", "D=a#b", "E=\"q\""]);
        assert!(env_file("=x").is_err());
        assert!(env_file("a b=x").is_err());
    }

    #[test]
    fn labels_and_options() {
        let l = label_map(&["a=b=c".to_owned(), "d".to_owned()]).unwrap();
        assert_eq!((l["a"].as_str(), l["d"].as_str()), ("b=c", ""));
        assert!(label_map(&["=x".to_owned()]).is_err());
        assert!(option_map("log-opt", &["x".to_owned()]).is_err());
        let f = filters(&["label=a=b".to_owned(), "label=c".to_owned()]).unwrap();
        assert_eq!(f["label"], ["a=b", "c"]);
        assert!(filters(&["x".to_owned()]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(s in "\\PC{0,64}") {
            let _ = env_file(&s);
        }
    }
}
