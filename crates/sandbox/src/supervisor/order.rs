//! What a supervisor finds when it begins: the order of the command that made it, and the state of earlier runs.

use super::connection::Connection;
use crate::protocol::{Frame, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use types::{RunState, Status};

/// The order to start was sent before this process was made: it is there, or never comes.
const ORDER_WAIT: Duration = Duration::from_secs(5);

/// Waits for the first frames of the command that started this process. One that died leaves a start without witnesses.
pub(super) fn take_order(socket: UnixStream) -> (Option<Request>, Option<Connection>) {
    let Ok(mut client) = Connection::new(socket) else { return (None, None) };
    let until = Instant::now() + ORDER_WAIT;
    while Instant::now() < until && !client.dead {
        match client.decoder.next_frame() {
            Ok(Some(Frame::Hello)) => {
                client.greeted = true;
                continue;
            }
            Ok(Some(Frame::Request(request))) if client.greeted => {
                client.send(&Frame::Hello);
                return (Some(*request), Some(client));
            }
            Ok(None) => {}
            _ => return (None, None),
        }
        let mut fds = [PollFd::new(&client.socket, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
        client.receive();
    }
    (None, None)
}

/// What is known of earlier runs. One that claims to be running ended with its host.
pub(super) fn previous_state(dir: &Path) -> RunState {
    let bytes = std::fs::read(dir.join("state.json")).unwrap_or_default();
    let mut state: RunState = serde_json::from_slice(&bytes).unwrap_or_default();
    if state.status.is_active() {
        state.status = Status::Exited;
    }
    state
}
