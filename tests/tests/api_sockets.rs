//! Where `dhow serve` listens: TCP for those with a certificate only, and sockets that systemd opened.

use dhow_tests::{Store, busybox, have, program};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A server, ended when it is dropped.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn openssl(dir: &Path, args: &[&str]) {
    let out = Command::new("openssl").current_dir(dir).args(args).output().unwrap();
    assert!(out.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// An authority, and what it signed for a server on this host and for a client.
fn certificates(dir: &Path) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    openssl(
        dir,
        &[&["req", "-x509", "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=ca"], &key[..]].concat(),
    );
    for (name, more) in [("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")]
    {
        let subject = format!("/CN={name}");
        let (secret, signed) = (format!("{name}-key.pem"), format!("{name}.pem"));
        let request = [
            "req",
            "-x509",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca-key.pem",
            "-addext",
            more,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        openssl(
            dir,
            &[&request[..], &["-keyout", &secret, "-out", &signed, "-subj", &subject], &key[..]].concat(),
        );
    }
}

#[test]
fn tcp_is_for_those_with_a_certificate() {
    if !have("openssl") || !have("docker") {
        eprintln!("SKIPPED: the programs openssl and docker are needed");
        return;
    }
    let store = Store::new();
    let keys = tempfile::tempdir().unwrap();
    certificates(keys.path());
    let file = |name: &str| keys.path().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server-key.pem"));
    let tls = ["-H", "tcp://127.0.0.1:0", "--tlscacert", &ca, "--tlscert", &cert, "--tlskey", &key];
    let socket = store.run().join("tls.sock");
    let mut command = store.command(&[&["serve", "--socket", socket.to_str().unwrap()][..], &tls].concat());
    let mut serving = Serving(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(serving.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|l| l.strip_prefix("listening at tcp://").map(str::to_owned)).unwrap();
    let docker = |with: &[&str]| -> Output {
        let host = format!("tcp://{address}");
        Command::new("docker")
            .args(["-H", &host])
            .args(with)
            .args(["info", "-f", "{{.ServerVersion}}"])
            .output()
            .unwrap()
    };
    let (cert, key) = (file("client.pem"), file("client-key.pem"));
    let known = || {
        let out = docker(&["--tlsverify", "--tlscacert", &ca, "--tlscert", &cert, "--tlskey", &key]);
        assert!(out.status.success() && !out.stdout.trim_ascii().is_empty(), "{out:?}");
    };
    known();
    // Signed by another authority of the same name.
    let strangers = tempfile::tempdir().unwrap();
    certificates(strangers.path());
    let theirs = |name: &str| strangers.path().join(name).to_str().unwrap().to_owned();
    let (their_cert, their_key) = (theirs("client.pem"), theirs("client-key.pem"));
    for (with, why) in [
        (&["--tlsverify", "--tlscacert", &ca, "--tlscert", &their_cert, "--tlskey", &their_key][..], "tls: "),
        (&["--tlsverify", "--tlscacert", &ca], "tls: "),
        (&[], "HTTP"),
    ] {
        let out = docker(with);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && out.stdout.trim_ascii().is_empty(), "{with:?}: {out:?}");
        assert!(said.contains(why), "{with:?}: {said}");
    }
    known();
}

/// Listens at descriptor 3 as systemd does, and becomes the server.
const ACTIVATE: &str = "import os, socket, sys
s = socket.socket(socket.AF_INET if sys.argv[1] == 'tcp' else socket.AF_UNIX)
s.bind(('127.0.0.1', 0) if sys.argv[1] == 'tcp' else sys.argv[1])
s.listen()
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], ['dhow', 'serve'])
";

#[test]
fn a_socket_of_systemd_is_taken_over() {
    let Some(store) = busybox::store() else { return };
    let path = store.run().join("activated.sock");
    let activated = |at: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", ACTIVATE, at]).arg(program());
        command.env("DHOW_ROOT", store.root()).env("DHOW_RUN", store.run());
        command
    };
    let child = activated(path.to_str().unwrap()).stdout(Stdio::piped()).spawn().unwrap();
    let mut serving = Serving(child);
    let mut first = String::new();
    // Nobody reads on: a server does not end for that.
    BufReader::new(serving.0.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first.trim(), format!("listening at unix://{}", path.display()));
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    std::io::Write::write_all(&mut stream, b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("OK"), "{answer}");
    let tcp = activated("tcp").output().unwrap();
    let said = String::from_utf8_lossy(&tcp.stderr).into_owned();
    assert!(!tcp.status.success() && said.contains("no Unix socket"), "{tcp:?}");
}
