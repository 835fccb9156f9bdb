//! Messages about names: what a workload asks, what a server outside answers, and what a guest's agent sends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use net::dns::relay::{Frame, next_part};

fuzz_target!(|data: &[u8]| {
    net::dns::fuzz_message(data);
    let mut rest = data;
    while let Some(part) = next_part(&mut rest) {
        if let Some(frame) = Frame::parse(part) {
            let mut again = Vec::new();
            frame.write(&mut again);
            let back = next_part(&mut &again[..]).and_then(Frame::parse);
            assert_eq!(back, Some(frame));
            net::dns::fuzz_message(frame.message);
        }
    }
});
