//! What a microVM is made of. The process of the VMM reads it as JSON, before it opens or jails anything.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A microVM. Paths are the host's; everything is opened before the jail closes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Virtual CPUs, 1 to 254.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// A bzImage or an ELF vmlinux.
    pub kernel: PathBuf,
    /// The initramfs, if any.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Disks in the order in which the guest numbers them (`/dev/vda`, `/dev/vdb`).
    pub disks: Vec<Disk>,
    /// Network interfaces.
    pub nets: Vec<Net>,
    /// Virtual socket, if any.
    pub vsock: Option<Vsock>,
    /// Directories of the host, if any.
    #[serde(default)]
    pub fs: Option<Fs>,
    /// A device that gives memory back to the host, with free-page reporting.
    pub balloon: bool,
    /// Where the serial console's output goes (appended, bounded to [`CONSOLE_BYTES`]); nowhere if none.
    pub console: Option<PathBuf>,
    /// Socket of the control protocol (pause, resume, stop, balloon, rate limits, figures).
    pub control: PathBuf,
    /// How the process is shut in before the guest's first instruction; none only for development.
    pub jail: Option<Jail>,
}

/// The console's file never grows beyond this.
pub const CONSOLE_BYTES: u64 = 1 << 20;

/// A virtio block device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// What it holds.
    pub content: DiskContent,
    /// The guest cannot write.
    pub read_only: bool,
    /// Its raw file is one that others may want, too: it is locked as long as the machine lives, alone or, if it is
    /// read-only, with others that read. This is its name for errors.
    #[serde(default)]
    pub lock: Option<String>,
    /// Limits of throughput.
    #[serde(default)]
    pub rate: DiskRate,
}

/// What a disk is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskContent {
    /// One raw file or block device.
    Raw(PathBuf),
    /// Read-only files, one after the other, each a partition of a GPT that exists only in the VMM: the guest sees
    /// the first file as partition 1. Files are padded to 1 MiB boundaries by zeros that no file holds.
    Partitions(Vec<PathBuf>),
}

/// A virtio network interface on an existing tap device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Net {
    /// Inherited descriptor of the tap, opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR.
    pub tap: i32,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Limits of throughput, from the guest and to it.
    #[serde(default)]
    pub rate: RateLimit,
}

/// A virtio socket device, served on Unix sockets: who connects to `socket` and writes `CONNECT PORT\n` reaches the
/// guest's listener on PORT and reads `OK LOCAL_PORT\n` first; a guest that connects to PORT of the host (CID 2)
/// reaches the listener at `socket` + `_PORT`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vsock {
    /// Context id of the guest, 3 or more.
    pub cid: u64,
    /// Path of the listening Unix socket.
    pub socket: PathBuf,
}

/// A virtio file system, served by another process ([`crate::fs`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fs {
    /// Inherited descriptor of the socket to that process.
    pub socket: i32,
    /// Name by which the guest mounts it, at most 36 bytes.
    pub tag: String,
}

/// Token buckets; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Bytes per second, in each direction.
    pub bytes_per_second: u64,
    /// Requests or packets per second, in each direction.
    pub ops_per_second: u64,
}

/// The limits of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRate {
    /// Of what the guest reads.
    pub read: RateLimit,
    /// Of what it writes.
    pub write: RateLimit,
}

/// The walls around the process of the VMM itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Jail {
    /// The unprivileged user and group it becomes.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// A directory that becomes its root, read-only: empty, or with the sockets of the virtual socket.
    pub root: PathBuf,
    /// Inherited descriptors that stay open beside the standard ones and those of devices: a held lock, for instance.
    #[serde(default)]
    pub keep: Vec<i32>,
}
