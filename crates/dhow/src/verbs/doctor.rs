//! `doctor`: what this host can do for either hull.

use super::common::value;
use crate::cli::context::Context;
use crate::cli::failure::Outcome;
use crate::cli::verb::Run as Verb;
use crate::format;
use engine::doctor::{Check, Report, Verdict};
use std::fmt::Write;

/// Flags of `doctor`.
#[derive(clap::Args, Debug)]
pub struct Doctor {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
}

impl Verb for Doctor {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let report = engine::doctor::examine(cx.options());
        match &self.format {
            Some(f) => cx.out.line(&format::one(f, &value(&report)?)?)?,
            None => cx.out.raw(text(&report).as_bytes())?,
        }
        Ok(i32::from(!report.container.ready))
    }
}

/// One line for each check, then one for each hull.
fn text(report: &Report) -> String {
    let width = report.checks.iter().map(|c| c.name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for Check { level, name, finding, mend, .. } in &report.checks {
        let _ = write!(out, "{:<8} {name:<width$}  {finding}", level.as_str());
        if !mend.is_empty() {
            let _ = write!(out, "; mend: {mend}");
        }
        out.push('\n');
    }
    out.push('\n');
    for (hull, Verdict { ready, text }) in [("container", &report.container), ("microVM", &report.vm)] {
        let word = if *ready { "ready" } else { "not ready" };
        let _ = writeln!(out, "{hull}: {word}, {text}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::doctor::{For, Level};

    fn report() -> Report {
        let check = |level, name, finding: &str, mend: &str| Check {
            level,
            name,
            hull: For::Vm,
            finding: finding.into(),
            mend: mend.into(),
        };
        Report {
            checks: vec![
                check(Level::Ok, "root", "runs as root", ""),
                check(Level::Missing, "guest kernel", "this store has none", "dhow kernel install"),
            ],
            container: Verdict { ready: true, text: "behind namespaces".into() },
            vm: Verdict { ready: false, text: "lacks guest kernel".into() },
        }
    }

    #[test]
    fn one_line_each() {
        let expected = "ok       root          runs as root\n\
            missing  guest kernel  this store has none; mend: dhow kernel install\n\n\
            container: ready, behind namespaces\nmicroVM: not ready, lacks guest kernel\n";
        assert_eq!(text(&report()), expected);
    }

    #[test]
    fn as_json() {
        let v = value(&report()).unwrap();
        assert_eq!(v["MicroVM"]["Ready"], false);
        assert_eq!(v["Checks"][1]["Level"], "missing");
        assert_eq!(v["Checks"][1]["For"], "microvm");
        assert_eq!(v["Checks"][1]["Mend"], "dhow kernel install");
    }
}
