//! The files of a microVM: asked of its guest's agent while it runs, else of its machine started for the purpose.

use super::disk;
use crate::mounts::Kind;
use crate::recover::Liveness;
use crate::store::Container;
use crate::volumes::Marks;
use crate::{Engine, EngineError, Result};
use rootfs::{PathStat, RootfsError};
use sandbox::boot::shown;
use sandbox::files::FilesError;
use sandbox::hull::{Hull, HullError};
use sandbox::vm::{Appliance, Files, Order, VmHull};
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use sys::file::Lock;
use types::{ContainerId, Kinded, Status, VolumePlan};

/// The hidden verb by which the binary becomes an appliance's process.
const VERB: &str = "appliance";
/// How many times its size a layer's file may hold: the best that its compression does on files that people have.
const COMPRESSION: u64 = 32;

/// Whose files a machine serves that was started for them: the container's own changes if `None`, else a part of a volume.
pub(crate) type Of<'a> = Option<&'a Part>;

/// A part of a volume that is a disk, and that this host's kernel does not mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The volume.
    pub plan: VolumePlan,
    /// A path beneath it; all of it if empty.
    pub path: String,
}

/// The microVM to whose files several things are done, and its machine once that was needed.
pub(crate) struct Kept {
    id: ContainerId,
    machine: Option<Machine>,
}

/// A machine that was started for files.
struct Machine {
    of: Option<Part>,
    appliance: Appliance,
    process: Child,
}

impl Machine {
    /// What was written is on the disk when this returns.
    fn end(self) -> Result<()> {
        let ended = self.appliance.end().map_err(|e| refused(&e));
        // It has let go of the lock when it has ended.
        wait(self.process, ended.is_ok());
        ended
    }
}

/// That no workload runs in a container, as long as this lives or, of a microVM whose machine was started for its files, that
/// machine does.
pub(crate) struct Rest {
    _lock: Option<Lock>,
}

impl From<Lock> for Rest {
    fn from(lock: Lock) -> Self {
        Self { _lock: Some(lock) }
    }
}

impl Engine {
    /// Calls `work` with the files of a microVM, whether it runs or not; in between nobody else can start it.
    pub(crate) fn with_guest<T, E: From<EngineError>>(
        &self,
        container: &Container,
        work: impl FnOnce(&Files) -> Result<T, E>,
    ) -> Result<T, E> {
        self.with_guest_of(container, None, work)
    }

    /// The same; of one that does not run, with those files.
    pub(crate) fn with_guest_of<T, E: From<EngineError>>(
        &self,
        container: &Container,
        of: Of<'_>,
        work: impl FnOnce(&Files) -> Result<T, E>,
    ) -> Result<T, E> {
        let files = Files::of(&self.paths.sandbox_run(&container.id), self.stream_limit(container)?);
        if self.still_serves(container, of)? {
            return work(&files);
        }
        match self.settled(container)? {
            Liveness::Supervised(state) if state.status == Status::Paused => {
                Err(EngineError::Conflict(format!(
                    "{} is paused, and a paused microVM cannot show its files: unpause it first",
                    container.name
                ))
                .into())
            }
            Liveness::Supervised(state) if state.pid > 0 => work(&files),
            Liveness::Supervised(_) => Err(EngineError::Conflict(format!(
                "container {} is restarting, wait until the container is running",
                container.name
            ))
            .into()),
            Liveness::Ended(_, lock) => {
                let machine = self.appliance(container, of, lock)?;
                let Some(machine) = self.keep(container, machine) else { return work(&files) };
                let done = work(&files);
                let ended = machine.end();
                let done = done?;
                ended?;
                Ok(done)
            }
        }
    }

