//! Command-line arguments: a pure step from words to values. Nothing here opens a file or asks the system anything,
//! but for [`resolve`], the second step, which does just that.

pub mod container;
pub mod lists;
pub mod machine;
pub mod moments;
pub mod mounts;
pub mod network;
pub mod ports;
pub mod request;
pub mod resolve;
pub mod values;

/// For the tests of this module's children.
#[cfg(test)]
pub mod testing {
    use super::container::ContainerFlags;
    use crate::cli::verb::{self, Flags};

    #[derive(clap::Args, Debug)]
    struct Probe {
        #[command(flatten)]
        flags: ContainerFlags,
    }

    /// Flags and positional arguments of a `run` line.
    pub fn flags(args: &[&str]) -> (ContainerFlags, Vec<String>) {
        let command = verb::finish(<Probe as clap::Args>::augment_args(clap::Command::new("run")), true);
        let mut matches = command.try_get_matches_from(std::iter::once(&"run").chain(args)).unwrap();
        let rest = verb::positional(&mut matches);
        (<Probe as Flags>::from_matches(&mut matches).unwrap().flags, rest)
    }
}
