//! The soft limit of open files (getrlimit(2), `RLIMIT_NOFILE`): raised for a server's own use, and not handed on to what it
//! starts for others.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::OnceLock;

/// What it was before [`raise_open_files`].
static BEFORE: OnceLock<Option<u64>> = OnceLock::new();

/// Raises it as far as it goes, and answers what it is then; none is no limit.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let _ = BEFORE.set(limit.current);
    set_open_files(limit.maximum);
    getrlimit(Resource::Nofile).current
}

/// What it was before this process raised it; none where it did not, or where there was none.
pub fn open_files_before() -> Option<u64> {
    BEFORE.get().copied().flatten()
}

/// Sets it for this process and those that it starts. What is not granted is left as it is.
pub fn set_open_files(current: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_raised_can_be_put_back() {
        let before = getrlimit(Resource::Nofile);
        let raised = raise_open_files();
        assert!(raised == before.maximum || raised == before.current);
        assert_eq!(open_files_before(), before.current);
        set_open_files(open_files_before());
        assert_eq!(getrlimit(Resource::Nofile), before);
    }
}
