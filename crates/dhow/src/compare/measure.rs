//! Runs the workload in one hull, over the engine's own calls, and takes the times.
//!
//! ```text
//! embedded image ─► the hull works, is warm; its kernel ─► one run for memory and disk ─► the timed runs
//! ```
//!
//! The clock starts before the sandbox is created. Sandboxes remove themselves when they end, and are removed here
//! whatever comes between.

use super::http::Asking;
use super::{Figure, Hull, Metric, Plan, median, probe};
use crate::cli::failure::Failure;
use crate::stream::signals::Signals;
use engine::{CreateRequest, Engine, Footprint, Reach, RemoveOptions};
use rustix::event::{PollFd, PollFlags, poll};
use sandbox::client::{AttachOptions, Filled, Stream};
use sandbox::protocol::Frame;
use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use types::Hypervisor;
use types::docker::{ContainerConfig, EndpointSettings, HostConfig, PortBinding};

/// Longest wait for the embedded image: a microVM that is emulated on a busy host.
const PROBE_LIMIT: Duration = Duration::from_secs(120);
/// The port at which the embedded image serves.
const HELLO_PORT: u16 = 8080;
/// How often it is looked whether an answer came.
const TICK: Duration = Duration::from_millis(20);

/// In which the end of a workload that has no port any more is told.
const GRACE: Duration = Duration::from_secs(2);

/// Which wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This host's kernel.
    Container,
    /// A kernel of its own.
    Vm(Hypervisor),
}

impl Kind {
    /// Both, as this host carries them.
    pub fn both() -> [Self; 2] {
        [Self::Container, Self::Vm(engine::machine::virtualization().hypervisor())]
    }

    /// `container` or `microVM`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Vm(_) => "microVM",
        }
    }

    /// A hull of which nothing is known yet.
    pub fn unmeasured(self) -> Hull {
        Hull { name: self.name().into(), carrier: self.carrier().into(), ..Hull::default() }
    }

    fn carrier(self) -> &'static str {
        match self {
            Self::Container => "this host's kernel",
            Self::Vm(Hypervisor::Kvm) => "KVM",
            Self::Vm(Hypervisor::Qemu) => "QEMU, in software",
        }
    }
}

/// Why a run came to nothing.
enum Stopped {
    /// A signal asked us to end.
    Signal,
    /// Anything else.
    Failed(String),
}

impl<E: std::error::Error> From<E> for Stopped {
    fn from(e: E) -> Self {
        Self::Failed(e.to_string())
    }
}

/// Takes the figures.
pub struct Bench<'a> {
    /// The store.
    pub engine: &'a Engine,
    /// What ends us.
    pub signals: Signals,
    /// What this host does without any wall.
    pub host: probe::Speed,
    /// What is done now, for the user's eyes.
    pub told: &'a dyn Fn(&str),
}

/// One run to be made.
struct Run<'a> {
    image: &'a str,
    command: &'a [String],
    port: Option<u16>,
    limit: Duration,
    /// Memory and disk are read as soon as it says something, which costs time.
    weigh: bool,
}

/// What one run showed.
#[derive(Default)]
struct Seen {
    first_output: Option<f64>,
    first_answer: Option<f64>,
    exit: Option<(f64, i32)>,
    weight: Option<Footprint>,
    stdout: Vec<u8>,
}

/// A sandbox that is removed when this is dropped.
struct Sandbox<'a> {
    engine: &'a Engine,
    id: String,
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        // It may have removed itself.
        let _ = self.engine.remove(&self.id, RemoveOptions { force: true, volumes: true });
    }
}

impl<'a> Bench<'a> {
    /// Everything about one hull. Fails only when a signal ended it: what the hull cannot do is told in the result.
    pub fn hull(&mut self, plan: &Plan, kind: Kind) -> Result<Hull, Failure> {
        let mut hull = kind.unmeasured();
        match self.fill(plan, kind, &mut hull) {
            Ok(()) => Ok(hull),
            Err(Stopped::Failed(why)) => {
                hull.error = Some(why);
                Ok(hull)
            }
            Err(Stopped::Signal) => Err(Failure::coded("interrupted: what was started is removed", 130)),
        }
    }

