//! The verbs: flags of each, the one engine call behind it, and what is printed.

pub mod archive;
pub mod attach;
pub mod common;
pub mod compare;
pub mod completion;
pub mod cp;
pub mod doctor;
pub mod events;
pub mod images;
pub mod inspect;
pub mod kernel;
pub mod lifecycle;
pub mod logs;
pub mod look;
pub mod network;
pub mod ps;
pub mod registry;
pub mod run;
pub mod serve;
pub mod stats;
pub mod system;
pub mod update;
pub mod volume;
