//! All output goes through here: results to stdout and nothing else, everything said to the user to stderr.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

/// The one way to stdout and stderr.
pub struct Printer(());

impl Printer {
    /// There is one per command.
    pub fn new() -> Self {
        Self(())
    }

    /// One line of a result.
    pub fn line(&self, line: &str) -> io::Result<()> {
        let mut text = String::with_capacity(line.len() + 1);
        text.push_str(line);
        text.push('\n');
        self.raw(text.as_bytes())
    }

    /// A result as it is, flushed.
    pub fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Something that went wrong.
    pub fn error(&self, text: &str) {
        self.note(&format!("dhow: {}{}", types::without_numbers(text), advice(text)));
    }

    /// Something the user should know.
    pub fn warning(&self, text: &str) {
        self.note(&format!("WARNING: {text}"));
    }

    /// Anything else for the user's eyes. A closed stderr is no reason to fail.
    pub fn note(&self, text: &str) {
        let mut err = io::stderr().lock();
        let _ = writeln!(err, "{}", shown(text));
    }

    /// Asks a question; anything but yes is no.
    pub fn confirm(&self, question: &str) -> io::Result<bool> {
        let mut out = io::stdout().lock();
        write!(out, "{question}\nAre you sure you want to continue? [y/N] ")?;
        out.flush()?;
        drop(out);
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y"))
    }

    /// Whether stdout is a terminal.
    pub fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }
}

/// A text fit for a terminal: it may quote what a registry, an image, or a guest says, and must not give orders to it.
fn shown(text: &str) -> Cow<'_, str> {
    let orders = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match text.contains(orders) {
        true => text.replace(orders, "?").into(),
        false => text.into(),
    }
}

/// What the user can do about a failure of the host that any file operation may meet.
fn advice(text: &str) -> &'static str {
    // strerror(3) of EMFILE, met here or by a supervisor.
    match text.contains("Too many open files") {
        true => ": allow this shell more of them (ulimit -n) and try again",
        false => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_gives_orders_to_the_terminal() {
        assert_eq!(shown("a\x1b[31mb\u{9b}2Jc\r\n\td"), "a?[31mb?2Jc?\n\td");
        assert!(matches!(shown("plain, ünd more"), Cow::Borrowed(_)));
    }

    #[test]
    fn errors_read_as_words() {
        let full = std::io::Error::from_raw_os_error(24).to_string();
        assert!(advice(&format!("cannot open it: {full}")).contains("ulimit -n") && advice("x").is_empty());
    }
}