    /// Whether the machine that is kept serves these files. One that serves others ends.
    fn still_serves(&self, container: &Container, of: Of<'_>) -> Result<bool> {
        let mut kept = self.kept.borrow_mut();
        let Some(kept) = kept.as_mut().filter(|kept| kept.id == container.id) else { return Ok(false) };
        match kept.machine.take() {
            Some(machine) if machine.of.as_ref() == of => {
                kept.machine = Some(machine);
                Ok(true)
            }
            Some(other) => other.end().map(|()| false),
            None => Ok(false),
        }
    }

    /// Keeps a machine for what else is done to its files; gives it back where nothing is.
    fn keep(&self, container: &Container, machine: Machine) -> Option<Machine> {
        match self.kept.borrow_mut().as_mut().filter(|kept| kept.id == container.id) {
            Some(kept) => kept.machine.replace(machine),
            None => Some(machine),
        }
    }

    /// Whether no workload runs in a microVM; its machine may be started for its files.
    pub(crate) fn rest(&self, container: &Container) -> Result<Option<Rest>> {
        let kept = self.kept.borrow().as_ref().is_some_and(|k| k.id == container.id && k.machine.is_some());
        if kept {
            return Ok(Some(Rest { _lock: None }));
        }
        match self.settled(container)? {
            Liveness::Ended(_, lock) => Ok(Some(lock.into())),
            Liveness::Supervised(_) => Ok(None),
        }
    }

    /// Does several things to the files of one container, for which the machine of a microVM that does not run is started but
    /// once, unless they lie on several disks.
    pub fn with_files<T, E: From<EngineError>>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let container = self.find(name)?;
        if !container.is_vm() {
            return work();
        }
        self.kept.replace(Some(Kept { id: container.id, machine: None }));
        let done = work();
        let machine = self.kept.replace(None).and_then(|kept| kept.machine);
        let ended = machine.map_or(Ok(()), Machine::end);
        let done = done?;
        ended?;
        Ok(done)
    }

    /// Starts the machine of a microVM for files.
    fn appliance(&self, container: &Container, of: Of<'_>, lock: Lock) -> Result<Machine> {
        let rootfs = self.rootfs_plan(container)?;
        let plan = self.machine_plan(container)?;
        let mut plan = plan.ok_or_else(|| EngineError::Invalid("only a microVM has a machine".into()))?;
        let mut marks = Marks::default();
        if let Some(of) = of {
            self.admit_disks(container, std::slice::from_ref(&of.plan), &mut marks)?;
            plan.volumes = vec![of.plan.clone()];
        }
        let order = Order {
            id: container.id.to_string(),
            plan,
            part: of.map(|of| of.path.clone()).unwrap_or_default(),
            layers: rootfs.layers.into_iter().map(|l| l.path).collect(),
            cgroup: self.cgroup(container)?,
            run: self.paths.sandbox_run(&container.id),
        };
        let io = |e| EngineError::io("cannot start the microVM of", container.name.as_ref())(e);
        let (ours, theirs) = UnixStream::pair().map_err(io)?;
        let exe = sys::exe::self_exe_sealed().map_err(io)?;
        let process = Command::new(format!("/proc/self/fd/{}", exe.as_raw_fd()))
            .arg0("dhow")
            .arg(VERB)
            .env_clear()
            // A terminal's Ctrl-C is the command's, and ends this by that.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // Held on beyond the command's own death, until the machine has ended.
            .stdout(Stdio::from(OwnedFd::from(lock)))
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .map_err(io)?;
        match Appliance::start(ours, &order) {
            Ok(appliance) => Ok(Machine { of: of.cloned(), appliance, process }),
            Err(e) => {
                wait(process, false);
                self.take_back(container, marks);
                Err(refused(&e))
            }
        }
    }

    /// Ends what a killed appliance may have left of a machine. The container's lock is held.
    pub(super) fn clean_machine(&self, container: &Container) -> Result<()> {
        VmHull.clean(container.id.as_str(), &self.cgroup(container)?).map_err(|e| refused(&e))
    }

    /// More than one stream of its files can hold, unless they have more holes than content.
    fn stream_limit(&self, container: &Container) -> Result<u64> {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
        let layers: u64 = self.rootfs_plan(container)?.layers.iter().map(|l| size(&l.path)).sum();
        let volumes = container.mounts.iter().filter(|m| m.kind == Kind::Volume);
        let volumes: u64 = volumes.map(|m| size(&self.disk_file(&m.volume))).sum();
        let disk = size(&self.disk_path(container)).max(disk::DEFAULT_SIZE).saturating_add(volumes);
        let memory = u64::try_from(container.host.memory.unwrap_or(0)).unwrap_or(0).max(1 << 30);
        // Names and padding take as much again.
        Ok(disk.saturating_mul(2).saturating_add(layers.saturating_mul(COMPRESSION)).saturating_add(memory))
    }
}

