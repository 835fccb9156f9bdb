//! What went wrong, as a client is told: a status and one sentence, `{"message": "…"}`.

use engine::EngineError;
use image::ImageError;
use types::{ErrorKind, Kinded};

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// HTTP status.
    pub status: u16,
    /// One sentence.
    pub message: String,
}

impl Fault {
    /// Any status.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: types::without_numbers(&message.into()) }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// No such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, message)
    }

    /// Not in this state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, message)
    }

    /// The server failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, message)
    }
}

fn status(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict => 409,
        ErrorKind::Invalid | ErrorKind::Unsupported => 400,
        ErrorKind::Denied => 403,
        ErrorKind::Unavailable | ErrorKind::Exhausted | ErrorKind::Corrupt | ErrorKind::Internal => 500,
    }
}

impl From<EngineError> for Fault {
    fn from(e: EngineError) -> Self {
        let message = match &e {
            // Docker's words, which clients look for.
            EngineError::NoSuchContainer(name) => format!("No such container: {name}"),
            EngineError::NotRunning(id) => format!("Container {id} is not running"),
            EngineError::NoSuchObject(what) => match what.strip_prefix("exec instance ") {
                Some(id) => format!("No such exec instance: {id}"),
                None => e.to_string(),
            },
            EngineError::NameInUse { name, id } => format!(
                "Conflict. The container name \"/{name}\" is already in use by container {id:?}. You have to remove (or rename) that container to be able to reuse that name."
            ),
            EngineError::Image(image) => return Self::from_image(image),
            EngineError::Start { message, .. } => return Self::new(400, as_dockers(message)),
            other => other.to_string(),
        };
        Self::new(status(e.kind()), message)
    }
}

impl From<ImageError> for Fault {
    fn from(e: ImageError) -> Self {
        Self::from_image(&e)
    }
}

impl Fault {
    /// Of an archive that a client sent: what is wrong with that is no fault of the server's.
    pub fn of_what_was_sent(e: ImageError) -> Self {
        match Self::from_image(&e) {
            fault if e.kind() == ErrorKind::Corrupt => Self { status: 400, ..fault },
            fault => fault,
        }
    }

    fn from_image(e: &ImageError) -> Self {
        match e {
            ImageError::NotFound(name) => Self::not_found(format!("No such image: {name}")),
            ImageError::PullDenied { .. } => Self::not_found(e.to_string()),
            // Docker's daemon calls every failure of a registry its own.
            other => Self::new(status(other.kind()), other.to_string()),
        }
    }
}

impl From<serde_json::Error> for Fault {
    fn from(e: serde_json::Error) -> Self {
        Self::internal(format!("cannot write the answer: {e}"))
    }
}

/// Docker's client makes its exit code 126 of these words, and finds them only as the kernel's own sources write them.
fn as_dockers(message: &str) -> String {
    ["Permission denied", "Is a directory"]
        .iter()
        .fold(message.to_owned(), |text, words| text.replace(words, &words.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_starts_have_the_words_that_clients_look_for() {
        let of =
            |message: &str| Fault::from(EngineError::Start { message: message.into(), code: 126 }).message;
        assert_eq!(of("exec: \"/etc\": Is a directory (os error 21)"), "exec: \"/etc\": is a directory");
        assert_eq!(of("exec: \"x\": Permission denied"), "exec: \"x\": permission denied");
    }
}
