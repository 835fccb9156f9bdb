//! The mark of a disk that a guest may have written: put onto it before the guest's machine starts, and taken back where
//! that never came to write. Who is killed in between leaves the mark, and so is whatever cannot be made sure of: a mark too
//! many costs a container its volume, one too few this host's kernel a look at what a guest has made.
//!
//! ```text
//! start: note ─► (machine) ─► it runs, or it has written: the mark stays
//!                        └──► it failed, nobody else has the disk, nothing was written: taken back
//! ```

use super::{disk, place};
use crate::store::Container;
use crate::{Engine, EngineError, Result};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};
use types::{ContainerId, VolumePlan};

/// How long a supervisor may take from its last word to its end.
const GOING: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(5);

/// The marks that one start has put onto disks.
#[derive(Debug, Default)]
pub(crate) struct Marks(Vec<Mark>);

#[derive(Debug)]
struct Mark {
    plan: VolumePlan,
    /// Of the file, before.
    changed: Changed,
}

/// When a file was last changed, by whatever means: nobody can set it.
type Changed = (i64, i64);

fn changed(path: &Path) -> Result<Changed> {
    let found = std::fs::metadata(path).map_err(EngineError::io("cannot look at the disk", path))?;
    Ok((found.ctime(), found.ctime_nsec()))
}

impl Engine {
    /// Notes that a guest is about to write on a disk, whose file this is; survives the loss of power before the first
    /// write can.
    pub(super) fn note_foreign(&self, plan: &VolumePlan, file: &Path, marks: &mut Marks) -> Result<()> {
        // Whoever takes one back comes before or after, and sees who is about to use it.
        let quiet = place::quiet(&plan.place)?;
        let path = disk::mark(file);
        if !path.exists() {
            let mark = Mark { plan: plan.clone(), changed: changed(file)? };
            sys::file::replace(&path, b"", true).map_err(EngineError::io("cannot write", &path))?;
            marks.0.push(mark);
        }
        drop(quiet);
        place::clear(&plan.place)
    }

    /// Takes back the marks of a start that has failed, where no guest has written.
    pub(crate) fn take_back(&self, container: &Container, marks: Marks) {
        for mark in marks.0 {
            // Else it stays.
            let _ = self.take_mark(container, &mark);
            let _ = place::clear(&mark.plan.place);
        }
    }

    fn take_mark(&self, container: &Container, mark: &Mark) -> Result<()> {
        let Some(file) = mark.plan.disk() else { return Ok(()) };
        let begun = Instant::now();
        // Its supervisor has said why it failed, and is on its way out.
        while self.is_held(&container.id) {
            if begun.elapsed() > GOING {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        let _quiet = place::quiet(&mark.plan.place)?;
        for user in self.volume_users(&mark.plan.name)? {
            if ContainerId::parse(&user).is_ok_and(|user| self.is_held(&user)) {
                return Ok(());
            }
        }
        let _alone = place::lock_disk(&mark.plan.name, file, false)?;
        if changed(file)? == mark.changed {
            let path = disk::mark(file);
            std::fs::remove_file(&path).map_err(EngineError::io("cannot remove", &path))?;
        }
        Ok(())
    }
}
