//! Checks of the repository that no ready tool makes, and the host on which microVMs are tested.
//!
//! Each check prints what is wrong, one sentence a line, with what to do about it, and exits with 1 if anything is.
#![forbid(unsafe_code)]

mod deps;
mod layers;
mod metadata;
mod sizes;
mod unsafe_code;

use std::process::ExitCode;

use anyhow::Result;

const USAGE: &str = "usage: cargo xtask layers|deps|sizes|kvm-host
  layers   who may know whom, and where unsafe code may live
  deps     licences, sources and duplicates of dependencies, by deny.toml
  sizes    warns of files that have grown long
  kvm-host [-m MIB] [-c CPUS] [-t SECONDS] -- COMMAND...
           runs a command on an emulated host that has KVM (contrib/kvm-host)";

fn main() -> ExitCode {
    let done = match std::env::args().nth(1).as_deref() {
        Some("layers") => run_layers(),
        Some("deps") => run_deps(),
        Some("sizes") => run_sizes(),
        Some("kvm-host") => return run_kvm_host(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_layers() -> Result<bool> {
    let workspace = metadata::load()?;
    let mut problems = layers::check(&workspace);
    problems.extend(unsafe_code::check(&workspace)?);
    Ok(report("layers", &problems, &format!("{} crates keep to their floors", workspace.members().count())))
}

fn run_deps() -> Result<bool> {
    let workspace = metadata::load()?;
    let rules = deps::Rules::load(&workspace.root)?;
    let problems = deps::check(&workspace, &rules);
    let outside = workspace.packages.iter().filter(|p| p.source.is_some()).count();
    Ok(report("deps", &problems, &format!("{outside} dependencies are what deny.toml allows")))
}

fn run_sizes() -> Result<bool> {
    let workspace = metadata::load()?;
    for warning in sizes::check(&workspace)? {
        println!("sizes: warning: {warning}");
    }
    Ok(true)
}

/// Becomes the script; comes back only if it cannot be started.
fn run_kvm_host() -> ExitCode {
    use std::os::unix::process::CommandExt;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../contrib/kvm-host");
    let e = std::process::Command::new(script).args(std::env::args_os().skip(2)).exec();
    eprintln!("xtask: cannot run {script}: {e}");
    ExitCode::from(125)
}

fn report(check: &str, problems: &[String], good: &str) -> bool {
    for problem in problems {
        eprintln!("{check}: {problem}");
    }
    if problems.is_empty() {
        println!("{check}: {good}");
    }
    problems.is_empty()
}
