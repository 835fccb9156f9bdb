//! The list of all verbs.

use super::verb::Verb;
use crate::verbs::{
    archive, attach, compare, completion, cp, doctor, events, images, inspect, kernel, lifecycle, logs, look,
    network, ps, registry, run, serve, stats, system, update, volume,
};

/// Those that the overview shows first.
pub const COMMON: [&str; 10] =
    ["run", "exec", "ps", "pull", "push", "images", "login", "logout", "version", "info"];

/// First words of two-word verbs.
pub const GROUPS: &[(&str, &str)] = &[
    ("container", "Manage containers"),
    ("image", "Manage images"),
    ("kernel", "Manage kernels of microVMs"),
    ("network", "Manage networks"),
    ("system", "Manage Dhow"),
    ("volume", "Manage volumes"),
];

const CONTAINERS: &str = "[OPTIONS] CONTAINER [CONTAINER...]";
const MANY: (usize, Option<usize>) = (1, None);
const NONE: (usize, Option<usize>) = (0, Some(0));
const ONE: (usize, Option<usize>) = (1, Some(1));

/// Every verb.
pub const VERBS: &[Verb] = &[
    Verb::new::<run::Run>(
        &["run", "container run"],
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        MANY,
        "Create and run a new container from an image",
    )
    .takes_command()
    .fails_apart(),
    Verb::new::<run::Create>(
        &["create", "container create"],
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        MANY,
        "Create a new container",
    )
    .takes_command()
    .fails_apart(),
    Verb::new::<attach::Exec>(
        &["exec", "container exec"],
        "[OPTIONS] CONTAINER COMMAND [ARG...]",
        (2, None),
        "Execute a command in a running container",
    )
    .takes_command(),
    Verb::new::<attach::Start>(
        &["start", "container start"],
        CONTAINERS,
        MANY,
        "Start one or more stopped containers",
    ),
    Verb::new::<attach::Attach>(
        &["attach", "container attach"],
        "[OPTIONS] CONTAINER",
        ONE,
        "Attach local standard input, output, and error streams to a running container",
    ),
    Verb::new::<lifecycle::Stop>(
        &["stop", "container stop"],
        CONTAINERS,
        MANY,
        "Stop one or more running containers",
    ),
    Verb::new::<lifecycle::Restart>(
        &["restart", "container restart"],
        CONTAINERS,
        MANY,
        "Restart one or more containers",
    ),
    Verb::new::<lifecycle::Kill>(
        &["kill", "container kill"],
        CONTAINERS,
        MANY,
        "Kill one or more running containers",
    ),
    Verb::new::<lifecycle::Pause>(
        &["pause", "container pause"],
        "CONTAINER [CONTAINER...]",
        MANY,
        "Pause all processes within one or more containers",
    ),
    Verb::new::<lifecycle::Unpause>(
        &["unpause", "container unpause"],
        "CONTAINER [CONTAINER...]",
        MANY,
        "Unpause all processes within one or more containers",
    ),
    Verb::new::<lifecycle::Wait>(
        &["wait", "container wait"],
        "CONTAINER [CONTAINER...]",
        MANY,
        "Block until one or more containers stop, then print their exit codes",
    ),
    Verb::new::<lifecycle::Rename>(
        &["rename", "container rename"],
        "CONTAINER NEW_NAME",
        (2, Some(2)),
        "Rename a container",
    ),
    Verb::new::<lifecycle::Remove>(
        &["rm", "container rm", "container remove"],
        CONTAINERS,
        MANY,
        "Remove one or more containers",
    ),
    Verb::new::<lifecycle::Prune>(&["container prune"], "[OPTIONS]", NONE, "Remove all stopped containers"),
    Verb::new::<ps::Ps>(
        &["ps", "container ls", "container list", "container ps"],
        "[OPTIONS]",
        NONE,
        "List containers",
    ),
    Verb::new::<logs::Logs>(
        &["logs", "container logs"],
        "[OPTIONS] CONTAINER",
        ONE,
        "Fetch the logs of a container",
    ),
    Verb::new::<stats::Stats>(
        &["stats", "container stats"],
        "[OPTIONS] [CONTAINER...]",
        (0, None),
        "Display a live stream of container(s) resource usage statistics",
    ),
    Verb::new::<look::Top>(
        &["top", "container top"],
        "CONTAINER [ps OPTIONS]",
        MANY,
        "Display the running processes of a container",
    )
    .takes_command(),
    Verb::new::<look::Diff>(
        &["diff", "container diff"],
        "CONTAINER",
        ONE,
        "Inspect changes to files or directories on a container's filesystem",
    ),
    Verb::new::<look::Port>(
        &["port", "container port"],
        "CONTAINER [PRIVATE_PORT[/PROTO]]",
        (1, Some(2)),
        "List port mappings or a specific mapping for the container",
    ),
    Verb::new::<look::Export>(
        &["export", "container export"],
        "[OPTIONS] CONTAINER",
        ONE,
        "Export a container's filesystem as a tar archive",
    ),
    Verb::new::<look::Commit>(
        &["commit", "container commit"],
        "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
        (1, Some(2)),
        "Create a new image from a container's changes",
    ),
    Verb::new::<cp::Copy>(
        &["cp", "container cp"],
        "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\tdhow cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
        (2, Some(2)),
        "Copy files/folders between a container and the local filesystem",
    ),
    Verb::new::<update::Update>(
        &["update", "container update"],
        CONTAINERS,
        MANY,
        "Update configuration of one or more containers",
    ),
    Verb::new::<inspect::Inspect>(
        &["inspect"],
        "[OPTIONS] NAME|ID [NAME|ID...]",
        MANY,
        "Return low-level information on containers, images, networks and volumes",
    ),
    Verb::new::<inspect::Container>(
        &["container inspect"],
        CONTAINERS,
        MANY,
        "Display detailed information on one or more containers",
    ),
    Verb::new::<inspect::Image>(
        &["image inspect"],
        "[OPTIONS] IMAGE [IMAGE...]",
        MANY,
        "Display detailed information on one or more images",
    ),
    Verb::new::<registry::Pull>(
        &["pull", "image pull"],
        "[OPTIONS] NAME[:TAG|@DIGEST]",
        ONE,
        "Download an image from a registry",
    ),
    Verb::new::<registry::Push>(
        &["push", "image push"],
        "[OPTIONS] NAME[:TAG]",
        ONE,
        "Upload an image to a registry",
    ),
    Verb::new::<registry::Login>(
        &["login"],
        "[OPTIONS] [SERVER]",
        (0, Some(1)),
        "Authenticate to a registry",
    ),
    Verb::new::<registry::Logout>(&["logout"], "[SERVER]", (0, Some(1)), "Log out from a registry"),
    Verb::new::<images::Images>(
        &["images", "image ls", "image list"],
        "[OPTIONS] [REPOSITORY[:TAG]]",
        (0, Some(1)),
        "List images",
    ),
    Verb::new::<images::Remove>(
        &["rmi", "image rm", "image remove"],
        "[OPTIONS] IMAGE [IMAGE...]",
        MANY,
        "Remove one or more images",
    ),
    Verb::new::<images::Tag>(
        &["tag", "image tag"],
        "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
        (2, Some(2)),
        "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE",
    ),
    Verb::new::<images::History>(
        &["history", "image history"],
        "[OPTIONS] IMAGE",
        ONE,
        "Show the history of an image",
    ),
    Verb::new::<images::Prune>(&["image prune"], "[OPTIONS]", NONE, "Remove unused images"),
    Verb::new::<archive::Save>(
        &["save", "image save"],
        "[OPTIONS] IMAGE [IMAGE...]",
        MANY,
        "Save one or more images to a tar archive (streamed to STDOUT by default)",
    ),
    Verb::new::<archive::Load>(
        &["load", "image load"],
        "[OPTIONS]",
        NONE,
        "Load an image from a tar archive or STDIN",
    ),
    Verb::new::<archive::Import>(
        &["import", "image import"],
        "[OPTIONS] file|- [REPOSITORY[:TAG]]",
        (1, Some(2)),
        "Import the contents from a tarball to create a filesystem image",
    ),
    Verb::new::<events::Events>(
        &["events", "system events"],
        "[OPTIONS]",
        NONE,
        "Get real time events from all commands and supervisors",
    ),
    Verb::new::<system::Info>(&["info", "system info"], "[OPTIONS]", NONE, "Display system-wide information"),
    Verb::new::<serve::Serve>(&["serve"], "[OPTIONS]", NONE, "Serve the Docker Engine API at a socket"),
    Verb::new::<system::Version>(&["version"], "[OPTIONS]", NONE, "Show the Dhow version information"),
    Verb::new::<system::Df>(&["system df"], "[OPTIONS]", NONE, "Show disk usage"),
    Verb::new::<system::Recover>(
        &["system recover"],
        "[OPTIONS]",
        NONE,
        "Mend what a crash left: adopt, clean up, finish removals",
    ),
    Verb::new::<system::Reset>(
        &["system reset"],
        "[OPTIONS]",
        NONE,
        "Remove everything that this store has made, and the store",
    ),
    Verb::new::<system::Prune>(&["system prune"], "[OPTIONS]", NONE, "Remove unused data"),
    Verb::new::<network::Create>(&["network create"], "[OPTIONS] NETWORK", ONE, "Create a network"),
    Verb::new::<network::Connect>(
        &["network connect"],
        "[OPTIONS] NETWORK CONTAINER",
        (2, Some(2)),
        "Connect a container to a network",
    ),
    Verb::new::<network::Disconnect>(
        &["network disconnect"],
        "[OPTIONS] NETWORK CONTAINER",
        (2, Some(2)),
        "Disconnect a container from a network",
    ),
    Verb::new::<network::List>(&["network ls", "network list"], "[OPTIONS]", NONE, "List networks"),
    Verb::new::<network::Inspect>(
        &["network inspect"],
        "[OPTIONS] NETWORK [NETWORK...]",
        MANY,
        "Display detailed information on one or more networks",
    ),
    Verb::new::<network::Remove>(
        &["network rm", "network remove"],
        "[OPTIONS] NETWORK [NETWORK...]",
        MANY,
        "Remove one or more networks that no running container is on",
    ),
    Verb::new::<network::Prune>(
        &["network prune"],
        "[OPTIONS]",
        NONE,
        "Remove all networks that no container names",
    ),
    Verb::new::<network::Repair>(
        &["network repair"],
        "",
        NONE,
        "Make the bridges and the firewall's rules of all networks anew",
    ),
    Verb::new::<volume::Create>(&["volume create"], "[OPTIONS] [VOLUME]", (0, Some(1)), "Create a volume"),
    Verb::new::<volume::Export>(
        &["volume export"],
        "[OPTIONS] VOLUME",
        ONE,
        "Write a volume's files as a tar, or its disk as an image (streamed to STDOUT by default)",
    ),
    Verb::new::<volume::Import>(
        &["volume import"],
        "[OPTIONS] VOLUME [file|-]",
        (1, Some(2)),
        "Create a volume from a tar or a disk image",
    ),
    Verb::new::<volume::Clone>(
        &["volume clone"],
        "[OPTIONS] VOLUME NEW_VOLUME",
        (2, Some(2)),
        "Create a volume with what another one holds",
    ),
    Verb::new::<volume::Resize>(
        &["volume resize"],
        "VOLUME SIZE",
        (2, Some(2)),
        "Make a disk volume larger, also while it is in use",
    ),
    Verb::new::<volume::List>(&["volume ls", "volume list"], "[OPTIONS]", NONE, "List volumes"),
    Verb::new::<volume::Inspect>(
        &["volume inspect"],
        "[OPTIONS] VOLUME [VOLUME...]",
        MANY,
        "Display detailed information on one or more volumes",
    ),
    Verb::new::<volume::Remove>(
        &["volume rm", "volume remove"],
        "[OPTIONS] VOLUME [VOLUME...]",
        MANY,
        "Remove one or more volumes that no container uses",
    ),
    Verb::new::<volume::Prune>(&["volume prune"], "[OPTIONS]", NONE, "Remove unused local volumes"),
    Verb::new::<kernel::List>(&["kernel ls", "kernel list"], "[OPTIONS]", NONE, "List kernels"),
    Verb::new::<kernel::Install>(
        &["kernel install"],
        "[OPTIONS] [PACKAGE]",
        (0, Some(1)),
        "Install the distribution's kernel for microVMs",
    ),
    Verb::new::<kernel::Import>(
        &["kernel import"],
        "[OPTIONS] FILE",
        ONE,
        "Take a bzImage or vmlinux as a kernel for microVMs",
    ),
    Verb::new::<kernel::Use>(&["kernel use"], "KERNEL", ONE, "Choose the kernel that microVMs boot"),
    Verb::new::<kernel::Remove>(
        &["kernel rm", "kernel remove"],
        "KERNEL [KERNEL...]",
        MANY,
        "Remove one or more kernels",
    ),
    Verb::new::<doctor::Doctor>(
        &["doctor", "system doctor"],
        "[OPTIONS]",
        NONE,
        "Tell what this host can do for containers and microVMs, and what mends the rest",
    ),
    Verb::new::<compare::Compare>(
        &["compare"],
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        MANY,
        "Run the same workload in each hull and compare what was measured on this host",
    )
    .takes_command(),
    Verb::new::<completion::Completion>(
        &["completion"],
        "bash|zsh|fish",
        ONE,
        "Generate the completion script for a shell",
    ),
];

