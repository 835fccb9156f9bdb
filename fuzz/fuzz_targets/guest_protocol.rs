//! What the two sides of a microVM say to each other: documents, streams and lists, from a guest or a host that says
//! what it likes. The host's side is also driven as a whole, over a socket behind which the fuzzer answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox::boot::{self, Answer, Boot};
use sandbox::files::{self, Processes, Receiver, Request, Stat, changes};
use sandbox::vm::Files;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::thread;

/// Most bytes that the host takes in a stream.
const LIMIT: u64 = 1000;

/// Directory of a machine whose guest says what is sent here.
static GUEST: LazyLock<(tempfile::TempDir, Mutex<Sender<Vec<u8>>>)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    // Below the run directory, as the hull makes it.
    std::fs::create_dir(dir.path().join("vm")).unwrap();
    let listener = UnixListener::bind(dir.path().join("vm/vsock")).unwrap();
    let (sender, answers) = channel::<Vec<u8>>();
    thread::spawn(move || {
        for answer in answers {
            let (mut socket, _) = listener.accept().unwrap();
            let mut line = [0; 13];
            socket.read_exact(&mut line).unwrap();
            assert_eq!(line, *b"CONNECT 1026\n");
            // The host may not want all of it.
            let _ = socket.write_all(&answer);
        }
    });
    (dir, Mutex::new(sender))
});

/// What was understood can be said again, and is understood as the same.
fn document<T: Serialize + DeserializeOwned>(mut bytes: &[u8]) {
    if let Ok(document) = boot::read::<T>(&mut bytes) {
        let mut again = Vec::new();
        boot::write(&mut again, &document).unwrap();
        let back: T = boot::read(&mut &again[..]).unwrap();
        assert_eq!(serde_json::to_value(&back).unwrap(), serde_json::to_value(&document).unwrap());
    }
}

fn host(choice: u8, answer: &[u8]) {
    let (dir, sender) = &*GUEST;
    sender.lock().unwrap().send(answer.to_vec()).unwrap();
    let files = Files::of(dir.path(), LIMIT);
    let mut out = Vec::new();
    let result = match choice % 6 {
        0 => files.stat(Path::new("/a")).map(drop),
        1 => files.processes().map(drop),
        2 => files.pack(Path::new("/a"), None, &mut out),
        3 => files.changes().map(drop),
        4 => files.layer(false, &mut out),
        _ => files.unpack(Path::new("/a"), false, None, &mut &answer[..]),
    };
    assert!(out.len() as u64 <= LIMIT);
    if let Err(e) = result {
        assert!(!e.to_string().is_empty());
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    match choice % 8 {
        0 => document::<Boot>(bytes),
        1 => document::<Answer>(bytes),
        2 => document::<Request>(bytes),
        3 => document::<files::Answer>(bytes),
        4 => document::<Stat>(bytes),
        5 => {
            document::<Processes>(bytes);
            let _ = changes::read(bytes);
        }
        6 => {
            let mut content = Vec::new();
            let _ = Receiver::new(bytes, LIMIT).read_to_end(&mut content);
            assert!(content.len() as u64 <= LIMIT);
        }
        _ => host(choice / 8, bytes),
    }
});
