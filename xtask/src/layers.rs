//! The floors of the house: a crate may know only crates on lower floors, and no sibling.
//!
//! Development dependencies count, too: a test that needs an upper floor belongs to that floor or to `tests/`.

use crate::metadata::Workspace;

/// From the ground up. Crates in one row are siblings. A new crate gets its place here first.
const FLOORS: &[&[&str]] = &[
    &["types"],
    &["sys"],
    &["state"],
    &["image", "rootfs", "net", "process", "vmm"],
    &["sandbox"],
    &["engine", "guest"],
    &["api"],
    &["dhow"],
];

/// Crates that know none of the others, and that none of the others knows: the embedded program is handed over as a
/// file, these checks judge from outside, and the end-to-end tests see only what a user sees.
const ALONE: &[&str] = &["hello", "xtask", "tests"];

/// Edges that go down and are forbidden all the same.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("sandbox", "image", "a hull takes a root filesystem, wherever it came from"),
    ("sandbox", "rootfs", "a hull takes a root filesystem as a descriptor, from a hook of the engine"),
    ("vmm", "state", "a virtual machine has no database"),
    ("sandbox", "net", "a hull calls back to have its network configured"),
];

/// What breaks the rules, one sentence each.
pub fn check(workspace: &Workspace) -> Vec<String> {
    let mut problems = Vec::new();
    let names: Vec<&str> = workspace.members().map(|p| p.name.as_str()).collect();
    for package in workspace.members() {
        let from = package.room();
        if place(from).is_none() && !ALONE.contains(&from) {
            problems.push(format!("{from} has no floor: give it one in xtask/src/layers.rs"));
            continue;
        }
        for dependency in package.dependencies.iter().filter(|d| names.contains(&d.name.as_str())) {
            let to = dependency.name.strip_prefix("dhow-").unwrap_or(&dependency.name);
            problems.extend(edge(from, to));
        }
    }
    problems
}

fn edge(from: &str, to: &str) -> Option<String> {
    if ALONE.contains(&from) {
        return Some(format!(
            "{from} depends on {to}, but {from} stands alone: take the dependency out of it"
        ));
    }
    if ALONE.contains(&to) {
        return Some(format!("{from} depends on {to}, but {to} stands alone: nothing may depend on it"));
    }
    if let Some((.., why)) = FORBIDDEN.iter().find(|(f, t, _)| (*f, *t) == (from, to)) {
        return Some(format!("{from} depends on {to}, which it may not know: {why}"));
    }
    match place(from)?.cmp(&place(to)?) {
        std::cmp::Ordering::Greater => None,
        std::cmp::Ordering::Equal => Some(format!(
            "{from} depends on its sibling {to}: let them exchange values of a lower floor (types), or call both from above"
        )),
        std::cmp::Ordering::Less => {
            Some(format!("{from} depends on {to}, which is on a higher floor: move what is shared down"))
        }
    }
}

fn place(room: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&room))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::workspace;

    fn problems(members: &[(&str, &[&str])]) -> Vec<String> {
        let packages: Vec<_> = members.iter().map(|(n, d)| (*n, None, "MIT", "1.0.0", *d)).collect();
        check(&workspace(&packages))
    }

    #[test]
    fn down_is_fine() {
        let found = problems(&[
            ("dhow-types", &["serde"]),
            ("dhow-sys", &["dhow-types", "libc"]),
            ("dhow-process", &["dhow-sys"]),
            ("dhow-sandbox", &["dhow-process", "dhow-types"]),
            ("dhow-dhow", &["dhow-sandbox", "dhow-types"]),
            ("xtask", &["anyhow"]),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn up_sideways_forbidden_alone_and_unknown_are_told_apart() {
        let found = problems(&[
            ("dhow-types", &["dhow-sys"]),
            ("dhow-sys", &[]),
            ("dhow-net", &["dhow-image"]),
            ("dhow-image", &[]),
            ("dhow-sandbox", &["dhow-net"]),
            ("dhow-hello", &["dhow-types"]),
            ("dhow-engine", &["dhow-hello"]),
            ("dhow-shed", &[]),
        ]);
        let expected = [
            "types depends on sys, which is on a higher floor",
            "net depends on its sibling image",
            "sandbox depends on net, which it may not know",
            "hello depends on types, but hello stands alone",
            "engine depends on hello, but hello stands alone",
            "shed has no floor",
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }
}
