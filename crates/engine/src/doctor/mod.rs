//! What this host can do for either hull, what it lacks, and what mends that.
//!
//! Every check reads, and none changes anything: no store is opened, no module is loaded, no filesystem is mounted.
//! What cannot be told that way is a note that says so.

mod host;
mod probe;
mod vm;

use crate::{DEFAULT_ROOT, DEFAULT_RUN, OpenOptions, Paths};
use probe::Probe;
use serde::Serialize;
use std::path::PathBuf;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; the hull works.
    Note,
    /// The hull does not work without it.
    Missing,
}

impl Level {
    /// The word that a line begins with.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Missing => "missing",
        }
    }
}

/// Which hull a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum For {
    /// Both.
    Both,
    /// Containers.
    Container,
    /// microVMs.
    #[serde(rename = "microvm")]
    Vm,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Check {
    /// How it came out.
    pub level: Level,
    /// What was looked at.
    pub name: &'static str,
    /// Whom it concerns.
    #[serde(rename = "For")]
    pub hull: For,
    /// What was found and what follows.
    pub finding: String,
    /// The command that mends it; empty where there is nothing to mend, or no command that does.
    pub mend: String,
}

impl Check {
    fn new(level: Level, hull: For, name: &'static str, finding: impl Into<String>) -> Self {
        Self { level, name, hull, finding: finding.into(), mend: String::new() }
    }

    fn ok(hull: For, name: &'static str, finding: impl Into<String>) -> Self {
        Self::new(Level::Ok, hull, name, finding)
    }

    fn note(hull: For, name: &'static str, finding: impl Into<String>) -> Self {
        Self::new(Level::Note, hull, name, finding)
    }

    fn missing(hull: For, name: &'static str, finding: impl Into<String>) -> Self {
        Self::new(Level::Missing, hull, name, finding)
    }

    fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend = command.into();
        self
    }
}

/// Whether a hull works here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Verdict {
    /// It does.
    pub ready: bool,
    /// In a few words: how, or why not.
    pub text: String,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// Each check.
    pub checks: Vec<Check>,
    /// Containers.
    pub container: Verdict,
    /// microVMs.
    #[serde(rename = "MicroVM")]
    pub vm: Verdict,
}

/// Looks at this host and at the store that `options` name, which need not be there.
pub fn examine(options: &OpenOptions) -> Report {
    let absolute = |p: &PathBuf| std::path::absolute(p).unwrap_or_else(|_| p.clone());
    let root = options.root.as_ref().map_or_else(|| DEFAULT_ROOT.into(), absolute);
    let run = match (&options.run, &options.root) {
        (Some(run), _) => absolute(run),
        (None, Some(_)) => root.join("run"),
        (None, None) => DEFAULT_RUN.into(),
    };
    let paths = Paths { root, run };
    let probe = Probe::of_this_host();
    let mut checks = host::checks(&probe, &paths);
    let (of_vms, carrier) = vm::checks(&probe, &paths, options.guest.program);
    checks.extend(of_vms);
    let container = verdict(&checks, For::Container, "behind namespaces and cgroups of this host's kernel");
    let vm = verdict(&checks, For::Vm, &carrier);
    Report { checks, container, vm }
}

fn verdict(checks: &[Check], hull: For, how: &str) -> Verdict {
    let concerned = |c: &&Check| c.hull == For::Both || c.hull == hull;
    let lacks: Vec<&str> =
        checks.iter().filter(concerned).filter(|c| c.level == Level::Missing).map(|c| c.name).collect();
    match lacks.is_empty() {
        true => Verdict { ready: true, text: how.to_owned() },
        false => Verdict { ready: false, text: format!("lacks {}", lacks.join(", ")) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_heeds_what_concerns_its_hull() {
        let checks = [
            Check::ok(For::Both, "kernel", ""),
            Check::note(For::Container, "AppArmor", ""),
            Check::missing(For::Vm, "hypervisor", ""),
            Check::missing(For::Vm, "guest kernel", ""),
        ];
        assert_eq!(verdict(&checks, For::Container, "so"), Verdict { ready: true, text: "so".into() });
        assert_eq!(
            verdict(&checks, For::Vm, "so"),
            Verdict { ready: false, text: "lacks hypervisor, guest kernel".into() }
        );
        let both = [Check::missing(For::Both, "root", "")];
        assert!(!verdict(&both, For::Vm, "").ready && !verdict(&both, For::Container, "").ready);
    }

    #[test]
    fn looking_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let report = examine(&OpenOptions { root: Some(root.clone()), ..OpenOptions::default() });
        assert!(!root.exists(), "the store was made");
        assert!(!report.vm.ready, "there is no agent and no kernel");
        let kernel = report.checks.iter().find(|c| c.name == "guest kernel").unwrap();
        assert_eq!((kernel.level, kernel.mend.contains("kernel install")), (Level::Missing, true));
    }
}