    fn fill(&mut self, plan: &Plan, kind: Kind, hull: &mut Hull) -> Result<(), Stopped> {
        (self.told)(&format!("{}: warming up", kind.name()));
        hull.kernel = self.kernel(kind)?;
        let walls = self.walls(kind)?;
        // The embedded image ends by itself, and serves when asked to: both are measured.
        let hello = plan.image == image::HELLO && plan.command.is_empty() && plan.port.is_none();
        let serving = ["--http".to_owned(), HELLO_PORT.to_string()];
        let run = |command, port, weigh| Run { image: &plan.image, command, port, limit: plan.limit, weigh };
        let mut runs = Vec::new();
        if hello {
            runs.extend((0..plan.runs).map(|_| run(&[], None, false)));
            runs.extend((0..plan.runs).map(|_| run(&serving, Some(HELLO_PORT), false)));
        } else {
            if plan.port.is_none() {
                runs.push(run(&plan.command, None, true));
            }
            runs.extend((0..plan.runs).map(|_| run(&plan.command, plan.port, false)));
        }
        // Of the embedded image the run that ends is timed, not the one that serves.
        let timed = |run: &Run<'_>| !run.weigh && (!hello || run.port.is_none());
        let mut samples: BTreeMap<Metric, Vec<f64>> = BTreeMap::new();
        let count = runs.len();
        for (i, run) in runs.iter().enumerate() {
            (self.told)(&format!("{}: run {} of {count}", kind.name(), i + 1));
            let seen = self.one(run, kind)?;
            if let Some((_, code)) = seen.exit {
                hull.exit_code = Some(code);
            }
            let mut add = |metric, value: Option<f64>| samples.entry(metric).or_default().extend(value);
            if timed(run) {
                add(Metric::FirstOutput, seen.first_output);
                add(Metric::StartToExit, seen.exit.map(|(ms, _)| ms));
            }
            add(Metric::FirstAnswer, seen.first_answer);
            if let Some(w) = seen.weight {
                let all = w.supervisor + w.processes;
                add(Metric::Memory, Some(all as f64));
                add(Metric::MemoryBeyond, w.workload.map(|own| all.saturating_sub(own) as f64));
                add(Metric::Disk, Some(w.disk as f64));
            }
        }
        let figure = |(metric, samples): (Metric, Vec<f64>)| {
            Some(Figure { metric, median: median(&samples)?, samples })
        };
        hull.figures = samples.into_iter().filter_map(figure).collect();
        let fit = hull.median(Metric::Memory).zip(available()).map(|(one, all)| (all as f64 / one).floor());
        let once = fit.map(|n| (Metric::Fit, n)).into_iter().chain(walls);
        hull.figures.extend(once.map(|(metric, n)| Figure { metric, median: n, samples: vec![n] }));
        Ok(())
    }

    /// The kernel as the embedded image sees it.
    fn kernel(&mut self, kind: Kind) -> Result<Option<String>, Stopped> {
        let command = ["--json".to_owned()];
        let run =
            Run { image: image::HELLO, command: &command, port: None, limit: PROBE_LIMIT, weigh: false };
        let seen = self.one(&run, kind)?;
        let facts: serde_json::Value = serde_json::from_slice(&seen.stdout).unwrap_or_default();
        // `Linux 6.1.0 #1 SMP …`
        let kernel = facts.pointer("/where/kernel").and_then(|k| k.as_str()).unwrap_or_default();
        Ok(kernel.split(' ').nth(1).filter(|k| !k.is_empty()).map(str::to_owned))
    }

    /// What this kind of wall costs and keeps out, measured with the embedded image.
    fn walls(&mut self, kind: Kind) -> Result<Vec<(Metric, f64)>, Stopped> {
        if self.interrupted() {
            return Err(Stopped::Signal);
        }
        let serve = ["--http".to_owned(), HELLO_PORT.to_string()];
        let run = Run {
            image: image::HELLO,
            command: &serve,
            port: Some(HELLO_PORT),
            limit: PROBE_LIMIT,
            weigh: false,
        };
        let sandbox = self.begin(&run, kind)?.0;
        let address = self.published(&sandbox.id, HELLO_PORT)?;
        let mut asking = Asking::begin(address);
        let begun = Instant::now();
        while asking.answered().is_none() {
            if begun.elapsed() > PROBE_LIMIT {
                return Err(Stopped::Failed("the embedded image does not serve".into()));
            }
            std::thread::sleep(TICK);
        }
        let mut found = Vec::new();
        found.extend(probe::Speed::of(address)?.against(self.host));
        let (own, behind) = self.engine.reach(&sandbox.id)?;
        let mut add = |reach: Reach, calls, files| {
            found.extend(reach.calls.map(|n| (calls, n as f64)));
            found.push((files, reach.files as f64));
        };
        add(own, Metric::SystemCalls, Metric::HostFiles);
        if let Some(behind) = behind {
            add(behind, Metric::SystemCallsBehind, Metric::HostFilesBehind);
        }
        Ok(found)
    }

    /// A sandbox that runs, and its streams.
    fn begin(&self, run: &Run<'_>, kind: Kind) -> Result<(Sandbox<'a>, Stream), Stopped> {
        let created = self.engine.create(request(run, kind), &image::Quiet)?;
        let sandbox = Sandbox { engine: self.engine, id: created.id.to_string() };
        let attach = AttachOptions { stdin: false, stdout: true, stderr: true };
        let stream = self.engine.start(&sandbox.id, Some(attach))?;
        Ok((sandbox, stream.ok_or_else(|| Stopped::Failed("its output cannot be read".into()))?))
    }

    /// One run, from the order to its removal.
    fn one(&mut self, run: &Run<'_>, kind: Kind) -> Result<Seen, Stopped> {
        if self.interrupted() {
            return Err(Stopped::Signal);
        }
        let begun = Instant::now();
        let (sandbox, mut stream) = self.begin(run, kind)?;
        self.watch(run, &sandbox.id, &mut stream, begun)
    }

