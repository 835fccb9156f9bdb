//! What Dhow remembers: an embedded SQLite database that any number of commands share, and an append-only event log.
//!
//! Knows no table but its own version table: each component brings its tables as migration steps.
#![forbid(unsafe_code)]

mod db;
mod events;

pub use db::{Db, DbError, log_frames};
pub use events::{EventLog, Follow};
pub use rusqlite;
