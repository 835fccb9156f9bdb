//! Where `unsafe` may be written.
//!
//! In [`ALLOWED`] crates only; every other library and program forbids it in its own source, and no other file
//! (tests, build scripts) has the word. That each block says why it is safe is clippy's to check
//! (`undocumented_unsafe_blocks`), for which each member must take the workspace's lints.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::metadata::{Package, Workspace};

const ALLOWED: &[&str] = &["sys", "vmm"];
const FORBID: &str = "#![forbid(unsafe_code)]";

/// What breaks the rules, one sentence each.
pub fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for package in workspace.members() {
        problems.extend(lints(package)?);
        if ALLOWED.contains(&package.room()) {
            continue;
        }
        for target in package.targets.iter().filter(|t| t.kind.iter().any(|k| k == "lib" || k == "bin")) {
            if !read(&target.src_path)?.lines().any(|l| l.trim() == FORBID) {
                problems.push(format!("{} lacks {FORBID}", short(workspace, &target.src_path)));
            }
        }
        for file in rust_files(package.dir())? {
            for line in unsafe_lines(&read(&file)?) {
                problems.push(format!(
                    "{}:{line} has unsafe code, which only the crates {} may: put a safe wrapper there",
                    short(workspace, &file),
                    ALLOWED.join(" and ")
                ));
            }
        }
    }
    Ok(problems)
}

fn lints(package: &Package) -> Result<Option<String>> {
    let manifest: toml::Table = toml::from_str(&read(&package.manifest_path)?)
        .with_context(|| package.manifest_path.display().to_string())?;
    let inherited = manifest.get("lints").and_then(|l| l.get("workspace")).and_then(toml::Value::as_bool);
    Ok((inherited != Some(true)).then(|| {
        format!("{} does not take the workspace's lints: add [lints] workspace = true", package.room())
    }))
}

/// All `.rs` files under `dir`, but not those of packages further down.
pub fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target") && !path.join("Cargo.toml").exists() {
                files.extend(rust_files(&path)?);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

pub fn short<'a>(workspace: &Workspace, path: &'a Path) -> std::path::Display<'a> {
    path.strip_prefix(&workspace.root).unwrap_or(path).display()
}

/// The numbers of the lines that have `unsafe` as a word of code, not in a comment or a string.
fn unsafe_lines(source: &str) -> Vec<usize> {
    code_only(source)
        .lines()
        .enumerate()
        .filter(|(_, line)| {
            line.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe")
        })
        .map(|(index, _)| index + 1)
        .collect()
}

/// `source` with comments and string literals blanked, line ends kept.
fn code_only(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest, out.chars().last()) {
            length
        } else if c == '"' {
            string(rest)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest.get(1..).and_then(|r| r.find('\'')).map_or(rest.len(), |end| end + 2)
        } else {
            0
        };
        if skipped == 0 {
            out.push(c);
            rest = rest.get(c.len_utf8()..).unwrap_or("");
        } else {
            let (gone, left) = rest.split_at(skipped);
            out.push(' ');
            out.extend(gone.chars().filter(|c| *c == '\n'));
            rest = left;
        }
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while let Some(rest) = text.get(at..).filter(|r| !r.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// `r"…"`, `r#"…"#`, also with a `b` or `c` before it (which is not skipped).
fn raw_string(text: &str, before: Option<char>) -> Option<usize> {
    if before.is_some_and(|c| (c.is_alphanumeric() && c != 'b' && c != 'c') || c == '_') {
        return None;
    }
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after.get(hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = text.len() - body.len();
    Some(body.find(&end).map_or(text.len(), |at| start + at + end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_in_code_is_found() {
        let source = "fn a() {\n    unsafe { b() }\n}\nunsafe impl Send for A {}\n";
        assert_eq!(unsafe_lines(source), [2, 4]);
    }

    #[test]
    fn the_word_elsewhere_is_not() {
        let source = concat!(
            "// unsafe\n/* unsafe /* unsafe */ unsafe */\n#![forbid(unsafe_code)]\n",
            "let a = \"unsafe \\\" unsafe\";\nlet b = r#\"unsafe \" unsafe\"#;\nlet c = br\"unsafe\";\n",
            "let d = '\"'; // unsafe\nlet e = '\\\"';\nfor unsafely in e {}\n"
        );
        assert_eq!(unsafe_lines(source), [0usize; 0]);
        assert_eq!(unsafe_lines(&format!("{source}unsafe {{}}")), [10]);
    }

    #[test]
    fn lines_are_counted_across_what_is_blanked() {
        assert_eq!(unsafe_lines("/*\n\n*/ \"\n\" unsafe"), [4]);
        assert_eq!(unsafe_lines("fn r(a: &'static str) { unsafe {} }"), [1]);
    }
}
