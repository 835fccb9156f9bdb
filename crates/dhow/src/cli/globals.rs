//! Flags before the verb. Read by hand: they decide where the state lies, and no verb's flags need to be built for them.

use std::ffi::OsString;
use std::path::PathBuf;

/// Flags before the verb.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Globals {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--run`.
    pub run: Option<PathBuf>,
    /// `-D`.
    pub debug: bool,
    /// `-v`.
    pub version: bool,
    /// `--help`.
    pub help: bool,
}

/// Splits the words into flags for all verbs, and the verb with the rest.
pub fn parse(args: Vec<OsString>) -> Result<(Globals, Vec<String>), String> {
    let mut g = Globals::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let word = text(arg.clone())?;
        if !word.starts_with('-') {
            let rest = std::iter::once(Ok(word)).chain(args.map(text)).collect::<Result<Vec<_>, _>>()?;
            return Ok((g, rest));
        }
        let (flag, inline) = match word.split_once('=') {
            Some((f, v)) => (f.to_owned(), Some(OsString::from(v))),
            None => (word, None),
        };
        let switch = || match inline.as_ref().and_then(|v| v.to_str()) {
            None => Ok(true),
            Some(v) => {
                crate::args::values::boolean(v).map_err(|e| format!("invalid argument for {flag:?}: {e}"))
            }
        };
        match flag.as_str() {
            "-D" | "--debug" => g.debug = switch()?,
            "-v" | "--version" => g.version = switch()?,
            "-h" | "--help" => g.help = switch()?,
            "--root" | "--run" => {
                let value = inline.or_else(|| args.next()).filter(|v| !v.is_empty());
                let value = PathBuf::from(value.ok_or_else(|| format!("flag needs an argument: {flag}"))?);
                *(if flag == "--root" { &mut g.root } else { &mut g.run }) = Some(value);
            }
            _ => return Err(format!("unknown flag: {flag}\n\nRun 'dhow --help' for more information")),
        }
    }
    Ok((g, Vec::new()))
}

fn text(arg: OsString) -> Result<String, String> {
    arg.into_string().map_err(|a| format!("the argument {a:?} is not valid UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(args: &[&str]) -> Result<(Globals, Vec<String>), String> {
        parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn flags_come_before_the_verb() {
        let (g, rest) = p(&["--root", "/a", "--run=/b", "-D", "run", "--rm", "x"]).unwrap();
        assert_eq!((g.root, g.run, g.debug), (Some("/a".into()), Some("/b".into()), true));
        assert_eq!(rest, ["run", "--rm", "x"]);
        assert!(p(&["--root"]).is_err());
        assert!(p(&["--what", "ps"]).is_err());
        assert!(p(&["--debug=maybe", "ps"]).is_err());
    }
}
