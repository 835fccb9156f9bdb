//! What every verb has at hand: the engine, opened when it is first needed, and the printer.

use super::failure::Failure;
use super::globals::Globals;
use crate::printer::Printer;
use engine::{Engine, OpenOptions};
use std::cell::OnceCell;
use std::path::PathBuf;

/// Handed to every verb.
pub struct Context {
    /// All output goes here.
    pub out: Printer,
    /// `-D`.
    pub debug: bool,
    options: OpenOptions,
    engine: OnceCell<Engine>,
}

impl Context {
    /// For one command; opens nothing yet.
    pub fn new(globals: Globals) -> Self {
        let dir = |flag: Option<PathBuf>, variable: &str| {
            flag.or_else(|| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from))
        };
        Self {
            out: Printer::new(),
            debug: globals.debug,
            options: OpenOptions {
                root: dir(globals.root, "DHOW_ROOT"),
                run: dir(globals.run, "DHOW_RUN"),
                hello: crate::HELLO,
                guest: crate::GUEST,
            },
            engine: OnceCell::new(),
        }
    }

    /// Where the store lies, for `-D`.
    pub fn describe(&self) -> String {
        match self.engine.get() {
            Some(e) => format!("root {}, run {}", e.paths().root.display(), e.paths().run.display()),
            None => "no store was opened".into(),
        }
    }

    /// The engine.
    pub fn engine(&self) -> Result<&Engine, Failure> {
        if let Some(e) = self.engine.get() {
            return Ok(e);
        }
        let engine = Engine::open(&self.options)?;
        Ok(self.engine.get_or_init(|| engine))
    }

    /// How the store is opened, for who must not open it.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// An engine of one's own, for what ends with the store.
    pub fn own_engine(&self) -> Result<Engine, Failure> {
        Ok(Engine::open(&self.options)?)
    }

    /// Does `each` to every name; failures are said as they come, and the last decides the exit code.
    pub fn for_each(
        &self,
        names: &[String],
        mut each: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<i32, Failure> {
        let mut code = 0;
        for name in names {
            match each(name) {
                Ok(()) => {}
                Err(Failure::Message { text, .. }) => {
                    self.out.error(&text);
                    code = 1;
                }
                Err(other) => return Err(other),
            }
        }
        Ok(code)
    }
}
