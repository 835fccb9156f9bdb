//! Images: registry client, content store, layers as EROFS, garbage collection.
//!
//! An image is a row of `state.db` (its configuration and manifest as they came), blobs in `content/blobs/sha256`
//! (for `push` and `save`), and one file per layer in `layers/` (to be mounted). [`ImageStore`] is the front page;
//! [`layer`] turns tar streams into layers. Knows nothing of containers: what uses an image is asked by callback.
#![forbid(unsafe_code)]

mod archive;
mod change;
mod content;
mod db;
mod error;
mod inspect;
pub mod layer;
mod lease;
mod list;
mod local;
pub mod manifest;
mod progress;
mod pull;
mod push;
pub mod registry;
mod remote;
mod remove;
mod store;
mod unpack;

pub use archive::{LoadFrom, SaveFormat, SaveTo};
pub use error::ImageError;
pub use inspect::DiskUsage;
pub use list::ListFilters;
pub use local::{CommitRequest, HELLO, ImportRequest};
pub use progress::{LayerEvent, Plain, Progress, Quiet};
pub use pull::{PullOptions, Pulled};
pub use push::{PushOptions, Pushed, login, logout, verify_login};
pub use remote::{Remote, describe, search};
pub use remove::{ImageUser, Pruned};
pub use store::{Image, ImageStore};
pub use unpack::{Compression, decompress};
