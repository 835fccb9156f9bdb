//! The server of shared directories before a guest that asks what it likes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::symlink;
use vmm::fs::{LONGEST, Server};

/// FORGET, SETLKW, INTERRUPT, BATCH_FORGET.
const UNANSWERED: [u32; 4] = [2, 33, 36, 42];

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    let (shared, outside) = (dir.path().join("shared"), dir.path().join("outside"));
    for made in [&shared, &shared.join("d"), &outside] {
        fs::create_dir(made).unwrap();
    }
    fs::write(shared.join("f"), "text").unwrap();
    // What no input can contain.
    let secret = format!("{:016x}", RandomState::new().build_hasher().finish());
    fs::write(outside.join("f"), &secret).unwrap();
    symlink(&outside, shared.join("l")).unwrap();
    let server = Server::new(fs::File::open(&shared).unwrap().into(), 8).unwrap();
    let mut rest = data;
    // A length, an opcode, a node, then arguments; the header's other fields are right, but for the first request.
    while let Some(([length, opcode, node], more)) = rest.split_first_chunk() {
        let (body, next) = more.split_at(more.len().min(usize::from(*length)));
        rest = next;
        let lie = u32::from(node / 128);
        let mut request = Vec::new();
        request.extend((40 + body.len() as u32 + lie).to_le_bytes());
        request.extend(u32::from(*opcode).to_le_bytes());
        request.extend(7u64.to_le_bytes());
        request.extend(u64::from(node % 128).to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        match server.answer(&request) {
            None => assert!(UNANSWERED.contains(&u32::from(*opcode))),
            Some(answer) => {
                assert!(answer.len() <= LONGEST);
                assert_eq!(answer[..4], (answer.len() as u32).to_le_bytes());
                assert!(!answer.windows(secret.len()).any(|window| window == secret.as_bytes()));
            }
        }
    }
    let _ = server.answer(data);
    assert_eq!(fs::read(outside.join("f")).unwrap(), secret.as_bytes());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
});