/// What it had to say, it said on its socket; one that did not may hang, and its machine ends with it.
fn wait(mut process: Child, well: bool) {
    if !well {
        let _ = process.kill();
    }
    let _ = process.wait();
}

fn refused(e: &HullError) -> EngineError {
    EngineError::Inside { kind: e.kind(), message: shown(&e.to_string()) }
}

/// The appliance's `main`: its socket is descriptor 0, the lock descriptor 1. Returns the exit code.
pub fn appliance(_args: &[OsString]) -> i32 {
    use std::os::fd::AsFd;
    // Above the standard ones, which would stay open in the machine's monitor: the lock is not to live as long as that.
    let duplicate = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
    let (Ok(socket), Ok(_lock)) = (duplicate(std::io::stdin().as_fd()), duplicate(std::io::stdout().as_fd()))
    else {
        return 1;
    };
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    if !null.is_ok_and(|null| sys::process::set_stdio([null.as_fd(); 3]).is_ok()) {
        return 1;
    }
    let _ = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    sandbox::vm::serve(UnixStream::from(socket)).map_or(1, |()| 0)
}

impl From<FilesError> for EngineError {
    fn from(e: FilesError) -> Self {
        match e {
            FilesError::Output(source) => RootfsError::Output { source }.into(),
            FilesError::Input(source) => RootfsError::Tar { source }.into(),
            e => Self::Inside { kind: e.kind(), message: shown(&e.to_string()) },
        }
    }
}

/// What a guest says of a path that this host asked for: the name is ours.
pub(crate) fn path_stat(path: &Path, stat: sandbox::files::Stat) -> PathStat {
    PathStat {
        name: path.file_name().map_or_else(|| "/".into(), |n| n.to_string_lossy().into_owned()),
        size: stat.size,
        mode: stat.mode,
        mtime_ns: stat.mtime_ns,
        link_target: stat.link_target,
    }
}

/// The columns of `ps -ef`, and what a guest's processes are in them.
pub(crate) fn top(list: sandbox::files::Processes) -> types::docker::ContainerTopResponse {
    let titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned);
    let processes = list.into_iter().map(|row| row.map(|text| shown(&text).replace('\n', "?")).to_vec());
    types::docker::ContainerTopResponse {
        titles: Some(titles.to_vec()),
        processes: Some(processes.collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_does_not_reach_the_terminal_raw() {
        assert_eq!(shown("a\x1b[31mb\u{9b}c\nd"), "a?[31mb?c\nd");
        assert_eq!(shown(&"x".repeat(5000)).len(), 1024);
        let row = ["root", "1", "0", "0", "10:00", "?", "00:00:00", "a\x1b\nb"].map(str::to_owned);
        let shown = top(vec![row]).processes.unwrap();
        assert_eq!(shown[0][7], "a??b");
    }

    #[test]
    fn a_guest_names_no_path() {
        let stat = sandbox::files::Stat { size: 1, mode: 0, mtime_ns: 0, link_target: String::new() };
        assert_eq!(path_stat(Path::new("/etc/passwd"), stat.clone()).name, "passwd");
        assert_eq!(path_stat(Path::new("/"), stat).name, "/");
    }
}
