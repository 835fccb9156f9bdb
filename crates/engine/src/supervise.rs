//! The supervisor's side of the engine: how its process is made, and what it does around each run of its container.

use crate::network::lock_subnets;
use crate::paths::Paths;
use crate::resolver::{At, NameService};
use crate::sentry::Sentry;
use crate::volumes::place::{self, Held};
use crate::{Engine, EngineError, Result, events, record, recover};
use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sandbox::container::ContainerHull;
use sandbox::hull::{Hull, Wiring};
use sandbox::supervisor::{HookError, Hooks, Supervise};
use sandbox::vm::VmHull;
use state::EventLog;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use sys::file::Lock;
use types::{
    Attachment, Bundle, ContainerId, ErrorKind, Event, EventType, NetworkPlan, PortBinding, RunState,
};

/// The hidden verb by which the binary becomes a supervisor.
const VERB: &str = "supervise";
/// From so many pages on the database's log is worth a sync of the disk.
const LOG_FRAMES: u32 = 96;

/// Starts the supervisor of a container. It inherits the answer's socket as descriptor 0 and the held lock as
/// descriptor 1, the program as descriptor 2, and nothing else.
pub(crate) fn spawn(paths: &Paths, id: &ContainerId, ready: OwnedFd, lock: Lock, adopt: bool) -> Result<()> {
    // Executed through a read-only mount of its own: a workload that gets hold of `/proc/PID/exe` cannot write the
    // binary (CVE-2019-5736).
    let exe =
        sys::exe::self_exe_sealed().map_err(EngineError::io("cannot open", "/proc/self/exe".as_ref()))?;
    let program = format!("/proc/self/fd/{}", exe.as_raw_fd());
    Command::new(&program)
        .arg0("dhow")
        .arg(VERB)
        .args([&paths.root, &paths.run])
        .args([id.as_str(), if adopt { "adopt" } else { "start" }])
        // A server's own limit is not the workload's.
        .args(sys::limits::open_files_before().map(|files| files.to_string()))
        .env_clear()
        .stdin(Stdio::from(ready))
        .stdout(Stdio::from(OwnedFd::from(lock)))
        // Its last descriptor dissolves the mount, which waits for the kernel's readers: so the supervisor keeps one
        // until its own end, and nobody waits.
        .stderr(exe.try_clone().map_or_else(|_| Stdio::null(), Stdio::from))
        .current_dir("/")
        .spawn()
        .map(drop)
        .map_err(EngineError::io("cannot start the supervisor", program.as_ref()))
}

/// The supervisor's `main`: `supervise ROOT RUN ID start|adopt [OPEN-FILES]`. Returns the exit code of the process.
pub fn supervise(args: &[std::ffi::OsString], hello: &'static [u8]) -> i32 {
    let [root, run, id, how, files @ ..] = args else { return 125 };
    if let Some(files) = files.first() {
        sys::limits::set_open_files(files.to_str().and_then(|n| n.parse().ok()));
    }
    let Some(Ok(id)) = id.to_str().map(ContainerId::parse) else { return 125 };
    let paths = Paths { root: root.into(), run: run.into() };
    match prepare(paths, &id, how == "adopt", hello) {
        Ok((supervise, mut hooks)) => {
            let hull: &dyn Hull = if supervise.bundle.machine.is_some() { &VmHull } else { &ContainerHull };
            let code = sandbox::supervisor::supervise(supervise, hull, &mut hooks);
            // Whoever waits has been answered: this is time that nobody misses.
            hooks.release_layers();
            for dir in &hooks.aside {
                let _ = recover::remove_tree(dir);
            }
            shorten_log(&hooks.paths);
            // A removed container has none.
            let _ = sys::file::sync(&hooks.paths.state(&id));
            code
        }
        // Whoever waits for the answer is told that the supervisor ended; why, only the system log can keep.
        Err(e) => {
            let _ = std::fs::write(
                "/dev/kmsg",
                format!("dhow: the supervisor of {} cannot start: {e}\n", id.short()),
            );
            125
        }
    }
}

