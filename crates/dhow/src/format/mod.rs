//! `--format`: Go templates over JSON values, lists and tables, JSON.

mod eval;
mod functions;
mod lex;
mod parse;
pub mod pretty;
mod printf;
pub mod table;

pub use eval::Mode;
use serde_json::Value;

/// A template that was read.
#[derive(Clone, Debug)]
pub struct Template(Vec<parse::Node>);

/// Why a template cannot be read or carried out.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("template parsing error: template: :{line}: {what}")]
pub struct TemplateError {
    line: usize,
    what: String,
}

impl TemplateError {
    fn parse(line: usize, what: impl Into<String>) -> Self {
        Self { line, what: what.into() }
    }

    fn execute(line: usize, what: impl std::fmt::Display) -> Self {
        Self { line, what: format!("executing \"\": {what}") }
    }
}

impl Template {
    /// Reads a template.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        parse::parse(source).map(Self)
    }

    /// Carries it out.
    pub fn execute(&self, data: &Value, mode: Mode<'_>) -> Result<String, TemplateError> {
        eval::execute(&self.0, data, mode)
    }

    /// Carries it out over a plain value.
    pub fn over(&self, data: &Value) -> Result<String, TemplateError> {
        self.execute(data, Mode { method: None, heading: false })
    }
}

