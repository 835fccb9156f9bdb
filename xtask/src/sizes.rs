//! Warns of source files that have grown long: one that needs a second screen of context wants to be two.

use anyhow::Result;

use crate::metadata::Workspace;
use crate::unsafe_code::{read, rust_files, short};

/// Lines from which a file is called long.
const LONG: usize = 600;
/// Tables, long by nature.
const TABLES: &[&str] = &["crates/process/src/seccomp/x86.rs"];

/// One sentence for each long file.
pub fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for package in workspace.members() {
        for file in rust_files(package.dir())? {
            let lines = read(&file)?.lines().count();
            let name = short(workspace, &file).to_string();
            if lines > LONG && !TABLES.contains(&name.as_str()) {
                warnings.push(format!("{name} has {lines} lines, more than {LONG}: split it by topic"));
            }
        }
    }
    Ok(warnings)
}