/// Tidies the database now that everybody has their answer, so that no command need do it.
fn shorten_log(paths: &Paths) {
    if state::log_frames(&paths.db()) >= LOG_FRAMES
        && let Ok(db) = state::Db::open(&paths.db())
    {
        // Somebody else is at it: the next one will.
        let _ = db.checkpoint();
    }
}

fn prepare(
    paths: Paths,
    id: &ContainerId,
    adopt: bool,
    hello: &'static [u8],
) -> std::io::Result<(Supervise, EngineHooks)> {
    let lock = Lock::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let ready = Some(std::io::stdin().as_fd().try_clone_to_owned()?);
    let program = std::io::stderr().as_fd().try_clone_to_owned().ok();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    rustix::thread::set_name(c"dhow")?;
    let mut bundle: Bundle = serde_json::from_slice(&std::fs::read(paths.bundle(id))?)?;
    let mut hooks = EngineHooks {
        events: EventLog::new(&paths.run),
        paths: paths.clone(),
        hello,
        layers: None,
        volumes: Vec::new(),
        let_go: None,
        prepared: None,
        published: None,
        published_on: None,
        withdrawn: None,
        left: None,
        names: NameService::new(&paths.run),
        sentry: Sentry::default(),
        together: None,
        aside: Vec::new(),
        _program: program,
    };
    let state = adopt.then(|| record::read_state(&paths, id));
    match &state {
        // A microVM's guest finds these things out by itself.
        None if bundle.machine.is_some() => {}
        None => hooks.prepared = Some(hooks.complete(&mut bundle)),
        // The layers are held again, so that nobody unmounts them, and the ports are served again.
        Some(_) => hooks.resume(&bundle),
    }
    let supervise = Supervise {
        dir: paths.sandbox(id),
        run: paths.sandbox_run(id),
        bundle,
        lock,
        ready,
        listener: None,
        adopt: state,
    };
    Ok((supervise, hooks))
}

struct EngineHooks {
    paths: Paths,
    events: EventLog,
    hello: &'static [u8],
    layers: Option<rootfs::Layers>,
    /// What is mounted for it.
    volumes: Vec<Held>,
    /// Of the run before. Unmounting waits for all of the kernel's readers, so it comes after the answers; and the
    /// next run need not mount them again.
    let_go: Option<rootfs::Layers>,
    /// The first run's root filesystem: it was needed to complete the specification.
    prepared: Option<Result<OwnedFd, HookError>>,
    published: Option<net::Published>,
    /// The network by whose interface its ports are reached.
    published_on: Option<String>,
    /// Of the run before, its ports given back: the kernel frees its rules slowly, and nobody should wait for that.
    withdrawn: Option<net::Published>,
    /// What the firewall held for the run before, taken back.
    left: Option<net::Left>,
    names: NameService,
    sentry: Sentry,
    /// Watches the names, the published ports and the firewall, where there are several of them.
    together: Option<OwnedFd>,
    /// Directories of the removed container, still to be deleted.
    aside: Vec<PathBuf>,
    /// See [`spawn`].
    _program: Option<OwnedFd>,
}

impl EngineHooks {
    /// Mounts the root filesystem and fills in what only it can tell: the user's numbers, `HOME`, the files that
    /// new volumes begin with.
    fn complete(&mut self, bundle: &mut Bundle) -> Result<OwnedFd, HookError> {
        self.hold_volumes(bundle)?;
        let apart = bundle.spec.linux().as_ref().is_some_and(|l| l.uid_mappings().is_some());
        if apart && !volumes_to_fill(bundle)?.is_empty() {
            // Owners as they are on the disk, for volumes keep them so too.
            let options = rootfs::MountOptions { access: rootfs::Access::ReadOnly, ..Default::default() };
            let look = rootfs::mount(&bundle.rootfs, &options).map_err(|e| HookError::new(&e))?;
            let root = look.fd().try_clone_to_owned().map_err(|e| io("duplicate a descriptor", e))?;
            copy_up(&sys::Root::from_fd(root), bundle)?;
        }
        let fd = self.mount(bundle)?;
        let root = sys::Root::from_fd(fd.try_clone().map_err(|e| io("duplicate a descriptor", e))?);
        process::named::resolve_in(&root, &mut bundle.spec).map_err(|e| HookError::new(&e))?;
        if !apart {
            copy_up(&root, bundle)?;
        }
        Ok(fd)
    }

