//! What a hostile client can send to a supervisor: any bytes, in any pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox::protocol::Decoder;

fuzz_target!(|input: (usize, &[u8])| {
    let (cut, bytes) = input;
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(cut % 4096 + 1) {
        decoder.input().extend(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    // Whatever was understood can be said again.
                    let mut again = Vec::new();
                    let _ = frame.encode(&mut again);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
