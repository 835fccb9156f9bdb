//! Our own virtual machine monitor, in a process and a jail of its own.

use super::connect;
use crate::boot::SHARES_TAG;
use crate::container::step::Step;
use crate::hull::HullError;
use rustix::io::{FdFlags, fcntl_setfd};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use types::{MachinePlan, NetworkPlan};
use vmm::config::{Config, Disk, DiskContent, Fs, Jail, Net, Vsock};

/// The first of the users that machines run as, one for each, far from those that people have.
const FIRST_UID: u32 = 0x7100_0000;
/// How many there are.
const UIDS: u32 = 1 << 20;
/// Kernel's command line. The console is read for its last lines should the guest fail.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=k rdinit=/init dhow.hull=vm random.trust_cpu=on";

/// A machine to be started.
pub(super) struct Kvm<'a> {
    pub(super) plan: &'a MachinePlan,
    pub(super) layers: &'a [PathBuf],
    pub(super) dir: &'a Path,
    pub(super) tap: Option<&'a OwnedFd>,
    pub(super) network: &'a NetworkPlan,
    /// To the server of the host's directories.
    pub(super) shares: Option<&'a OwnedFd>,
    pub(super) cid: u64,
    /// Full id of the container.
    pub(super) id: &'a str,
}

/// The file with the guest's console, in the machine's directory.
pub(super) const CONSOLE: &str = "console";

impl Kvm<'_> {
    /// Starts it. What it says of its failure comes on the pipe.
    pub(super) fn start(&self) -> Result<(sys::clone::Child, OwnedFd), HullError> {
        let (open, short) = connect::short(self.dir).step(|| "open the machine's directory".into())?;
        connect::open_to_all(self.dir)?;
        let config = self.config(&short);
        let (said, say) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(|| "make a pipe".into())?;
        let mut keep = vec![open.as_fd(), say.as_fd()];
        keep.extend(self.tap.into_iter().chain(self.shares).map(AsFd::as_fd));
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

    fn config(&self, dir: &Path) -> Config {
        let mut disks = Vec::new();
        if !self.layers.is_empty() {
            let content = DiskContent::Partitions(self.layers.to_vec());
            disks.push(Disk { content, read_only: true, rate: Default::default() });
        }
        let content = DiskContent::Raw(self.plan.disk.clone());
        disks.push(Disk { content, read_only: false, rate: Default::default() });
        let mut nets = Vec::new();
        if let (Some(tap), NetworkPlan::Bridge(attachment)) = (self.tap, self.network) {
            let _ = fcntl_setfd(tap, FdFlags::CLOEXEC);
            nets.push(Net { tap: tap.as_raw_fd(), mac: attachment.mac, rate: Default::default() });
        }
        // The id is random: two machines of one user would be one in a million pairs.
        let number = u32::from_str_radix(self.id.get(..8).unwrap_or("0"), 16).unwrap_or(0) % UIDS;
        Config {
            vcpus: self.plan.vcpus,
            memory_mib: self.plan.memory_mib,
            kernel: self.plan.kernel.clone(),
            initrd: Some(self.plan.initrd.clone()),
            cmdline: CMDLINE.into(),
            disks,
            nets,
            vsock: Some(Vsock { cid: self.cid, socket: dir.join(connect::VSOCK) }),
            fs: self.shares.map(|socket| Fs { socket: socket.as_raw_fd(), tag: SHARES_TAG.into() }),
            balloon: true,
            console: Some(dir.join(CONSOLE)),
            control: dir.join("control"),
            jail: Some(Jail {
                uid: FIRST_UID + number,
                gid: FIRST_UID + number,
                root: self.dir.to_owned(),
                keep: Vec::new(),
            }),
        }
    }
}