    /// The same for a microVM, which has its files on disks: for new volumes alone the image is mounted here, and not for
    /// long.
    fn fill_volumes(&mut self, bundle: &Bundle) -> Result<(), HookError> {
        self.hold_volumes(bundle)?;
        if !volumes_to_fill(bundle)?.iter().any(|(_, dir)| rootfs::is_unfilled(dir)) {
            return Ok(());
        }
        let options = rootfs::MountOptions { access: rootfs::Access::LayersOnly, ..Default::default() };
        let image = rootfs::mount(&bundle.rootfs, &options).map_err(|e| HookError::new(&e))?;
        let root = image.fd().try_clone_to_owned().map_err(|e| io("duplicate a descriptor", e))?;
        let done = copy_up(&sys::Root::from_fd(root), bundle);
        image.release().map_err(|e| HookError::new(&e)).and(done)
    }

    /// Mounts what the specification's mounts are to be had from. Disks of a microVM are its own business.
    fn hold_volumes(&mut self, bundle: &Bundle) -> Result<(), HookError> {
        self.release_volumes();
        for plan in bundle.volumes.iter().filter(|p| bundle.machine.is_none() || p.disk().is_none()) {
            self.volumes.push(place::hold(plan).map_err(|e| HookError::new(&e))?);
        }
        Ok(())
    }

    fn release_volumes(&mut self) {
        for held in self.volumes.drain(..) {
            // What stays mounted is swept by the next command that recovers.
            let _ = held.release();
        }
    }

    fn mount(&mut self, bundle: &Bundle) -> Result<OwnedFd, HookError> {
        // Nobody will miss the files of a container that is removed when it ends.
        let namespace = sandbox::container::user_namespace(&bundle.spec).map_err(|e| HookError::new(&e))?;
        let options = rootfs::MountOptions {
            volatile: bundle.auto_remove,
            user_namespace: namespace.as_ref().map(AsFd::as_fd),
            ..Default::default()
        };
        let mounted = rootfs::mount(&bundle.rootfs, &options).map_err(|e| HookError::new(&e))?;
        let fd = mounted.fd().try_clone_to_owned().map_err(|e| io("duplicate a descriptor", e))?;
        self.layers = Some(mounted.into_layers());
        self.release_layers();
        Ok(fd)
    }

    fn release_layers(&mut self) {
        if let Some(layers) = self.let_go.take() {
            let _ = layers.release();
        }
    }

    /// Attaches it to its networks and publishes its ports, on the first.
    fn attach_all<T>(
        &mut self,
        plan: &NetworkPlan,
        attach: impl Fn(&Attachment) -> Result<T, net::NetError>,
    ) -> Result<(Vec<T>, Vec<PortBinding>), HookError> {
        // A restart needs the ports again.
        (self.withdrawn, self.left) = (None, None);
        let connect = || {
            let mut ends = Vec::new();
            for attachment in plan.attachments() {
                ensure_network(attachment)?;
                ends.push(attach(attachment)?);
            }
            Ok((ends, publisher(plan).map(net::publish).transpose()?))
        };
        let (ends, published) = connect().map_err(|e: net::NetError| HookError::new(&e))?;
        let ports = published.as_ref().map(|p| p.bindings().to_vec()).unwrap_or_default();
        self.published = published;
        self.published_on = publisher(plan).map(|a| a.network.clone());
        self.sentry.guard(plan.attachments());
        Ok((ends, ports))
    }

    /// Leads the published ports to another of its interfaces, or nowhere; their numbers stay.
    fn move_ports(&mut self, to: Option<&Attachment>) -> Result<(), net::NetError> {
        let mut decided = Vec::new();
        if let Some(mut published) = self.published.take() {
            decided = published.bindings().to_vec();
            published.withdraw()?;
        }
        self.published_on = None;
        let Some(to) = to else { return Ok(()) };
        let ports = if decided.is_empty() { to.ports.clone() } else { decided };
        self.published = Some(net::publish(&Attachment { ports, ..to.clone() })?);
        self.published_on = Some(to.network.clone());
        Ok(())
    }

