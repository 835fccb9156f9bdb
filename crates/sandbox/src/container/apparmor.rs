//! The AppArmor profile of containers, for hosts that have AppArmor: what a container may not do even as its root.
//!
//! The profile is made and loaded once per boot, by whoever asks first ([`ensure_default`]); which profile a process
//! runs under is its specification's `apparmorProfile`. Rules by apparmor.d(5); the intent is that of the profiles
//! that other engines load: everything but writing to the kernel's control files, mounting, and touching processes
//! outside.

use super::step::Step;
use crate::hull::HullError;
use std::io::Write;
use std::process::{Command, Stdio};

/// Name of the profile.
pub const DEFAULT_PROFILE: &str = "dhow-default";

/// Where loaded profiles are listed.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

const PROFILE: &str = r#"
profile dhow-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  # The engine may signal us, and we each other.
  signal (receive) peer=unconfined,
  signal (send,receive) peer=dhow-default,

  # The kernel's control files.
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,
  deny @{PROC}/mem rwklx,
  deny @{PROC}/kmem rwklx,
  deny @{PROC}/sys/[^kn]** wklx,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} wklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,

  deny mount,

  ptrace (trace,read,tracedby,readby) peer=dhow-default,
}
"#;

/// Loads the profile unless it is loaded. `false`: this host has no AppArmor, or no means to load a profile
/// (`apparmor_parser`), and containers run without one.
pub fn ensure_default() -> Result<bool, HullError> {
    if !super::labels::apparmor() {
        return Ok(false);
    }
    let prefix = format!("{DEFAULT_PROFILE} (");
    if std::fs::read_to_string(LOADED).is_ok_and(|list| list.lines().any(|l| l.starts_with(&prefix))) {
        return Ok(true);
    }
    let named = || format!("load the AppArmor profile {DEFAULT_PROFILE}");
    let parser = Command::new("apparmor_parser")
        .args(["--replace", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut parser = match parser {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        done => done.step(named)?,
    };
    if let Some(mut stdin) = parser.stdin.take() {
        stdin.write_all(PROFILE.as_bytes()).step(named)?;
    }
    let done = parser.wait_with_output().step(named)?;
    if done.status.success() {
        return Ok(true);
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let source = std::io::Error::other(said.trim().to_owned());
    Err(HullError::Step { step: named(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_apparmor_is_no_failure() {
        if super::super::labels::apparmor() {
            return println!("skipped: this host has AppArmor, and a test loads no profile into it");
        }
        assert!(!ensure_default().unwrap());
    }

    #[test]
    fn the_profile_is_the_parsers_language() {
        let parser = Command::new("apparmor_parser").args(["-Q", "-K"]).stdin(Stdio::piped()).spawn();
        let Ok(mut parser) = parser else { return println!("skipped: no apparmor_parser here") };
        drop(parser.stdin.take().map(|mut s| s.write_all(PROFILE.as_bytes())));
        assert!(parser.wait().unwrap().success());
        assert_eq!(PROFILE.matches(DEFAULT_PROFILE).count(), 3);
    }
}
