//! Our own virtual machine monitor, in a process and a jail of its own.

use super::connect;
use super::monitor::{GUEST_CID, KERNEL_CMDLINE, Monitor};
use crate::boot::SHARES_TAG;
use crate::container::step::Step;
use crate::hull::HullError;
use rustix::io::{FdFlags, fcntl_setfd};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use vmm::config::{Config, Disk, DiskContent, Fs, Jail, Net, Vsock};

/// What this machine adds to the kernel's command line.
const CMDLINE: &str = "reboot=k";

/// The file with the guest's console, in the machine's directory.
pub(super) const CONSOLE: &str = "console";

/// Its control socket there.
pub(super) const CONTROL: &str = "control";

/// Starts a machine. What it says of its failure comes on the pipe.
/// `shares` leads to the server of the host's directories.
pub(super) fn start(
    of: &Monitor<'_>,
    shares: Option<&OwnedFd>,
) -> Result<(sys::clone::Child, OwnedFd), HullError> {
    let (open, short) = connect::short(of.dir).step(|| "open the machine's directory".into())?;
    connect::open_to_all(of.dir)?;
    let config = config(of, &short, shares);
    let (said, say) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(|| "make a pipe".into())?;
    let mut keep = vec![open.as_fd(), say.as_fd()];
    keep.extend(of.taps.iter().chain(shares).map(AsFd::as_fd));
    let child = sys::clone::spawn(0, None, || {
        let closed = sys::process::close_all_but(&keep);
        let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
        let stdio = null.map(|null| sys::process::set_stdio([null.as_fd(), null.as_fd(), say.as_fd()]));
        if closed.is_err() || !matches!(stdio, Ok(Ok(()))) {
            return 125;
        }
        match vmm::run(config) {
            Ok(vmm::Ended::PoweredOff | vmm::Ended::Reset | vmm::Ended::Stopped) => 0,
            Ok(vmm::Ended::Crashed(why)) => {
                eprintln!("the guest crashed: {why}");
                1
            }
            Err(e) => {
                eprintln!("{e}");
                1
            }
        }
    });
    Ok((child.step(|| "create the machine's process".into())?, said))
}

fn config(of: &Monitor<'_>, dir: &Path, shares: Option<&OwnedFd>) -> Config {
    let mut disks = Vec::new();
    if !of.layers.is_empty() {
        let content = DiskContent::Partitions(of.layers.to_vec());
        disks.push(Disk { content, read_only: true, rate: of.rate });
    }
    let content = DiskContent::Raw(of.plan.disk.clone());
    disks.push(Disk { content, read_only: false, rate: of.rate });
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
