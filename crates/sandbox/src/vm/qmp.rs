//! What is asked of a running QEMU. Source: QEMU's interop/qmp-spec and its QMP reference.
//!
//! One JSON object a line: a greeting, then an answer for each command; events come in between.

use super::connect;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use vmm::config::DiskRate;
use vmm::control::Timed;

/// Its name in the machine's directory.
pub(super) const SOCKET: &str = "qmp";
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of all that is read on one connection: QEMU may have become the guest's.
const MAX: u64 = 1 << 20;
/// Most lines between a command and its answer.
const EVENTS: usize = 256;

/// A connection. QEMU serves one at a time.
pub(super) struct Qmp {
    lines: io::Take<BufReader<Timed>>,
}

impl Qmp {
    /// Connects to the QEMU of the machine in this directory.
    pub(super) fn connect(dir: &Path) -> io::Result<Self> {
        let socket = connect::timed(dir, SOCKET, Instant::now() + PATIENCE)?;
        let mut qmp = Self { lines: BufReader::new(socket).take(MAX) };
        qmp.line()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Bytes of memory that the machine was started with.
    pub(super) fn memory(&mut self) -> io::Result<u64> {
        number(&self.ask("query-memory-size-summary", json!({}))?, "base-memory")
    }

    /// How many virtual CPUs it has.
    pub(super) fn vcpus(&mut self) -> io::Result<u64> {
        let all = self.ask("query-cpus-fast", json!({}))?;
        all.as_array().map(|all| all.len() as u64).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Bytes of memory that the guest has, without what it gave to the balloon.
    pub(super) fn left(&mut self) -> io::Result<u64> {
        number(&self.ask("query-balloon", json!({}))?, "actual")
    }

    /// Asks the guest to make do with so many bytes of memory.
    pub(super) fn leave(&mut self, bytes: u64) -> io::Result<()> {
        self.ask("balloon", json!({ "value": bytes })).map(drop)
    }

    /// Names of its drives.
    pub(super) fn drives(&mut self) -> io::Result<Vec<String>> {
        let all = self.ask("query-block", json!({}))?;
        let names = all.as_array().into_iter().flatten().filter_map(|drive| drive["device"].as_str());
        Ok(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// Sets the limits of a drive; 0 is none.
    pub(super) fn limit(&mut self, drive: &str, rate: &DiskRate) -> io::Result<()> {
        let DiskRate { read, write } = rate;
        let limits = json!({
            "device": drive, "bps": 0, "iops": 0,
            "bps_rd": read.bytes_per_second, "iops_rd": read.ops_per_second,
            "bps_wr": write.bytes_per_second, "iops_wr": write.ops_per_second
        });
        self.ask("block_set_io_throttle", limits).map(drop)
    }

    /// Has a drive take so many bytes of its file, and tells the guest.
    pub(super) fn resize(&mut self, drive: &str, bytes: u64) -> io::Result<()> {
        self.ask("block_resize", json!({ "device": drive, "size": bytes })).map(drop)
    }

    fn ask(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments });
        let socket = self.lines.get_mut().get_mut();
        socket.extend(Instant::now() + PATIENCE);
        socket.write_all(format!("{text}\n").as_bytes())?;
        for _ in 0..EVENTS {
            let mut line = self.line()?;
            if let Some(error) = line.pointer("/error/desc") {
                return Err(io::Error::other(error.as_str().unwrap_or(command).to_owned()));
            }
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }
}

fn number(answer: &Value, field: &str) -> io::Result<u64> {
    answer.get(field).and_then(Value::as_u64).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A QEMU that says these lines, whatever it hears.
    fn says(lines: &'static str) -> (tempfile::TempDir, std::thread::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let heard = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(lines.as_bytes()).unwrap();
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            let mut heard = String::new();
            socket.read_to_string(&mut heard).unwrap();
            heard
        });
        (dir, heard)
    }

    #[test]
    fn answers_are_found_among_events() {
        let (dir, heard) = says(
            "{\"QMP\":{}}\n{\"return\":{}}\n{\"event\":\"RTC_CHANGE\"}\n{\"return\":{\"actual\":7}}\n\
             {\"error\":{\"class\":\"GenericError\",\"desc\":\"no balloon\"}}\n",
        );
        let mut qmp = Qmp::connect(dir.path()).unwrap();
        assert_eq!(qmp.left().unwrap(), 7);
        assert_eq!(qmp.leave(1).unwrap_err().to_string(), "no balloon");
        drop(qmp);
        assert!(heard.join().unwrap().contains(r#""execute":"query-balloon""#));
    }

    #[test]
    fn drives_are_told_by_their_names() {
        let (dir, heard) = says(
            "{\"QMP\":{}}\n{\"return\":{}}\n\
             {\"return\":[{\"device\":\"disk\"},{\"device\":\"\"},{},{\"device\":\"volume0\"}]}\n",
        );
        let mut qmp = Qmp::connect(dir.path()).unwrap();
        assert_eq!(qmp.drives().unwrap(), ["disk", "volume0"]);
        drop(qmp);
        heard.join().unwrap();
    }

    #[test]
    fn nonsense_is_an_error() {
        for lines in ["", "{\"QMP\":{}}\n{}\n", "x\n", "{\"QMP\":{}}\n{\"return\":{}}\n{\"return\":{}}\n"] {
            let (dir, heard) = says(lines);
            assert!(Qmp::connect(dir.path()).and_then(|mut q| q.left()).is_err(), "{lines}");
            heard.join().unwrap();
        }
    }
}
