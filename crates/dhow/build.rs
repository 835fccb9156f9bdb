//! Compiles the embedded image's program, `crates/hello`, into `OUT_DIR/hello`, static and small.
//!
//! By one call of `rustc`, not by a nested cargo, which would need a target directory, a lock and a profile of its own:
//! the program depends on the standard library only. The same compiler makes the same bytes.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let source = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("../hello/src");
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
