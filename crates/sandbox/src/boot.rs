//! What the host tells the guest's agent first, and what it answers: one length-prefixed JSON document each way, on the
//! connection that the agent makes to [`READY_PORT`] of the host. The same connection goes on with [`crate::protocol`].

use crate::protocol::Failure;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use types::{NetworkPlan, oci};

/// Version of this conversation; an agent of another one refuses.
pub const VERSION: u16 = 7;
/// Port of the host to which the agent connects when it is up.
pub const READY_PORT: u32 = 1024;
/// Port of the guest on which the agent serves [`crate::protocol`].
pub const CONTROL_PORT: u32 = 1025;
/// Name of the virtio file system with what the host shares, whose entries are numbers from 0.
pub const SHARES_TAG: &str = "dhow-shares";
/// Where the agent mounts it, for the specification to bind its entries.
pub const SHARES: &str = "/run/dhow/shares";
/// Where the agent mounts the volumes that are disks, by their numbers, for the specification to bind.
pub const VOLUMES: &str = "/run/dhow/volumes";
/// Most bytes of a document.
const MAX: usize = 4 << 20;

/// All that the agent has to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// See [`VERSION`].
    pub version: u16,
    /// Full id of the container.
    pub id: String,
    /// What to carry out inside.
    #[serde(deserialize_with = "types::lean::spec")]
    pub spec: oci::Spec,
    /// Files that the specification binds, with their contents, by the path of the binding's source in the guest.
    pub files: Vec<(String, String)>,
    /// The specification binds entries of [`SHARES`], which is to be mounted.
    pub shares: bool,
    /// Volumes that are disks, to be mounted below [`VOLUMES`] by their place in this list.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// The network to configure.
    pub network: NetworkPlan,
    /// How many partitions of the read-only disk are layers; base first.
    pub layers: usize,
    /// No workload is started: the machine serves the files of its disks ([`crate::files`]) until the host hangs up.
    pub files_only: bool,
    /// Of such a machine with a volume: the part of that, a path beneath it, whose files are served instead.
    #[serde(default)]
    pub part: String,
    /// Nobody reads the disks once the workload has ended.
    #[serde(default)]
    pub forgotten: bool,
    /// PID 1 is our small init.
    pub init: bool,
    /// stdin is fed.
    pub open_stdin: bool,
    /// Rows and columns of the console.
    pub console_size: Option<(u16, u16)>,
    /// Nanoseconds since the epoch, when this is sent.
    pub now_ns: i64,
}

/// A disk with a volume's filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// As the user knows it, for errors.
    pub name: String,
    /// By which the disk is told from others.
    pub serial: String,
    /// It cannot be written.
    pub read_only: bool,
}

impl Boot {
    /// Whether the workload has a terminal.
    pub fn terminal(&self) -> bool {
        self.spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false)
    }
}

/// The agent's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Everything up to the workload's start is done.
    Prepared,
    /// Of a machine that served its files, when the host has said that it wants no more: all is on its disk.
    Written,
    /// It could not be done.
    Failed(Failure),
}

/// Longest text of a guest's that is shown.
const LONGEST: usize = 1024;

/// What a guest says, fit for a terminal.
pub fn shown(text: &str) -> String {
    text.chars().take(LONGEST).map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// The same of what it refuses.
#[cfg(feature = "vm")]
pub(crate) fn refused(failure: Failure) -> crate::hull::HullError {
    crate::hull::HullError::Guest(Failure { message: shown(&failure.message), ..failure })
}

/// Writes a document.
pub fn write(to: &mut impl Write, document: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(document)?;
    let length = u32::try_from(json.len()).ok().filter(|l| *l as usize <= MAX);
    let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&json)
}

/// Reads a document.
pub fn read<T: serde::de::DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a document of {length} bytes")));
    }
    let mut json = Vec::new();
    from.take(length as u64).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_go_through_and_wrong_ones_are_refused() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Answer::Prepared).unwrap();
        assert!(matches!(read::<Answer>(&mut &bytes[..]).unwrap(), Answer::Prepared));
        assert!(read::<Answer>(&mut &bytes[..bytes.len() - 1]).is_err());
        assert!(read::<Answer>(&mut &[0xff; 8][..]).unwrap_err().to_string().contains("4294967295"));
    }
}
