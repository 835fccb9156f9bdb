//! How a command fails: one sentence on stderr and an exit code.

use super::verb::Verb;

/// Exit code, or why there is none.
pub type Outcome = Result<i32, Failure>;

/// A failed command.
#[derive(Debug)]
pub enum Failure {
    /// To be said, with the exit code of the verb or one of its own.
    Message {
        /// One sentence.
        text: String,
        /// Exit code, where the verb's own will not do.
        code: Option<i32>,
    },
    /// The command line is wrong: the sentence comes with a hint.
    Usage {
        /// What is wrong with it.
        text: String,
        /// The verb it is wrong for.
        verb: &'static str,
        /// Its usage line.
        usage: String,
        /// Exit code.
        code: i32,
    },
    /// Everything has been said; only the exit code is left.
    Said(i32),
    /// Whoever read our output has gone away.
    BrokenPipe,
}

impl Failure {
    /// A wrong flag. Docker exits with 125 whatever the verb.
    pub fn usage(text: String, verb: &Verb) -> Self {
        Self::Usage { text, verb: verb.name(), usage: verb.usage.to_owned(), code: 125 }
    }

    /// Too few or too many words.
    pub fn arguments(verb: &Verb) -> Self {
        let plural = |n: usize| if n == 1 { "argument" } else { "arguments" };
        let wants = match verb.words {
            (_, Some(0)) => "accepts no arguments".to_owned(),
            (min, Some(max)) if min == max => format!("requires {min} {}", plural(min)),
            (0, Some(max)) => format!("requires at most {max} {}", plural(max)),
            (min, Some(max)) => format!("requires at least {min} and at most {max} arguments"),
            (min, None) => format!("requires at least {min} {}", plural(min)),
        };
        let text = format!("'dhow {}' {wants}", verb.name());
        Self::Usage { text, verb: verb.name(), usage: verb.usage.to_owned(), code: 1 }
    }

    /// A sentence with an exit code of its own.
    pub fn coded(text: impl Into<String>, code: i32) -> Self {
        Self::Message { text: text.into(), code: Some(code) }
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Message { text, code: None }
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<engine::EngineError> for Failure {
    fn from(e: engine::EngineError) -> Self {
        e.to_string().into()
    }
}

impl From<image::ImageError> for Failure {
    fn from(e: image::ImageError) -> Self {
        e.to_string().into()
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        if e.kind() == std::io::ErrorKind::BrokenPipe { Self::BrokenPipe } else { e.to_string().into() }
    }
}

impl From<crate::format::TemplateError> for Failure {
    fn from(e: crate::format::TemplateError) -> Self {
        e.to_string().into()
    }
}
