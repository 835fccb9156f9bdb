//! The embedded image's only program: it says where it finds itself, on a terminal or over HTTP.
//!
//! It depends on nothing but the standard library, so that `rustc` alone builds it (see the build script of the
//! `dhow` crate), and it reads nothing but `/proc`, `/sys` and its environment.
#![forbid(unsafe_code)]

mod facts;
mod http;

use facts::Facts;
use std::process::ExitCode;

const USAGE: &str = "Usage: hello [--json] [--http [ADDRESS:]PORT]

Says where it finds itself: kernel, hull, user, limits, namespaces.
With --http, or with PORT in the environment, serves the same as a page at /,
as JSON at /json, and answers /healthz. For measurements: /rounds works for a
while and says how much it did, /bytes sends 32 MiB.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => match std::env::var("PORT") {
            Ok(port) => http::serve(&port),
            Err(_) => say(&Facts::gather().text()),
        },
        ["--json"] => say(&Facts::gather().json()),
        ["--http"] => http::serve(&std::env::var("PORT").unwrap_or_else(|_| "8080".into())),
        ["--http", address] => http::serve(address),
        ["--help" | "-h"] => say(USAGE),
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn say(text: &str) -> ExitCode {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