    fn resume(&mut self, bundle: &Bundle) {
        let _ = net::disconnect_others(bundle.id.as_str(), &bundle.network);
        if bundle.machine.is_none() {
            self.layers = rootfs::Layers::adopt(&bundle.rootfs).ok();
        }
        let mounted = bundle.volumes.iter().filter(|p| bundle.machine.is_none() || p.disk().is_none());
        self.volumes = mounted.filter_map(place::adopt).collect();
        if let Some(attachment) = publisher(&bundle.network) {
            self.published_on = Some(attachment.network.clone());
            let ports = record::read_state(&self.paths, &bundle.id).ports;
            let attachment = Attachment { ports, ..attachment.clone() };
            self.published = net::publish(&attachment).ok();
        }
        self.resume_names(bundle);
        self.sentry.guard(bundle.network.attachments());
        // Nobody guarded its rules meanwhile.
        let _ = self.sentry.restore(self.published.as_mut(), &mut self.names);
        let _ = self.watch();
    }

    fn serve_names(&mut self, bundle: &Bundle, at: At<'_>) -> Result<(), net::NetError> {
        self.names.announce(bundle.network.attachments())?;
        self.names.serve(bundle, at)?;
        self.watch()
    }

    /// Makes one descriptor of all that this waits for.
    fn watch(&mut self) -> Result<(), net::NetError> {
        self.together = None;
        let failed = |e: Errno| net::NetError::System { action: "watch the network", source: e.into() };
        let all: Vec<_> = self.waited().collect();
        if all.len() > 1 {
            let together = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
            for fd in all {
                let data = epoll::EventData::new_u64(0);
                epoll::add(&together, fd, data, epoll::EventFlags::IN).map_err(failed)?;
            }
            self.together = Some(together);
        }
        Ok(())
    }

    fn waited(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let ports = self.published.as_ref().and_then(net::Published::poll_fd);
        [self.names.poll_fd(), ports, self.sentry.poll_fd()].into_iter().flatten()
    }

    /// Serves names to a workload that runs already. Where it fails, all but names goes on.
    fn resume_names(&mut self, bundle: &Bundle) {
        let pid = record::read_state(&self.paths, &bundle.id).pid;
        let run = self.paths.sandbox_run(&bundle.id);
        let serve = |hooks: &mut Self| -> std::io::Result<()> {
            let netns;
            let at = if bundle.machine.is_some() {
                At::Behind(&run)
            } else {
                netns = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
                At::Inside(netns.as_fd())
            };
            hooks.serve_names(bundle, at).map_err(std::io::Error::other)
        };
        if pid > 0 && bundle.network.attachments().iter().any(net::dns::is_named) {
            let _ = serve(self);
        }
    }

    /// Keeps a container on several networks from being their neighbours' way from one to another, unless it shall be one.
    fn keep_apart(bundle: &Bundle, netns: BorrowedFd<'_>) -> Result<(), net::NetError> {
        let asked = bundle.spec.linux().as_ref().and_then(|l| l.sysctl().as_ref()).is_some_and(|s| {
            ["net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding"].iter().any(|key| s.contains_key(*key))
        });
        if asked || bundle.network.attachments().len() < 2 { Ok(()) } else { net::no_routing(netns) }
    }

    /// Follows a change of the workload's networks.
    fn names_changed(&mut self, bundle: &Bundle) -> Result<(), net::NetError> {
        self.names.change(bundle.network.attachments())?;
        let pid = record::read_state(&self.paths, &bundle.id).pid;
        if bundle.machine.is_none()
            && let Ok(netns) = std::fs::File::open(format!("/proc/{pid}/ns/net"))
        {
            Self::keep_apart(bundle, netns.as_fd())?;
        }
        if !self.names.is_serving() {
            self.resume_names(bundle);
            if self.names.is_serving() && bundle.machine.is_none() {
                point_to_names(&self.paths.sandbox(&bundle.id).join("resolv.conf"));
            }
        }
        self.watch()
    }
}

