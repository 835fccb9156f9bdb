//! What callers ask of the engine. Shapes that Docker has a name for are Docker's.

use std::collections::BTreeMap;
use types::{Platform, docker};

/// When an image is fetched before a container is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// If it is not there.
    #[default]
    Missing,
    /// Always ask the registry for a newer one.
    Always,
    /// Never.
    Never,
}

/// A container to be created.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// Its name; one is made up if there is none.
    pub name: Option<String>,
    /// Image: reference, digest or id.
    pub image: String,
    /// Platform of the image.
    pub platform: Option<Platform>,
    /// When to fetch it.
    pub pull: PullPolicy,
    /// What to run.
    pub config: docker::ContainerConfig,
    /// How to run it.
    pub host: docker::HostConfig,
    /// What it wants of its networks, in the order of its interfaces. The one that `host.network_mode` names is the
    /// first, whether it is here or not; `default` stands for it.
    pub networks: Vec<(String, docker::EndpointSettings)>,
    /// Directories whose bind mounts are found beneath them anew at each start, whatever links lie there by then: for who
    /// must not get out of them.
    pub beneath: Vec<std::path::PathBuf>,
}

/// A created container.
#[derive(Clone, Debug)]
pub struct Created {
    /// Full id.
    pub id: types::ContainerId,
    /// Things the user should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Filters, as `--filter key=value` gives them: every key must match, by any of its values.
pub type Filters = BTreeMap<String, Vec<String>>;

/// What `list` is to show.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Ended ones too.
    pub all: bool,
    /// The latest so many, whatever their state.
    pub limit: Option<usize>,
    /// Measure the writable layers.
    pub size: bool,
    /// `id name label exited status ancestor before since volume network health publish expose is-task`.
    pub filters: Filters,
}

/// What `remove` may do.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveOptions {
    /// Kill it if it runs.
    pub force: bool,
    /// Its anonymous volumes too.
    pub volumes: bool,
}

/// A command to run in a container: Docker's `ExecConfig`, and what only a terminal knows.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// What names the session; made up if it has no name yet.
    pub id: Option<String>,
    /// Command, user, environment, directory, streams.
    pub config: docker::ExecConfig,
    /// Rows and columns.
    pub console_size: Option<(u16, u16)>,
    /// Do not wait for its end.
    pub detach: bool,
}

/// Which lines of a log to show.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions {
    /// From this time on, nanoseconds since the epoch.
    pub since_ns: Option<i64>,
    /// Until this time.
    pub until_ns: Option<i64>,
    /// The last so many lines.
    pub tail: Option<usize>,
    /// Go on until the container ends.
    pub follow: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// Which events to show.
#[derive(Clone, Debug, Default)]
pub struct EventOptions {
    /// From this time on, nanoseconds since the epoch; none begins now.
    pub since_ns: Option<i64>,
    /// Until this time; none goes on for ever.
    pub until_ns: Option<i64>,
    /// `container image volume network event type label`.
    pub filters: Filters,
}

/// What `commit` is to make.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// `repository[:tag]`.
    pub reference: Option<String>,
    /// What goes before the container's own configuration, field by field, as with `create` and an image's.
    pub config: docker::ContainerConfig,
    /// Dockerfile instructions, that go before both.
    pub changes: Vec<String>,
    /// Author.
    pub author: Option<String>,
    /// Message.
    pub message: Option<String>,
    /// Freeze the container meanwhile.
    pub pause: bool,
}

/// What a prune took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Full ids of containers.
    pub containers: Vec<String>,
    /// Images, as `rmi` prints them.
    pub images: Vec<String>,
    /// Volumes by name.
    pub volumes: Vec<String>,
    /// Networks by name.
    pub networks: Vec<String>,
    /// Bytes freed.
    pub reclaimed: u64,
}