/// What the first words of a command line mean.
pub enum Found {
    /// A verb, and how many words name it.
    Verb(&'static Verb, usize),
    /// A group alone, or with a word that is no verb of it: its help.
    Group(String),
    /// `help`, and of what.
    Help(Vec<String>),
    /// Nothing; perhaps this was meant.
    Unknown(String, Option<&'static str>),
}

/// Finds the verb that `words` begin with.
pub fn find(words: &[String]) -> Found {
    let first = words.first().map(String::as_str).unwrap_or_default();
    if first == "help" {
        return Found::Help(words.get(1..).unwrap_or_default().to_vec());
    }
    if GROUPS.iter().any(|(g, _)| *g == first) {
        let second = match words.get(1).map(String::as_str) {
            None | Some("--help" | "-h" | "help") => {
                return super::help::group(first)
                    .map_or_else(|| Found::Unknown(first.into(), None), Found::Group);
            }
            Some(s) => s,
        };
        let both = format!("{first} {second}");
        return match VERBS.iter().find(|v| v.names.contains(&both.as_str())) {
            Some(v) => Found::Verb(v, 2),
            None => {
                let tip = closest(&both);
                Found::Unknown(both, tip)
            }
        };
    }
    match VERBS.iter().find(|v| v.names.contains(&first)) {
        Some(v) => Found::Verb(v, 1),
        None => Found::Unknown(first.to_owned(), closest(first)),
    }
}

fn closest(name: &str) -> Option<&'static str> {
    let all = VERBS.iter().flat_map(|v| v.names.iter().copied());
    let (distance, name) = all.map(|n| (strsim::damerau_levenshtein(n, name), n)).min()?;
    (distance <= 2).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(s: &str) -> Vec<String> {
        s.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn verbs_are_found_by_all_their_names() {
        for v in VERBS {
            for n in v.names {
                assert!(matches!(find(&words(n)), Found::Verb(f, _) if f.name() == v.name()), "{n}");
            }
            // Clap checks its own rules when a command is built.
            v.command().debug_assert();
        }
        crate::verbs::completion::tree().debug_assert();
    }

    #[test]
    fn a_slip_gets_a_tip() {
        assert!(matches!(find(&words("sotp")), Found::Unknown(_, Some("stop"))));
        assert!(matches!(find(&words("container lst")), Found::Unknown(_, Some(_))));
        assert!(matches!(find(&words("frobnicate")), Found::Unknown(_, None)));
        assert!(matches!(find(&words("container")), Found::Group(_)));
        assert!(matches!(find(&words("help run")), Found::Help(_)));
    }
}
