//! The workspace as `cargo metadata` tells it: only what the checks read.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// All packages that are built for the hosts that Dhow supports.
#[derive(Debug, Deserialize)]
pub struct Workspace {
    /// Members and what they depend on, directly or not.
    pub packages: Vec<Package>,
    /// The repository's directory.
    #[serde(rename = "workspace_root")]
    pub root: PathBuf,
}

/// One package.
#[derive(Debug, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Nothing for members of the workspace.
    pub source: Option<String>,
    pub license: Option<String>,
    pub manifest_path: PathBuf,
    #[serde(default)]
    pub dependencies: Vec<Dependency>,
    #[serde(default)]
    pub targets: Vec<Target>,
    id: String,
}

/// A dependency as the manifest declares it.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    pub name: String,
}

/// A library, program, test… of a package.
#[derive(Debug, Deserialize)]
pub struct Target {
    pub kind: Vec<String>,
    pub src_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolved {
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

impl Workspace {
    /// The workspace's own packages.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|p| p.source.is_none())
    }
}

impl Package {
    /// The directory of the package.
    pub fn dir(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("."))
    }

    /// The name without the prefix that keeps it apart from other projects' crates.
    pub fn room(&self) -> &str {
        self.name.strip_prefix("dhow-").unwrap_or(&self.name)
    }
}

/// Asks cargo.
pub fn load() -> Result<Workspace> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target =
        std::env::var("CARGO_BUILD_TARGET").unwrap_or_else(|_| "x86_64-unknown-linux-gnu".to_owned());
    let out = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", &target])
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(out.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    parse(&out.stdout)
}

/// Keeps only packages that the resolution for the asked platform has: cargo lists others, too.
fn parse(json: &[u8]) -> Result<Workspace> {
    let mut workspace: Workspace = serde_json::from_slice(json).context("cargo metadata made no sense")?;
    let resolved: Resolved = serde_json::from_slice(json).context("cargo metadata has no resolution")?;
    let used: std::collections::HashSet<&str> =
        resolved.resolve.nodes.iter().map(|n| n.id.as_str()).collect();
    workspace.packages.retain(|p| used.contains(p.id.as_str()));
    Ok(workspace)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Name, source, licence, version, dependencies.
    type Row<'a> = (&'a str, Option<&'a str>, &'a str, &'a str, &'a [&'a str]);

    /// A workspace of these packages.
    pub fn workspace(packages: &[Row<'_>]) -> Workspace {
        let packages = packages
            .iter()
            .map(|(name, source, license, version, dependencies)| Package {
                name: (*name).to_owned(),
                version: (*version).to_owned(),
                source: source.map(str::to_owned),
                license: Some((*license).to_owned()),
                manifest_path: PathBuf::from(format!("/nowhere/{name}/Cargo.toml")),
                dependencies: dependencies.iter().map(|d| Dependency { name: (*d).to_owned() }).collect(),
                targets: Vec::new(),
                id: (*name).to_owned(),
            })
            .collect();
        Workspace { packages, root: PathBuf::from("/nowhere") }
    }

    #[test]
    fn what_is_not_resolved_is_not_there() {
        let json = br#"{"workspace_root": "/w", "resolve": {"nodes": [{"id": "a"}]}, "packages": [
            {"name": "a", "version": "1.0.0", "source": null, "license": null, "manifest_path": "/w/a/Cargo.toml", "id": "a"},
            {"name": "b", "version": "1.0.0", "source": null, "license": null, "manifest_path": "/w/b/Cargo.toml", "id": "b"}]}"#;
        let names: Vec<String> = parse(json).unwrap().packages.into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["a"]);
    }
}
