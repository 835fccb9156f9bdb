//! From the host's first word to the workload's end.

use crate::files::Files;
use crate::hooks::GuestHooks;
use crate::{Error, Result, Told, disks, dns, files, memory, modules, shares};
use rustix::time::{ClockId, Timespec, clock_settime};
use sandbox::boot::{self, Answer, Boot, CONTROL_PORT, READY_PORT, VERSION};
use sandbox::container::ContainerHull;
use sandbox::files::PORT as FILES_PORT;
use sandbox::protocol::Failure;
use sandbox::supervisor::{Supervise, supervise};
use std::fs;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use types::{Bundle, ContainerId, ErrorKind, LogConfig, LogDriver, RestartPolicy, RootfsPlan};

/// State of the supervisor, in memory.
pub const STATE: &str = "/run/dhow";

/// Where the workload's cgroup is found.
const CGROUPS: &str = "/sys/fs/cgroup";

pub fn serve() -> Result<()> {
    modules::load()?;
    modules::require("/dev/vsock", "vsock")?;
    memory::report_small_blocks();
    // Before the host is told that we are here: it may connect at once.
    let listener = sys::vsock::listen(CONTROL_PORT).told("listen for the host")?;
    let files = sys::vsock::listen(FILES_PORT).told("listen for the host")?;
    let socket = sys::vsock::connect(sys::vsock::HOST, READY_PORT).told("connect to the host")?;
    let mut host = UnixStream::from(socket);
    let boot: Boot = boot::read(&mut host).told("read what the host wants")?;
    let prepared = prepare(&boot).and_then(|(bundle, root)| {
        let cgroup = Path::new(CGROUPS).join(bundle.cgroup.trim_start_matches('/'));
        let shared = disks::served(&boot, &root)?;
        files::start(files, Files { root: shared, cgroup })?;
        Ok((bundle, root))
    });
    match prepared {
        Ok((_, _)) if boot.files_only => {
            let disks = disks::written_to()?;
            boot::write(&mut host, &Answer::Prepared).told("answer the host")?;
            // The machine ends when the host has said all that it wants to.
            let _ = host.read(&mut [0]);
            let written = files::written_out(&disks);
            // It may have hung up, and then nobody asks.
            let _ = boot::write(&mut host, &written.map_or_else(|e| refusal(&e), |()| Answer::Written));
            wait_for_reader(host);
            Ok(())
        }
        Ok((bundle, root)) => {
            boot::write(&mut host, &Answer::Prepared).told("answer the host")?;
            run(bundle, root, host, listener)
        }
        Err(e) => {
            boot::write(&mut host, &refusal(&e)).told("answer the host")?;
            // The machine goes away when the host has read it.
            let _ = host.read(&mut [0]);
            Err(e)
        }
    }
}

fn refusal(e: &Error) -> Answer {
    Answer::Failed(Failure { kind: ErrorKind::Internal, message: e.to_string(), exit_code: 125 })
}

/// Everything up to the workload's start.
fn prepare(boot: &Boot) -> Result<(Bundle, OwnedFd)> {
    if boot.version != VERSION {
        return Err(Error(format!(
            "the guest's agent speaks version {VERSION}, the host {}: install the kernel anew (dhow kernel install)",
            boot.version
        )));
    }
    let now = Timespec { tv_sec: boot.now_ns / 1_000_000_000, tv_nsec: boot.now_ns % 1_000_000_000 };
    let _ = clock_settime(ClockId::Realtime, now);
    fs::create_dir_all(STATE).told("make a directory")?;
    for (path, contents) in &boot.files {
        let path = Path::new(path);
        fs::create_dir_all(path.parent().unwrap_or(path)).told(path.display())?;
        fs::write(path, contents).told(path.display())?;
    }
    if boot.shares {
        shares::mount_all()?;
    }
    let root = disks::mount_root(boot.layers, &boot.volumes)?;
    disks::mount_volumes(&boot.volumes)?;
    let mut spec = boot.spec.clone();
    if !boot.files_only {
        net::machine::name_devices(&boot.network).told("tell the network devices apart")?;
        net::configure_inside(&boot.network).told("configure the network")?;
        dns::start(&boot.network)?;
        let files = sys::Root::from_fd(root.try_clone().told("duplicate a descriptor")?);
        process::named::resolve_in(&files, &mut spec).told("find the user")?;
        disks::fill_volumes(&files, &spec, &boot.volumes)?;
    }
    let id = ContainerId::parse(&boot.id).told("read the id")?;
    let bundle = Bundle {
        name: String::new(),
        image: String::new(),
        labels: Default::default(),
        spec,
        rootfs: RootfsPlan { layers: Vec::new(), writable: PathBuf::new(), layer_mounts: PathBuf::new() },
        machine: None,
        volumes: Vec::new(),
        network: boot.network.clone(),
        name_servers: Vec::new(),
        cgroup: format!("/dhow/{id}"),
        open_stdin: boot.open_stdin,
        stdin_once: boot.open_stdin,
        init: boot.init,
        console_size: boot.console_size,
        restart: RestartPolicy::No,
        auto_remove: boot.forgotten,
        stop_signal: 15,
        stop_timeout: 10,
        health: None,
        log: LogConfig {
            driver: LogDriver::None,
            max_size: None,
            max_file: 1,
            compress: false,
            attrs: Default::default(),
        },
        id,
    };
    Ok((bundle, root))
}

fn run(bundle: Bundle, root: OwnedFd, host: UnixStream, listener: OwnedFd) -> Result<()> {
    let kept = host.try_clone().told("duplicate a descriptor")?;
    let lock = sys::file::Lock::exclusive(&Path::new(STATE).join("lock")).told("lock")?;
    let orders = Supervise {
        bundle,
        dir: STATE.into(),
        run: STATE.into(),
        lock,
        ready: Some(host.into()),
        listener: Some(listener),
        adopt: None,
    };
    supervise(orders, &ContainerHull, &mut GuestHooks { root: Some(root) });
    wait_for_reader(kept);
    Ok(())
}

/// Waits until the host has read all and hangs up. What was sent lies in the machine's device until somebody reads it, and
/// is gone with the machine: the output's end and the exit code. For how long is the host's business, who ends the machine.
fn wait_for_reader(mut host: UnixStream) {
    let _ = host.set_nonblocking(false);
    let _ = host.shutdown(Shutdown::Write);
    let mut unused = [0; 4096];
    while let Ok(n) = host.read(&mut unused) {
        if n == 0 {
            break;
        }
    }
}
