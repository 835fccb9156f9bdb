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
