//! Leaves out of the agent, which each microVM has in its memory, what it has no use for.

fn main() {
    println!("cargo::rerun-if-changed=small.ld");
    // Of the profile `guest`, which aborts; tests do unwind.
    if std::env::var("OPT_LEVEL").is_ok_and(|level| level == "z") {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}/small.ld", env!("CARGO_MANIFEST_DIR"));
    }
}
