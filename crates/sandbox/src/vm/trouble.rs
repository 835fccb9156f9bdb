//! What a hypervisor says of the host's trouble with a disk: a full one, above all. The guest sees an I/O error and may hide
//! it; the mark that is left here says why.

use crate::boot::shown;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A file in the machine's directory with the reason, in a sentence.
const MARK: &str = "disk-error";
/// Most bytes of it.
const LONGEST: u64 = 256;
/// Most bytes of an event of QEMU's, which may have become the guest's.
const EVENT: u64 = 16 << 10;
/// What our own VMM says, before the reason (`vmm::devices::block`).
const COMPLAINT: &str = ": the guest gets an I/O error: ";

/// Leaves the mark, once.
fn mark(dir: &Path, why: &str) {
    if let Ok(mut file) = std::fs::File::create_new(dir.join(MARK)) {
        let why: String = shown(why).replace('\n', " ").chars().take(100).collect();
        let _ = write!(file, "the microVM's disk failed on the host: {why}");
    }
}

/// The mark, if there is one.
pub(super) fn told(dir: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(dir.join(MARK)).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Looks through what our own VMM said last, which its guest cannot write to.
pub(super) fn heard(dir: &Path, said: &str) {
    let why = said
        .lines()
        .filter(|line| line.starts_with("vmm: disk "))
        .find_map(|line| line.split_once(COMPLAINT).map(|(_, why)| why));
    if let Some(why) = why {
        mark(dir, why);
    }
}

/// Listens on a thread for QEMU's event of a failed disk (BLOCK_IO_ERROR in its QMP reference) on a connection of its own.
pub(super) fn listen(dir: &Path, qemu: UnixStream) -> io::Result<()> {
    let dir = dir.to_owned();
    let thread = std::thread::Builder::new().name("disk".into()).stack_size(128 << 10);
    thread.spawn(move || drop(follow(dir, qemu))).map(drop)
}

fn follow(dir: PathBuf, mut qemu: UnixStream) -> io::Result<()> {
    qemu.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    let mut from = BufReader::new(qemu);
    loop {
        let mut line = Vec::new();
        if from.by_ref().take(EVENT).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if let Some(why) = reason(&line) {
            mark(&dir, &why);
            // Once is enough, and what is not read would be kept by QEMU.
            return io::copy(&mut from, &mut io::sink()).map(drop);
        }
    }
}

fn reason(line: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(line).ok()?;
    (event.get("event")?.as_str()? == "BLOCK_IO_ERROR")
        .then(|| event.pointer("/data/reason").and_then(Value::as_str).unwrap_or("an I/O error").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_leaves_its_mark_once() {
        let dir = tempfile::tempdir().unwrap();
        heard(dir.path(), "vmm: more of this\nmy disk x: the guest gets an I/O error: forged\n");
        assert_eq!(told(dir.path()), None);
        heard(dir.path(), "x\nvmm: disk dhow-1: the guest gets an I/O error: No space\x1b left\nx\n");
        heard(dir.path(), "vmm: disk dhow-1: the guest gets an I/O error: other\n");
        assert_eq!(told(dir.path()).unwrap(), "the microVM's disk failed on the host: No space? left");
    }

    #[test]
    fn the_event_is_found_among_others() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let said = "{\"QMP\":{}}\n{\"return\":{}}\nnonsense\n{\"event\":\"RTC_CHANGE\"}\n\
                    {\"event\":\"BLOCK_IO_ERROR\",\"data\":{\"nospace\":true,\"reason\":\"No space left\"}}\nmore";
        qemu.write_all(said.as_bytes()).unwrap();
        qemu.shutdown(std::net::Shutdown::Write).unwrap();
        follow(dir.path().into(), ours).unwrap();
        assert!(told(dir.path()).unwrap().ends_with(": No space left"));
    }
}