/// Has a workload that was on the default bridge alone ask for names inside from now on. What is not changed it keeps.
fn point_to_names(resolv_conf: &std::path::Path) {
    let inside = [net::dns::ADDRESS.to_string()];
    let wanted = net::Resolv { servers: &inside, named: true, ..net::Resolv::default() };
    if let Ok(text) = std::fs::read_to_string(resolv_conf) {
        // In place: it is mounted by this very file.
        let _ = std::fs::write(resolv_conf, net::resolv_conf(&text, &wanted));
    }
}

/// Makes what an endpoint is connected to; an interface of the host is there.
fn ensure_network(attachment: &Attachment) -> Result<(), net::NetError> {
    if attachment.uplink.is_some() {
        return Ok(());
    }
    net::ensure_bridge_alone(&attachment.bridge, || lock_subnets().map_err(std::io::Error::other))
}

/// The interface that published ports lead to.
fn publisher(plan: &NetworkPlan) -> Option<&Attachment> {
    plan.attachments().iter().find(|a| !a.ports.is_empty())
}

fn io(what: &str, source: std::io::Error) -> HookError {
    HookError { kind: ErrorKind::Internal, message: format!("{what}: {source}") }
}

/// The volumes that an image's files are copied into while they are empty: targets, and where they lie on this host.
fn volumes_to_fill(bundle: &Bundle) -> Result<Vec<(PathBuf, PathBuf)>, HookError> {
    let all = types::volumes_to_fill(&bundle.spec).map_err(|e| io("read the volumes", e.into()))?;
    // A guest fills its disks itself: this host does not mount them.
    let disks = bundle.machine.iter().flat_map(|m| &m.volumes).map(types::VolumePlan::mountpoint);
    let disks: Vec<PathBuf> = disks.collect();
    Ok(all.into_iter().filter(|(_, source)| !disks.contains(source)).collect())
}

fn copy_up(root: &sys::Root, bundle: &Bundle) -> Result<(), HookError> {
    for (target, dest) in volumes_to_fill(bundle)? {
        if rootfs::is_unfilled(&dest) {
            // One after the other, where several begin with it at once.
            let lock = Lock::exclusive(&dest.with_file_name("making"));
            let _lock = lock.map_err(|e| io("lock a volume", e))?;
            rootfs::copy_up(root, &target, &dest).map_err(|e| HookError::new(&e))?;
        }
    }
    Ok(())
}

impl Wiring for EngineHooks {
    fn connect(&mut self, attachment: &Attachment, netns: Option<BorrowedFd<'_>>) -> Result<(), HookError> {
        let connect = || {
            ensure_network(attachment)?;
            match netns {
                Some(netns) => net::connect(attachment, netns),
                None => net::join_tap(attachment),
            }
        };
        connect().map_err(|e| HookError::new(&e))
    }

    fn is_connected(&self, attachment: &Attachment) -> bool {
        net::is_attached(attachment)
    }

    fn configure(&mut self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), HookError> {
        net::configure_in(attachment, netns).map_err(|e| HookError::new(&e))
    }

    fn disconnect(
        &mut self,
        attachment: &Attachment,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<(), HookError> {
        let done = match netns {
            Some(netns) => net::unlink(attachment, netns),
            None => net::leave_tap(attachment),
        };
        done.map_err(|e| HookError::new(&e))
    }
}

impl Hooks for EngineHooks {
    fn rootfs(&mut self, bundle: &Bundle) -> Result<OwnedFd, HookError> {
        match self.prepared.take() {
            Some(first) => first,
            None => {
                self.hold_volumes(bundle)?;
                self.mount(bundle)
            }
        }
    }

