//! What a client types or sends, on its way to a process: read only as fast as it can be sent, and looked through for the keys
//! that detach. Reading and waiting are the caller's business.

use crate::keys::Watcher;
use sandbox::client::{ClientError, Stream};

/// One read of input: small enough to fit into a socket that polls as writable.
const INPUT: usize = 32 << 10;

/// Input for a process.
#[derive(Debug)]
pub struct Feed {
    open: bool,
    watcher: Option<Watcher>,
    buffer: Vec<u8>,
    /// Read, but not yet sent.
    pending: Vec<u8>,
    /// The end was read, but not yet told.
    end: bool,
    detached: bool,
}

impl Feed {
    /// Input that is `wanted` or not, and the keys that detach, where there are such.
    pub fn new(wanted: bool, keys: Option<Vec<u8>>) -> Self {
        Self {
            open: wanted,
            watcher: keys.filter(|_| wanted).map(Watcher::new),
            buffer: vec![0; if wanted { INPUT } else { 1 }],
            pending: Vec::new(),
            end: false,
            detached: false,
        }
    }

    /// Whether there is something to send.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty() || self.end
    }

    /// Whether more may be read.
    pub fn wants_more(&self) -> bool {
        self.open && !self.is_waiting()
    }

    /// Where to read to.
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// So many bytes were read; none is the end.
    pub fn take(&mut self, n: usize) {
        let bytes = self.buffer.get(..n).unwrap_or_default();
        if n == 0 {
            (self.open, self.end) = (false, true);
        } else if let Some(watcher) = &mut self.watcher {
            self.detached = watcher.feed(bytes, &mut self.pending);
            self.open = !self.detached;
        } else {
            self.pending.extend_from_slice(bytes);
        }
    }

    /// Sends once.
    pub fn send(&mut self, stream: &Stream) -> Result<(), ClientError> {
        let sent = if !self.pending.is_empty() {
            stream
                .write_stdin_some(&self.pending)
                .map(|n| drop(self.pending.drain(..n.min(self.pending.len()))))
        } else if std::mem::take(&mut self.end) {
            stream.end_stdin()
        } else {
            Ok(())
        };
        match sent {
            // It ended; its exit code is on the way.
            Err(ClientError::Gone) => {
                self.pending.clear();
                (self.open, self.end) = (false, false);
                Ok(())
            }
            other => other,
        }
    }

    /// Whether the keys were pressed, and all before them was sent.
    pub fn has_detached(&self) -> bool {
        self.detached && !self.is_waiting()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(feed: &mut Feed, bytes: &[u8]) {
        feed.buffer()[..bytes.len()].copy_from_slice(bytes);
        feed.take(bytes.len());
    }

    #[test]
    fn input_waits_until_it_is_sent() {
        let mut feed = Feed::new(true, None);
        assert!(feed.wants_more() && !feed.is_waiting());
        read(&mut feed, b"a");
        assert!(!feed.wants_more() && feed.is_waiting());
        feed.pending.clear();
        read(&mut feed, b"");
        assert!(feed.is_waiting() && !feed.wants_more() && !feed.has_detached());
        assert!(!Feed::new(false, Some(vec![16])).wants_more());
    }

    #[test]
    fn what_was_typed_before_the_keys_is_sent_first() {
        let mut feed = Feed::new(true, Some(vec![16, 17]));
        read(&mut feed, b"ls\x10\x11");
        assert_eq!(feed.pending, b"ls");
        assert!(!feed.has_detached() && !feed.wants_more());
        feed.pending.clear();
        assert!(feed.has_detached() && !feed.wants_more());
    }
}
