//! A created or running microVM, seen from the host.

use super::limiting::Limiting;
use super::pending::{Awaited, End};
use super::question::Question;
use crate::client::ClientError;
use crate::container::running::Container;
use crate::container::step::Step;
use crate::container::wire::Word;
use crate::hull::{ExecChild, ExecRequest, ExitStatus, HullError, Pending, Sandbox, Stats, Wiring};
use crate::protocol::{Request, Response};
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;
use types::{Attachment, oci};

/// How long a guest may take to start a workload that it has prepared.
pub(super) const START_WAIT: Duration = Duration::from_secs(60);
/// How long it may take to write its disks out once its workload is killed.
const GRACE: Duration = Duration::from_secs(10);
/// In the machine's directory: why it ended, if nobody told an exit code.
pub(super) const END: &str = "end";
/// Most bytes of that.
const MAX_REASON: u64 = 4096;

/// A microVM. What the host can do to it is done to the monitor and its cgroup, as to a container; what only the guest
/// can do is asked of its agent.
#[derive(Debug)]
pub(super) struct MicroVm {
    host: Container,
    dir: PathBuf,
}

impl From<ClientError> for HullError {
    fn from(e: ClientError) -> Self {
        match e {
            ClientError::Refused(failure) => crate::boot::refused(failure),
            // A parser's error has the guest's own words in it.
            e => {
                let why = crate::boot::shown(&e.to_string());
                Self::Unsupported(format!("the guest's agent does not answer: {why}"))
            }
        }
    }
}

impl MicroVm {
    pub(super) fn new(host: Container, dir: PathBuf) -> Self {
        Self { host, dir }
    }

    /// Has the guest start its workload.
    pub(super) fn order_start(&mut self) -> Result<Awaited, HullError> {
        let wire = self.host.take_wire()?;
        // Of one that has ended already, the closed wire is no good sign.
        let end = if wire.say(Word::Start).is_ok() { End::Closed } else { End::Ready };
        let late =
            format!("the microVM's guest did not start its workload within {} s", START_WAIT.as_secs());
        Awaited::new(wire, self.host.pidfd(), end, START_WAIT, late).step(|| "duplicate a descriptor".into())
    }
}

impl Sandbox for MicroVm {
    fn pid(&self) -> i32 {
        self.host.pid()
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.host.pidfd()
    }

    fn start(&mut self) -> Result<Option<Box<dyn Pending>>, HullError> {
        Ok(Some(Box::new(self.order_start()?)))
    }

    fn ask(&self, request: &Request) -> Result<Option<Box<dyn Pending<Response>>>, HullError> {
        Ok(match request {
            Request::Update { resources: Some(wanted), .. } => {
                Some(Box::new(Limiting::begin(&self.dir, &self.host, wanted)?))
            }
            Request::Update { .. } => None,
            _ => Some(Box::new(Question::new(&self.dir, request)?)),
        })
    }

    /// The guest's process has got it.
    fn signal(&self, _: i32) -> Result<(), HullError> {
        Ok(())
    }

    fn kill_all(&self) -> Result<(), HullError> {
        self.host.kill_all()
    }

    fn pause(&self) -> Result<(), HullError> {
        self.host.pause()
    }

    fn resume(&self) -> Result<(), HullError> {
        self.host.resume()
    }

    /// Machine and guest have them.
    fn update(&self, _: &oci::LinuxResources) -> Result<(), HullError> {
        Ok(())
    }

    fn connect(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError> {
        // Last, as it says to a supervisor that adopts that all is done.
        Ok(wiring.connect(attachment, None)?)
    }

    /// The guest has done it.
    fn reconfigure(&mut self, _: &Attachment, _: &mut dyn Wiring) -> Result<(), HullError> {
        Ok(())
    }

    fn disconnect(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError> {
        Ok(wiring.disconnect(attachment, None)?)
    }

    /// What the host pays; of what runs inside the guest tells.
    fn stats(&self) -> Result<Stats, HullError> {
        Ok(self.host.stats()?.with_guest(Stats::default()))
    }

    /// They are the guest's.
    fn processes(&self) -> Result<Vec<i32>, HullError> {
        Ok(Vec::new())
    }

    fn exec(&mut self, request: ExecRequest<'_>) -> Result<ExecChild, HullError> {
        super::exec::exec(&self.dir, self.host.cgroup_path(), &request)
    }

    fn grace(&self) -> Option<Duration> {
        Some(GRACE)
    }

    fn end_reason(&self) -> Option<String> {
        let read = || -> Option<String> {
            let mut text = String::new();
            let file = std::fs::File::open(self.dir.join(END)).ok()?;
            file.take(MAX_REASON).read_to_string(&mut text).ok()?;
            Some(text)
        };
        // Also of an end that was told: files may be missing after it.
        read().or_else(|| super::trouble::told(&self.dir))
    }

    fn oom_kills(&self) -> u64 {
        // The host's, of the hypervisor; and the guest's, known at the end.
        self.host.oom_kills() + u64::from(self.dir.join(super::monitor::OOM).exists())
    }

    fn oom_notifier(&self) -> Option<BorrowedFd<'_>> {
        self.host.oom_notifier()
    }

    fn wait(&mut self) -> Result<ExitStatus, HullError> {
        Ok(match self.host.wait()? {
            ExitStatus::Unknown => {
                let told = std::fs::read_to_string(self.dir.join(super::monitor::CODE)).ok();
                told.and_then(|code| code.parse::<u8>().ok())
                    .map_or(ExitStatus::Unknown, |code| ExitStatus::Exited(code.into()))
            }
            known => known,
        })
    }

    /// The memory of a hypervisor takes its time to go.
    fn end_rest(&mut self) -> Result<(), HullError> {
        self.host.kill_all()
    }

    fn destroy(&mut self) -> Result<(), HullError> {
        self.host.destroy()
    }
}
