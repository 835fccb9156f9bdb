//! What a client can send to the control socket of a VMM: any bytes, in any pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use vmm::control::{Answer, Client, Request, State};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut client = Client::new(theirs).unwrap();
    let mut answers = Vec::new();
    for piece in bytes.chunks(usize::from(cut) % 5000 + 1) {
        ours.write_all(piece).unwrap();
        if !client.serve(answer) {
            break;
        }
        let _ = ours.read_to_end(&mut answers);
    }
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    let lines_back: Vec<&[u8]> = answers.split_inclusive(|byte| *byte == b'\n').collect();
    assert!(lines_back.len() <= lines);
    for line in lines_back {
        serde_json::from_slice::<Answer>(line).unwrap();
    }
});

fn answer(request: Request) -> Answer {
    match request {
        Request::Status => {
            Answer::Status { state: State::Paused, vcpus: 1, memory_mib: 2, balloon_mib: 0, disks: 1 }
        }
        Request::Pause | Request::Resume | Request::Stop => Answer::Done,
        other => Answer::Refused { why: format!("{other:?}") },
    }
}
