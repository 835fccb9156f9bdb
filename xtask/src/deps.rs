//! Licences, sources and duplicates of dependencies, by the rules of `deny.toml`.
//!
//! A small part of what cargo-deny does, from the same file, for hosts where that is not installed (it takes longer to
//! compile than Dhow). It takes the licence that a package declares, does not read licence texts, and knows no advisories.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use spdx::{Expression, LicenseReq, ParseMode};

use crate::metadata::{Package, Workspace};
use crate::unsafe_code::read;

/// The part of `deny.toml` that is enforced here.
#[derive(Debug, Deserialize)]
pub struct Rules {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Debug, Deserialize)]
struct Exception {
    name: String,
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    #[serde(default)]
    deny: Vec<Named>,
    #[serde(default)]
    skip: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

impl Rules {
    /// Reads `deny.toml` in `root`.
    pub fn load(root: &Path) -> Result<Self> {
        let path = root.join("deny.toml");
        Self::parse(&read(&path)?).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }
}

/// What breaks the rules, one sentence each.
pub fn check(workspace: &Workspace, rules: &Rules) -> Vec<String> {
    let mut problems = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in &workspace.packages {
        problems.extend(license(package, rules));
        problems.extend(source(package, rules));
        if let Some(ban) = rules.bans.deny.iter().find(|b| b.name == package.name) {
            problems.push(format!("{} is banned by deny.toml: {}", package.name, ban.reason));
        }
        versions.entry(&package.name).or_default().push(&package.version);
    }
    for (name, versions) in versions {
        if versions.len() > 1 && !rules.bans.skip.iter().any(|s| s.name == name) {
            problems.push(format!(
                "{name} is there {} times ({}): agree on one version, or say why not under bans.skip in deny.toml",
                versions.len(),
                versions.join(", ")
            ));
        }
    }
    problems
}

fn license(package: &Package, rules: &Rules) -> Option<String> {
    let name = &package.name;
    let Some(declared) = &package.license else {
        return Some(format!("{name} declares no licence: do without it"));
    };
    let expression = match Expression::parse_mode(declared, ParseMode::LAX) {
        Ok(expression) => expression,
        Err(e) => {
            return Some(format!(
                "{name} declares the licence {declared:?}, which is not SPDX: {}",
                e.reason
            ));
        }
    };
    let exceptions = rules.licenses.exceptions.iter().filter(|e| e.name == *name).flat_map(|e| &e.allow);
    let allowed: Vec<&String> = rules.licenses.allow.iter().chain(exceptions).collect();
    let permitted = expression.evaluate(|need: &LicenseReq| allowed.iter().any(|a| **a == need.to_string()));
    (!permitted)
        .then(|| format!("{name} has the licence {declared}, which deny.toml does not allow: do without it"))
}

fn source(package: &Package, rules: &Rules) -> Option<String> {
    let source = package.source.as_ref()?;
    let known = rules.sources.allow_registry.iter().any(|r| source.strip_prefix("registry+") == Some(r));
    (!known).then(|| format!("{} comes from {source}, which deny.toml does not allow", package.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::workspace;

    const CRATES: Option<&str> = Some("registry+https://github.com/rust-lang/crates.io-index");

    fn rules() -> Rules {
        Rules::parse(
            r#"
            licenses = { allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"], exceptions = [{ name = "roots", allow = ["CDLA-Permissive-2.0"] }] }
            bans = { deny = [{ name = "openssl", reason = "C" }], skip = [{ name = "syn" }] }
            sources = { allow-registry = ["https://github.com/rust-lang/crates.io-index"] }
            "#,
        )
        .unwrap()
    }

    #[test]
    fn what_is_allowed_passes() {
        let good = workspace(&[
            ("a", CRATES, "MIT OR GPL-3.0-only", "1.0.0", &[]),
            ("b", CRATES, "MIT/Apache-2.0", "1.0.0", &[]),
            ("c", CRATES, "Apache-2.0 WITH LLVM-exception AND MIT", "1.0.0", &[]),
            ("roots", CRATES, "CDLA-Permissive-2.0", "1.0.0", &[]),
            ("syn", CRATES, "MIT", "1.0.0", &[]),
            ("syn", CRATES, "MIT", "2.0.0", &[]),
            ("own", None, "Apache-2.0", "0.1.0", &[]),
        ]);
        assert_eq!(check(&good, &rules()), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_is_named() {
        let bad = workspace(&[
            ("gnu", CRATES, "GPL-3.0-only AND MIT", "1.0.0", &[]),
            ("strange", CRATES, "do as you like", "1.0.0", &[]),
            ("elsewhere", Some("git+https://example.com/x"), "MIT", "1.0.0", &[]),
            ("openssl", CRATES, "MIT", "1.0.0", &[]),
            ("twice", CRATES, "MIT", "1.0.0", &[]),
            ("twice", CRATES, "MIT", "2.0.0", &[]),
        ]);
        let found = check(&bad, &rules());
        let expected = [
            "gnu has the licence",
            "strange declares",
            "elsewhere comes from",
            "openssl is banned",
            "twice is there 2",
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }
}
