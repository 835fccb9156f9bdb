//! Our own virtual machine monitor, in a process and a jail of its own.

use super::connect;
use super::monitor::{GUEST_CID, KERNEL_CMDLINE, Monitor};
use crate::boot::SHARES_TAG;
use crate::container::step::Step;
use crate::hull::HullError;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use vmm::config::{Config, Disk, DiskContent, Fs, Jail, Net, Vsock};

/// What this machine adds to the kernel's command line.
const CMDLINE: &str = "reboot=k";

/// The file with the guest's console, in the machine's directory.
pub(super) const CONSOLE: &str = "console";

/// Its control socket there.
pub(super) const CONTROL: &str = "control";

/// The verb by which our program becomes a machine's process.
pub const MACHINE_VERB: &CStr = c"vmm";

/// Starts a machine. What it says of its failure comes on the pipe.
/// `shares` leads to the server of the host's directories.
///
/// Its process is executed anew, so that nothing of what the supervisor has in its memory (the workload's environment, other
/// secrets) is within reach of a guest that breaks out into it. What it is to be comes on its standard input.
pub(super) fn start(
    of: &Monitor<'_>,
    shares: Option<&OwnedFd>,
) -> Result<(sys::clone::Child, OwnedFd), HullError> {
    let (open, short) = connect::short(of.dir).step(|| "open the machine's directory".into())?;
    connect::open_to_all(of.dir)?;
    let order = order(&config(of, &short, shares)).step(|| "write down what the machine is".into())?;
    let name = CString::new(of.boot.id.as_str()).map_err(io::Error::from);
    let args = [c"dhow".to_owned(), MACHINE_VERB.to_owned(), name.step(|| "name the machine".into())?];
    let (said, say) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(|| "make a pipe".into())?;
    let mut keep = vec![open.as_fd()];
    keep.extend(of.taps.iter().chain(shares).map(AsFd::as_fd));
    let child = sys::clone::spawn(0, None, || {
        let e = inherit(&keep, &order, &say)
            .map_or_else(|e| e, |()| sys::process::execve(c"/proc/self/exe", &args, &[]));
        eprintln!("cannot start the machine's process: {e}");
        125
    });
    Ok((child.step(|| "create the machine's process".into())?, said))
}

/// In the new process: leaves these descriptors, and no others, to the program that is executed.
fn inherit(keep: &[BorrowedFd<'_>], order: &OwnedFd, say: &OwnedFd) -> io::Result<()> {
    let all: Vec<_> = keep.iter().copied().chain([order.as_fd(), say.as_fd()]).collect();
    sys::process::close_all_but(&all)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    sys::process::set_stdio([order.as_fd(), null.as_fd(), say.as_fd()])?;
    keep.iter().try_for_each(|fd| Ok(fcntl_setfd(fd, FdFlags::empty())?))
}

/// What the machine is, to be read from the beginning.
fn order(config: &Config) -> io::Result<OwnedFd> {
    let create = |more| rustix::fs::memfd_create("machine", MemfdFlags::CLOEXEC | more);
    let made = match create(MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => create(MemfdFlags::empty()),
        made => made,
    };
    let mut file = File::from(made?);
    // All at once: a writer would get it word by word.
    file.write_all(&serde_json::to_vec(config)?)?;
    file.rewind()?;
    Ok(file.into())
}

/// The whole life of a machine's process; returns its exit code.
pub fn carry() -> i32 {
    let run = || -> Result<i32, Box<dyn std::error::Error>> {
        rustix::thread::set_name(c"dhow-vmm")?;
        let config = serde_json::from_reader(io::stdin().lock())?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        drop(null);
        match vmm::run(config)? {
            vmm::Ended::PoweredOff | vmm::Ended::Reset | vmm::Ended::Stopped => Ok(0),
            vmm::Ended::Crashed(why) => Err(format!("the guest crashed: {why}").into()),
        }
    };
    run().unwrap_or_else(|e| {
        eprintln!("{e}");
        1
    })
}

fn config(of: &Monitor<'_>, dir: &Path, shares: Option<&OwnedFd>) -> Config {
    let mut disks = Vec::new();
    if !of.layers.is_empty() {
        let content = DiskContent::Partitions(of.layers.to_vec());
        disks.push(Disk { content, read_only: true, lock: None, rate: of.rate });
    }
    let content = DiskContent::Raw(of.plan.disk.clone());
    disks.push(Disk { content, read_only: false, lock: None, rate: of.rate });
    for volume in &of.plan.volumes {
        if let Some(file) = volume.disk() {
            let content = DiskContent::Raw(file.clone());
            let lock = Some(volume.name.clone());
            disks.push(Disk { content, read_only: volume.read_only, lock, rate: of.rate });
        }
    }
    let mut nets = Vec::new();
    for (tap, mac) in of.interfaces() {
        let _ = fcntl_setfd(tap, FdFlags::CLOEXEC);
        nets.push(Net { tap: tap.as_raw_fd(), mac, rate: Default::default() });
    }
    Config {
        vcpus: of.plan.vcpus,
        memory_mib: of.plan.memory_mib,
        kernel: of.plan.kernel.clone(),
        initrd: Some(of.plan.initrd.clone()),
        cmdline: format!("{KERNEL_CMDLINE} {CMDLINE}"),
        disks,
        nets,
        vsock: Some(Vsock { cid: GUEST_CID, socket: dir.join(connect::VSOCK) }),
        fs: shares.map(|socket| Fs { socket: socket.as_raw_fd(), tag: SHARES_TAG.into() }),
        balloon: true,
        console: Some(dir.join(CONSOLE)),
        control: dir.join(CONTROL),
        jail: Some(Jail { uid: of.user(), gid: of.user(), root: of.dir.to_owned(), keep: Vec::new() }),
    }
}
