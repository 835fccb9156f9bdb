//! Mount options of the specification, as mount(8) names them, in the kernel's terms.

use std::path::PathBuf;
use sys::mount::{Change, attr, propagation};

/// The options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Attributes of the mount itself.
    pub change: Change,
    /// Attributes of the mount and of all below it (`rro` and its kin).
    pub recursive: Change,
    /// Propagation, and whether it goes for all below.
    pub propagation: Option<(u64, bool)>,
    /// A bind mount, and whether all below the source comes along.
    pub bind: Option<bool>,
    /// Whether user ids are translated, and those of all below the source too.
    pub idmap: Option<bool>,
    /// The part of the source that is bound, a path beneath it.
    pub subpath: Option<PathBuf>,
    /// What the filesystem itself is told.
    pub data: Vec<String>,
}

/// A word that sets an attribute bit, and the one that clears it.
const BITS: [(&str, &str, u64); 6] = [
    ("ro", "rw", attr::RDONLY),
    ("nosuid", "suid", attr::NOSUID),
    ("nodev", "dev", attr::NODEV),
    ("noexec", "exec", attr::NOEXEC),
    ("nodiratime", "diratime", attr::NODIRATIME),
    ("nosymfollow", "symfollow", attr::NOSYMFOLLOW),
];

impl Options {
    pub(crate) fn parse(words: &[String]) -> Self {
        let mut options = Self::default();
        for word in words {
            options.take(word);
        }
        options
    }

    /// Whether the mount is to be read-only in the end.
    pub(crate) fn readonly(&self) -> bool {
        (self.change.set | self.recursive.set) & attr::RDONLY != 0
    }

    fn take(&mut self, word: &str) {
        match word {
            "" | "defaults" | "async" | "auto" | "nouser" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "private" | "rprivate" => self.propagate(propagation::PRIVATE, word),
            "slave" | "rslave" => self.propagate(propagation::SLAVE, word),
            "shared" | "rshared" => self.propagate(propagation::SHARED, word),
            "unbindable" | "runbindable" => self.propagate(propagation::UNBINDABLE, word),
            _ if attribute(&mut self.change, word) => {}
            _ if word.strip_prefix('r').is_some_and(|w| attribute(&mut self.recursive, w)) => {}
            _ => match word.strip_prefix(types::SUBPATH) {
                Some(path) => self.subpath = Some(path.into()),
                None => self.data.push(word.to_owned()),
            },
        }
    }

    fn propagate(&mut self, to: u64, word: &str) {
        self.propagation = Some((to, word.starts_with('r')));
    }
}

fn attribute(change: &mut Change, word: &str) -> bool {
    for (set, clear, bit) in BITS {
        if word == set {
            change.set |= bit;
            change.clear &= !bit;
            return true;
        }
        if word == clear {
            change.clear |= bit;
            change.set &= !bit;
            return true;
        }
    }
    let atime = match word {
        "noatime" => attr::NOATIME,
        "strictatime" | "norelatime" => attr::STRICTATIME,
        "relatime" | "atime" | "nostrictatime" => 0,
        _ => return false,
    };
    // The kernel wants the whole field cleared when any of its values is set.
    change.clear |= attr::ATIME;
    change.set = change.set & !attr::ATIME | atime;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(words: &[&str]) -> Options {
        Options::parse(&words.iter().map(|w| w.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_bits() {
        let o = parse(&["rbind", "ro", "nosuid", "rslave", "rnodev", "size=64k", "rw", "dhow.subpath=a/b"]);
        assert_eq!(o.subpath, Some("a/b".into()));
        assert_eq!(o.bind, Some(true));
        assert_eq!(o.change, Change { set: attr::NOSUID, clear: attr::RDONLY, propagation: 0 });
        assert_eq!(o.recursive.set, attr::NODEV);
        assert_eq!(o.propagation, Some((propagation::SLAVE, true)));
        assert_eq!(o.data, ["size=64k"]);
        assert!(parse(&["rro"]).readonly());
        let times = parse(&["noatime", "strictatime"]).change;
        assert_eq!((times.set, times.clear), (attr::STRICTATIME, attr::ATIME));
    }

    proptest! {
        #[test]
        fn no_bit_is_both_set_and_cleared(words in proptest::collection::vec("r?(ro|rw|nosuid|suid|noexec|exec|dev|nodev|x)", 0..9)) {
            let o = Options::parse(&words);
            prop_assert_eq!(o.change.set & o.change.clear, 0);
            prop_assert_eq!(o.recursive.set & o.recursive.clear, 0);
        }
    }
}
