//! Compiles what is embedded: the program of the image `hello`, and the agent of microVMs, both static and small.

use std::env;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let crates = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("..");
    hello(&crates.join("hello/src"));
    guest(&crates);
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// By one call of `rustc`, as the program depends on the standard library only. The same compiler makes the same bytes.
fn hello(source: &Path) {
    println!("cargo::rerun-if-changed={}", source.display());
    let mut rustc = Command::new(var("RUSTC"));
    rustc
        .args(["--edition=2024", "--crate-name=hello", "--crate-type=bin", "--target", &var("TARGET")])
        .args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Ccodegen-units=1", "-Clto=fat"])
        .args(["-Ctarget-feature=+crt-static", "-Crelocation-model=static"])
        .arg(format!("--remap-path-prefix={}=hello", source.display()))
        .arg(source.join("main.rs"))
        .arg("-o")
        .arg(PathBuf::from(var("OUT_DIR")).join("hello"));
    let status = rustc.status().unwrap_or_else(|e| panic!("cannot run {rustc:?}: {e}"));
    assert!(status.success(), "the embedded program does not compile: {rustc:?}");
}

/// Beside the flags of `.cargo/config.toml`: what machine code repeats is said once, 2 % of the agent.
const GUEST_FLAGS: &str = r#"target.'cfg(unix)'.rustflags = ["-Cllvm-args=-enable-machine-outliner=always"]"#;

/// By a cargo of its own, with a target directory of its own, that all profiles of this program share. `DHOW_GUEST_BIN`
/// names a finished agent instead.
fn guest(crates: &Path) {
    println!("cargo::rerun-if-env-changed=DHOW_GUEST_BIN");
    if let Ok(bin) = env::var("DHOW_GUEST_BIN") {
        println!("cargo::rerun-if-changed={bin}");
        return embed(Path::new(&bin));
    }
    for name in ["guest", "net", "process", "rootfs", "sandbox", "sys", "types"] {
        println!("cargo::rerun-if-changed={}", crates.join(name).join("src").display());
    }
    println!("cargo::rerun-if-changed={}", crates.join("../Cargo.lock").display());
    let (out, target) = (PathBuf::from(var("OUT_DIR")), var("TARGET"));
    // <target>/<triple>/<profile>/build/<package>/out
    let shared = out.ancestors().nth(5).unwrap_or(&out).join("guest");
    let mut cargo = Command::new(var("CARGO"));
    cargo
        .args(["build", "--locked", "--package", "dhow-guest", "--profile", "guest", "--target", &target])
        .args(["--config", GUEST_FLAGS, "--target-dir"])
        .arg(&shared)
        .current_dir(crates);
    // What belongs to the compilation of this program, clippy's wrapper and flags among it, is not the agent's.
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        let ours = ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS"];
        if ours.contains(&name_text.as_ref()) || name_text.starts_with("CARGO_CFG_") {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.status().unwrap_or_else(|e| panic!("cannot run {cargo:?}: {e}"));
    assert!(status.success(), "the guest's agent does not compile: {cargo:?}");
    embed(&shared.join(target).join("guest/dhow-guest"));
}

/// Names the agent, and a tag that changes with its bytes.
fn embed(bin: &Path) {
    let bytes = std::fs::read(bin).unwrap_or_else(|e| panic!("cannot read {}: {e}", bin.display()));
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    println!("cargo::rustc-env=DHOW_GUEST={}", bin.display());
    println!("cargo::rustc-env=DHOW_GUEST_TAG={:016x}", hasher.finish());
}
