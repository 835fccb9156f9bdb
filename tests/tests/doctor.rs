//! `doctor`: it tells the truth about this host, and leaves it as it is.

use dhow_tests::Store;
use serde_json::Value;

#[test]
fn what_is_said_fits_what_runs() {
    let store = Store::new();
    let out = store.out(&["doctor", "--format", "json"]);
    assert!(!store.root().exists() && !store.run().exists(), "doctor made something");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let ready = report["Container"]["Ready"].as_bool().unwrap();
    assert_eq!(out.status.code(), Some(i32::from(!ready)), "{report}");

    let run = store.out(&["run", "--rm", "hello"]);
    assert_eq!(
        run.status.success(),
        ready,
        "doctor: {report}; run: {}",
        String::from_utf8_lossy(&run.stderr)
    );

    // A store without a kernel carries no microVM, and this is how to get one.
    assert_eq!(report["MicroVM"]["Ready"], false, "{report}");
    let checks = report["Checks"].as_array().unwrap();
    let kernel = checks.iter().find(|c| c["Name"] == "guest kernel").unwrap();
    assert_eq!(kernel["Level"], "missing");
    assert!(kernel["Mend"].as_str().unwrap().starts_with("dhow kernel "), "{kernel}");

    // One line for each check, a gap, one for each hull.
    let text = store.out(&["doctor"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert_eq!(text.lines().count(), checks.len() + 3, "{text}");
    assert!(text.contains("\ncontainer: ") && text.contains("\nmicroVM: not ready, lacks "), "{text}");
}