    fn network_outside(
        &mut self,
        bundle: &Bundle,
        netns: BorrowedFd<'_>,
    ) -> Result<Vec<PortBinding>, HookError> {
        let (_, ports) = self.attach_all(&bundle.network, |a| net::attach(a, netns))?;
        Self::keep_apart(bundle, netns).map_err(|e| HookError::new(&e))?;
        self.serve_names(bundle, At::Inside(netns)).map_err(|e| HookError::new(&e))?;
        Ok(ports)
    }

    /// Whoever asks makes a microVM now.
    fn taps(&mut self, bundle: &Bundle) -> Result<(Vec<OwnedFd>, Vec<PortBinding>), HookError> {
        self.fill_volumes(bundle)?;
        let (mut taps, ports) = self.attach_all(&bundle.network, net::attach_tap)?;
        let spare = bundle.machine.as_ref().map_or(0, |m| m.spare_interfaces.into());
        for slot in bundle.network.free_slots().take(spare) {
            taps.push(net::spare_tap(bundle.id.as_str(), slot).map_err(|e| HookError::new(&e))?);
        }
        let run = self.paths.sandbox_run(&bundle.id);
        self.serve_names(bundle, At::Behind(&run)).map_err(|e| HookError::new(&e))?;
        Ok((taps, ports))
    }

    fn network_inside(&self, bundle: &Bundle) -> Result<(), HookError> {
        net::configure_inside(&bundle.network).map_err(|e| HookError::new(&e))
    }

    fn networks_changed(&mut self, bundle: &Bundle) -> Result<Vec<PortBinding>, HookError> {
        let publisher = publisher(&bundle.network);
        if self.published_on.as_ref() != publisher.map(|a| &a.network) {
            self.move_ports(publisher).map_err(|e| HookError::new(&e))?;
        }
        self.sentry.guard(bundle.network.attachments());
        self.names_changed(bundle).map_err(|e| HookError::new(&e))?;
        Ok(self.published.as_ref().map(|p| p.bindings().to_vec()).unwrap_or_default())
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.together.as_ref().map(AsFd::as_fd).or_else(|| self.waited().next())
    }

    fn serve(&mut self) {
        self.sentry.look(self.published.as_mut(), &mut self.names);
        self.names.answer();
        if let Some(published) = &mut self.published {
            published.serve();
        }
    }

    fn ended(&mut self, bundle: &Bundle) {
        // What stays behind after a failure here is swept by the next command that recovers. Whoever is told of the end
        // finds the ports free, and no name any more.
        (self.sentry, self.together) = (Sentry::default(), None);
        self.names.end();
        if let Some(published) = &mut self.published {
            let _ = published.withdraw();
        }
        self.withdrawn = self.published.take();
        for attachment in bundle.network.attachments() {
            let _ = net::remove_rest(attachment);
        }
        if bundle.machine.is_some() {
            let _ = net::remove_ends(bundle.id.as_str());
        }
        self.left = net::leave(bundle.network.attachments()).ok();
        self.let_go = self.layers.take();
        self.release_volumes();
    }

    fn event(&mut self, bundle: &Bundle, action: &str, attributes: &[(&str, String)]) {
        let labels = bundle.labels.iter().map(|(k, v)| (k.clone(), v.clone()));
        let mut all = events::event_attributes(&bundle.name, &bundle.image, labels);
        all.extend(attributes.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        let event = Event {
            kind: EventType::Container,
            action: action.to_owned(),
            id: bundle.id.to_string(),
            attributes: all,
            time_ns: sys::host::now_ns(),
        };
        // A full disk must not end a container.
        let _ = self.events.append(&event);
        for event in events::of_networks(bundle, action) {
            let _ = self.events.append(&event);
        }
    }

    fn finished(&mut self, bundle: &Bundle, _state: &RunState) {
        if !bundle.auto_remove {
            return;
        }
        // Should it fail, the next command finds an ended container that wants to be removed.
        let options = crate::OpenOptions {
            root: Some(self.paths.root.clone()),
            run: Some(self.paths.run.clone()),
            hello: self.hello,
            guest: crate::Agent::default(),
        };
        if let Ok(engine) = Engine::open(&options) {
            self.aside = engine.remove_aside(&bundle.id).unwrap_or_default();
        }
    }
}
