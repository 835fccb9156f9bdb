//! Asks a published port until it answers over HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(2);
/// A connection that was taken before the workload listened may stay silent.
const PATIENCE: Duration = Duration::from_millis(500);

/// A thread that asks; it ends when it is dropped.
pub(super) struct Asking {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<Instant>>>,
}

impl Asking {
    /// Begins.
    pub fn begin(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let ask_on = move || {
            while !told.load(Ordering::Relaxed) {
                if let Some(when) = ask(address) {
                    return Some(when);
                }
                std::thread::sleep(PAUSE);
            }
            None
        };
        Self { stop, thread: Some(std::thread::spawn(ask_on)) }
    }

    /// When the first answer came; `None` as long as there is none.
    pub fn answered(&mut self) -> Option<Instant> {
        let thread = self.thread.take_if(|t| t.is_finished())?;
        thread.join().ok().flatten()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ask(address: SocketAddr) -> Option<Instant> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut start = [0; 5];
    stream.read_exact(&mut start).ok()?;
    (&start == b"HTTP/").then(Instant::now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn only_http_is_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = std::thread::spawn(move || {
            for answer in ["", "SSH-2.0-x\r\n", "HTTP/1.0 404 Not Found\r\n\r\n"] {
                let (mut peer, _) = listener.accept().unwrap();
                let _ = peer.read(&mut [0; 512]);
                let _ = peer.write_all(answer.as_bytes());
            }
        });
        let begun = Instant::now();
        let mut asking = Asking::begin(address);
        let deadline = begun + Duration::from_secs(20);
        let answered = loop {
            match asking.answered() {
                Some(when) => break when,
                None => assert!(Instant::now() < deadline, "no answer"),
            }
            std::thread::sleep(PAUSE);
        };
        assert!(answered >= begun);
        // It took all three: the first two were no answers.
        serve.join().unwrap();
    }
}
