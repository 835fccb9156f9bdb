//! Names of containers: what is allowed, and made-up ones for those that come without.

const LEFT: &[&str] = &[
    "able", "brave", "bright", "calm", "candid", "clever", "daring", "eager", "earnest", "fair", "fleet",
    "fond", "free", "gentle", "glad", "golden", "happy", "hardy", "humble", "jolly", "keen", "kind",
    "lively", "loyal", "lucid", "lucky", "mellow", "merry", "mighty", "nimble", "noble", "patient", "placid",
    "proud", "quick", "quiet", "ready", "serene", "sharp", "silver", "sincere", "sober", "steady", "stout",
    "sturdy", "swift", "tidy", "trusty", "upbeat", "vivid", "warm", "wary", "wise", "witty", "worthy",
    "zesty",
];
const RIGHT: &[&str] = &[
    "anchor", "barge", "beacon", "bosun", "bow", "brig", "buoy", "cabin", "canvas", "capstan", "clipper",
    "coral", "cove", "crest", "current", "cutter", "deck", "dinghy", "dock", "ebb", "fathom", "ferry",
    "galley", "gull", "halyard", "harbour", "haven", "helm", "hold", "jetty", "jib", "keel", "ketch",
    "lagoon", "lantern", "lateen", "lugger", "mainsail", "mast", "monsoon", "oar", "pearl", "pilot",
    "pinnace", "quay", "reef", "rigging", "rudder", "sail", "sextant", "shoal", "sloop", "spar", "stern",
    "swell", "tide", "tiller", "wake", "wharf", "yawl",
];

/// Whether a container or volume may be called that: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
pub(crate) fn is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() > 1
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// A name made up from random bytes; from the second attempt on it has a number.
pub(crate) fn made_up(random: [u8; 4], attempt: u32) -> String {
    let [a, b, c, d] = random.map(usize::from);
    let (left, right) = (LEFT[(a << 8 | b) % LEFT.len()], RIGHT[(c << 8 | d) % RIGHT.len()]);
    match attempt {
        0 => format!("{left}_{right}"),
        n => format!("{left}_{right}_{:x}", (a ^ d) + n as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_valid() {
        for n in 0..200u8 {
            assert!(is_valid(&made_up([n, n.wrapping_mul(7), n, n ^ 0x5a], u32::from(n % 3))));
        }
        for bad in ["", "a", "-a", "a b", "a/b", "ä1", ".."] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