    /// Until it ended, answered, or took too long.
    fn watch(
        &mut self,
        run: &Run<'_>,
        id: &str,
        stream: &mut Stream,
        begun: Instant,
    ) -> Result<Seen, Stopped> {
        let ms = |then: Instant| then.duration_since(begun).as_secs_f64() * 1000.0;
        let mut seen = Seen::default();
        // One that has ended already has no port any more: then its end comes over the stream.
        let (mut asking, unpublished) = match run.port.map(|port| self.published(id, port)) {
            Some(Ok(address)) => (Some(Asking::begin(address)), None),
            Some(Err(e)) => (None, Some((e, Instant::now()))),
            None => (None, None),
        };
        loop {
            while let Some(frame) = stream.frame()? {
                let now = Instant::now();
                match frame {
                    Frame::Exit { code, .. } => {
                        if run.port.is_some() {
                            return Err(Stopped::Failed(format!(
                                "the workload ended with code {code} before it answered over HTTP"
                            )));
                        }
                        seen.exit = Some((ms(now), code));
                        return Ok(seen);
                    }
                    Frame::Stdout(bytes) if run.image == image::HELLO => seen.stdout.extend_from_slice(bytes),
                    _ => {}
                }
                if seen.first_output.is_none() {
                    seen.first_output = Some(ms(now));
                    if run.weigh {
                        // What has ended meanwhile weighs nothing.
                        seen.weight = self.engine.footprint(id).ok();
                    }
                }
            }
            if let Some(when) = asking.as_mut().and_then(Asking::answered) {
                seen.first_answer = Some(ms(when));
                seen.weight = self.engine.footprint(id).ok();
                return Ok(seen);
            }
            if unpublished.as_ref().is_some_and(|(_, since)| since.elapsed() > GRACE)
                && let Some((e, _)) = unpublished
            {
                return Err(e);
            }
            if begun.elapsed() > run.limit {
                return match run.port {
                    Some(port) => Err(Stopped::Failed(format!(
                        "nothing answered over HTTP at port {port} within {} s",
                        run.limit.as_secs()
                    ))),
                    None => Ok(seen),
                };
            }
            let mut fds = [
                PollFd::new(stream, PollFlags::IN),
                PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN),
            ];
            let tick = rustix::event::Timespec::try_from(TICK).unwrap_or_default();
            match poll(&mut fds, Some(&tick)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(std::io::Error::from(e).into()),
            }
            if self.interrupted() {
                return Err(Stopped::Signal);
            }
            if stream.fill()? == Filled::End {
                return Err(Stopped::Failed("its supervisor ended without a word".into()));
            }
        }
    }

    fn interrupted(&mut self) -> bool {
        !self.signals.pending().is_empty()
    }

    /// The host's port behind which it listens.
    fn published(&self, id: &str, port: u16) -> Result<SocketAddr, Stopped> {
        let settings = self.engine.inspect(id, false)?.network_settings;
        let ports = settings.and_then(|s| s.ports).unwrap_or_default();
        let bindings = ports.get(&format!("{port}/tcp")).cloned().flatten().unwrap_or_default();
        let host = bindings.iter().find_map(|b| b.host_port.as_ref()?.parse::<u16>().ok());
        let host = host.ok_or_else(|| Stopped::Failed(format!("port {port} was not published")))?;
        Ok((Ipv4Addr::LOCALHOST, host).into())
    }
}

/// What `dhow run --rm` would ask for.
fn request(run: &Run<'_>, kind: Kind) -> CreateRequest {
    let config = ContainerConfig {
        image: Some(run.image.to_owned()),
        cmd: (!run.command.is_empty()).then(|| run.command.to_vec()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        exposed_ports: run.port.map(|p| vec![format!("{p}/tcp")]),
        ..ContainerConfig::default()
    };
    let binding = || PortBinding { host_ip: Some(Ipv4Addr::LOCALHOST.to_string()), host_port: None };
    let mut host = HostConfig {
        auto_remove: Some(true),
        port_bindings: run.port.map(|p| HashMap::from([(format!("{p}/tcp"), Some(vec![binding()]))])),
        ..HostConfig::default()
    };
    if let Kind::Vm(hypervisor) = kind {
        host.runtime = Some(engine::machine::RUNTIME.into());
        let chosen = (engine::machine::HYPERVISOR.to_owned(), hypervisor.as_str().to_owned());
        host.annotations = Some(HashMap::from([chosen]));
    }
    // Bytes are sent to this host, to see how fast that is.
    let access = HashMap::from([(engine::HOST_ACCESS.to_owned(), "true".to_owned())]);
    let settings = EndpointSettings { driver_opts: Some(access), ..EndpointSettings::default() };
    let networks = vec![("default".to_owned(), settings)];
    CreateRequest { image: run.image.to_owned(), config, host, networks, ..CreateRequest::default() }
}

/// Bytes of memory that are available (`MemAvailable`, proc_meminfo(5)).
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}
