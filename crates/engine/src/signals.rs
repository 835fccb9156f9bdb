//! Signals by name or number, as Docker takes them.

use crate::Result;
use crate::spec::invalid;
use types::docker::ContainerConfig;

const NAMES: &[(&str, i32)] = &[
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];
/// The first and the last real-time signal that programs see.
const RT: (i32, i32) = (34, 64);

/// Reads `SIGTERM`, `term`, `15`, `RTMIN+3`.
pub(crate) fn parse(text: &str) -> Result<i32> {
    let wrong = || invalid(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=RT.1).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(n, _)| *n == name) {
        return Ok(*number);
    }
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(RT.0),
        (_, Some("")) => Some(RT.1),
        (Some(rest), _) => {
            rest.strip_prefix('+').and_then(|n| n.parse::<i32>().ok()).and_then(|n| RT.0.checked_add(n))
        }
        (_, Some(rest)) => {
            rest.strip_prefix('-').and_then(|n| n.parse::<i32>().ok()).and_then(|n| RT.1.checked_sub(n))
        }
        _ => None,
    };
    real_time.filter(|n| (RT.0..=RT.1).contains(n)).ok_or_else(wrong)
}

/// The signal that asks a container to end: SIGTERM unless it says otherwise.
pub(crate) fn stop_signal(config: &ContainerConfig) -> Result<i32> {
    config.stop_signal.as_deref().filter(|s| !s.is_empty()).map_or(Ok(15), parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, want) in
            [("SIGTERM", 15), ("kill", 9), ("2", 2), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("rtmin", 34)]
        {
            assert_eq!(parse(text).unwrap(), want);
        }
        for bad in ["", "0", "65", "-1", "SIGFOO", "RTMIN+31", "RTMAX--1", "RTMIN+-1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
