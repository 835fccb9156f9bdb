//! What kind of failure an error is, whatever crate it comes from: front ends turn it into exit codes and
//! HTTP statuses without knowing each error.

/// The kind of a failure, in the terms of the containerd error vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The named object does not exist.
    NotFound,
    /// The object exists already, or is in a state that forbids the request.
    Conflict,
    /// The request itself is wrong.
    Invalid,
    /// The caller, a registry or the kernel refuses for lack of permission.
    Denied,
    /// A peer (registry, supervisor) does not answer.
    Unavailable,
    /// The host lacks the resource: disk full, no address left, limit too high.
    Exhausted,
    /// Stored or received data is damaged or lies about itself.
    Corrupt,
    /// The host or this build cannot do what was asked.
    Unsupported,
    /// Anything else: an unexpected answer of the operating system.
    Internal,
}

/// Implemented by every error that leaves a crate of Dhow.
pub trait Kinded {
    /// The kind of this failure.
    fn kind(&self) -> ErrorKind;
}

/// Takes away the numbers that the standard library puts behind the kernel's words: `(os error 13)`.
pub fn without_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(" (os error ") {
        out.push_str(before);
        match after.split_once(')') {
            Some((number, tail)) if number.bytes().all(|b| b.is_ascii_digit()) => rest = tail,
            _ => {
                out.push_str(" (os error ");
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_words() {
        assert_eq!(without_numbers("a: Permission denied (os error 13): b"), "a: Permission denied: b");
        assert_eq!(without_numbers("x (os error"), "x (os error");
        assert_eq!(without_numbers("x (os error a) y"), "x (os error a) y");
    }
}
