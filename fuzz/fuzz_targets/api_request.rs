//! Requests to `dhow serve`: paths, parameters, credentials, and what the rules of `--restrict` let through.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| api::fuzz_request(data));