/// One value by `--format`, where `json` stands for itself: `inspect`, `info`, `version`.
pub fn one(format: &str, data: &Value) -> Result<String, TemplateError> {
    let source = if format.trim() == "json" { "{{json .}}" } else { format };
    Template::parse(source)?.over(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn go(template: &str) -> Result<String, TemplateError> {
        let data = json!({
            "Name": "/web", "N": 3, "Yes": true, "None": null, "F": 1.5,
            "Env": ["A=1", "B=2"], "Labels": {"a.b": "c", "d": "e"},
            "State": {"Pid": 42, "Running": true},
            "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/tcp": null}
        });
        Template::parse(template)?.over(&data)
    }

    #[test]
    fn what_go_prints() {
        for (template, want) in [
            ("plain", "plain"),
            ("{{.Name}}", "/web"),
            ("{{ .State.Pid }}", "42"),
            ("{{.Env}}", "[A=1 B=2]"),
            ("{{.Labels}}", "map[a.b:c d:e]"),
            ("{{.None}}", "<no value>"),
            ("{{json .Env}}", "[\"A=1\",\"B=2\"]"),
            ("{{index .Labels \"a.b\"}}", "c"),
            ("{{index .Labels \"none\"}}", "<no value>"),
            ("{{index .Env 1}}", "B=2"),
            ("{{(index (index .Ports \"80/tcp\") 0).HostPort}}", "8080"),
            ("{{range .Env}}{{.}};{{end}}", "A=1;B=2;"),
            ("{{range $i, $e := .Env}}{{$i}}={{$e}} {{end}}", "0=A=1 1=B=2 "),
            ("{{range $k, $v := .Labels}}{{$k}}:{{$v}},{{end}}", "a.b:c,d:e,"),
            (
                "{{range $p, $c := .Ports}}{{if $c}}{{$p}}->{{(index $c 0).HostPort}}{{end}}{{end}}",
                "80/tcp->8080",
            ),
            ("{{range .None}}x{{else}}empty{{end}}", "empty"),
            ("{{if .Yes}}y{{else}}n{{end}}", "y"),
            ("{{if not .Yes}}y{{else if eq .N 3}}three{{else}}n{{end}}", "three"),
            ("{{if and .Yes (gt .N 2)}}big{{end}}", "big"),
            ("{{with .State}}{{.Pid}}{{end}}", "42"),
            ("{{with .None}}x{{else}}-{{end}}", "-"),
            ("{{$n := .N}}{{range .Env}}{{$n}}{{$.N}}{{end}}", "3333"),
            ("{{.Name | upper | printf \"%s!\"}}", "/WEB!"),
            ("{{len .Env}} {{len .Name}}", "2 4"),
            ("{{join .Env \", \"}}", "A=1, B=2"),
            ("{{split .Name \"/\"}}", "[ web]"),
            ("{{title \"two words\"}}", "Two Words"),
            ("{{truncate .Name 2}}", "/w"),
            ("{{slice .Name 1}}", "web"),
            ("{{pad .Name 1 2}}|", " /web  |"),
            ("{{println .N}}", "3\n"),
            ("{{print 1 2 \"a\" \"b\"}}", "1 2ab"),
            (
                "{{printf \"%-5s|%5d|%05.1f|%q|%v%%\" \"a\" 7 1.25 \"q\" .Yes}}",
                "a    |    7|001.2|\"q\"|true%",
            ),
            ("{{printf \"%d\" \"x\"}}{{printf \"%s\"}}", "%!d(x)%!s(MISSING)"),
            ("a {{- /* c */ -}} b", "ab"),
            ("a {{- .N -}} b", "a3b"),
            ("{{eq .Name \"x\" \"/web\"}} {{ne .N 3}} {{le 1.5 .F}}", "true false true"),
            ("{{`raw \"x\"`}}{{\"\\t\\u0041\"}}{{'a'}}", "raw \"x\"\tA97"),
            ("{{range $i, $e := .Env}}{{if $i}}{{break}}{{end}}{{$e}}{{end}}", "A=1"),
            ("{{range .Env}}{{continue}}{{.}}{{end}}", ""),
            ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
            ("{{html \"<a>\"}} {{urlquery \"a b&c\"}}", "&lt;a&gt; a+b%26c"),
        ] {
            assert_eq!(go(template).as_deref(), Ok(want), "{template}");
        }
    }

    #[test]
    fn what_go_refuses() {
        for (template, part) in [
            ("{{", "unclosed action"),
            ("{{.Name", "unclosed action"),
            ("{{end}}", "unexpected {{end}}"),
            ("{{if .Yes}}", "unexpected EOF"),
            ("{{range .Env}}", "unexpected EOF"),
            ("{{nope .Name}}", "function \"nope\" not defined"),
            ("{{.Missing}}", "map has no entry for key \"Missing\""),
            ("{{.Name.X}}", "can't evaluate field X"),
            ("{{.None.X}}", "nil pointer"),
            ("{{index .Env 9}}", "out of range"),
            ("{{$nope}}", "undefined variable"),
            ("{{break}}", "outside"),
            ("{{lt .Name 1}}", "invalid type"),
            ("{{(.Name}}", "unclosed left paren"),
            ("{{.Name)}}", "unexpected right paren"),
            ("{{.Name |}}", "missing value"),
            ("{{}}", "missing value"),
            ("{{\"x}}", "unterminated"),
            ("{{.Name 1}}", "has arguments"),
            ("\n\n{{.Missing}}", ":3:"),
        ] {
            let e = go(template).unwrap_err().to_string();
            assert!(e.contains(part), "{template}: {e}");
        }
        assert!(go(&"{{if .Yes}}".repeat(1000)).is_err());
        assert!(go(&format!("{{{{{}", "(".repeat(1000))).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(s in "(\\{\\{|\\}\\}|[.$|()\"`a-zA-Z0-9 ,:=-]|if |end|range |else|index |slice |é|\\n){0,24}") {
            let _ = go(&s);
        }

        #[test]
        fn actions_never_panic(s in "[.$|()\"`a-zN0-9 ,:=é'\\\\-]{0,24}") {
            let _ = go(&format!("{{{{{s}}}}}"));
            let _ = go(&format!("{{{{printf {s} .}}}}"));
            let _ = go(&format!("{{{{slice .Name {s}}}}}"));
        }

        #[test]
        fn text_without_braces_is_kept(s in "[^{}]{0,40}") {
            prop_assert_eq!(go(&s).unwrap(), s);
        }
    }
}
