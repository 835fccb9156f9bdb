//! How registries are reached and let one in: certificates, proxies, names, tokens, stored credentials. Each
//! operation runs in a process with an environment of its own.

extern crate dhow_image as image;

mod common;

use common::liar::{Answer, Liar, blob_path, manifest_path};
use common::world::World;
use common::{RegistryServer, Store, docker_archive, layer_tar, load};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use types::Platform;

/// A name that only the workers' `/etc/hosts` knows; not loopback by its name.
const HOSTS: &str = "127.0.0.1 localhost\n127.0.0.1 registry.test other.test\n";
/// `user` with the password `secret`.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

#[test]
#[ignore = "the other tests run it as a process of its own"]
fn worker() {
    common::world::work();
}

fn openssl(dir: &Path, args: &str) -> bool {
    Command::new("openssl").args(args.split(' ')).current_dir(dir).output().is_ok_and(|o| o.status.success())
}

/// A registry with TLS, the directory of its `ca.crt`, and its port.
fn tls() -> Option<(RegistryServer, tempfile::TempDir, String)> {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::write(d.join("ext"), "subjectAltName=DNS:registry.test,IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let made = openssl(d, &format!("req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=private"))
        && openssl(d, &format!("req -x509 {key} -keyout x.key -out other.crt -days 2 -subj /CN=other"))
        && openssl(d, &format!("req {key} -keyout key.pem -out csr.pem -subj /CN=registry.test"))
        && openssl(
            d,
            "x509 -req -in csr.pem -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem",
        );
    if !made {
        println!("skipped: openssl is not installed");
        return None;
    }
    let tls = format!(
        "  tls: {{certificate: {}, key: {}}}",
        d.join("cert.pem").display(),
        d.join("key.pem").display()
    );
    let registry = RegistryServer::start_with(&tls, "")?;
    let port = registry.host.rsplit(':').next().unwrap().to_owned();
    Some((registry, dir, port))
}

fn stored(name: &str) -> Store {
    let store = Store::new();
    let seed = name.bytes().fold(1, |a: u64, b| a.wrapping_mul(31) + u64::from(b));
    load(&store.images, &docker_archive(name, &[layer_tar(seed, 100_000)])).unwrap();
    store
}

fn one_sentence(text: &str) {
    assert!(!text.contains('\n') && text.len() < 300, "{text}");
    assert!(!text.to_lowercase().contains("error:"), "{text}");
}

#[test]
fn certificates_decide() {
    let Some((_registry, certs, port)) = tls() else { return };
    let Some(mut world) = World::with_etc(HOSTS, "") else { return };
    let host = format!("registry.test:{port}");
    let name = format!("{host}/tls/x");
    let (from, to) = (stored(&name), Store::new());
    let from = from.dir.path().to_str().unwrap();
    let copy = |file: &str, to: &str| {
        world.write(to, &std::fs::read_to_string(certs.path().join(file)).unwrap());
    };

    // No certificate, a wrong one, something else: one sentence that says what to do.
    let said = world.run(&["push", from, &name]);
    assert!(!said.ok && said.text.contains("certificate") && said.text.contains("certs.d"), "{said:?}");
    one_sentence(&said.text);
    copy("other.crt", &format!("etc/docker/certs.d/{host}/ca.crt"));
    let said = world.run(&["push", from, &name]);
    assert!(!said.ok && said.text.contains("certificate is not trusted"), "{said:?}");
    one_sentence(&said.text);
    world.write(&format!("etc/docker/certs.d/{host}/ca.crt"), "no PEM");
    let said = world.run(&["push", from, &name]);
    assert!(!said.ok && said.text.contains("no PEM certificate"), "{said:?}");

    // Docker's directory.
    copy("ca.crt", &format!("etc/docker/certs.d/{host}/ca.crt"));
    let said = world.run(&["push", from, &name]);
    assert!(said.ok, "{said:?}");
    let said = world.pull(to.dir.path(), &name);
    assert!(said.ok, "{said:?}");
    std::fs::remove_dir_all(world.path("etc/docker")).unwrap();

    // The user's word, our directory, the system's bundle.
    let said = world.run(&["pull", Store::new().dir.path().to_str().unwrap(), &name, &host]);
    assert!(said.ok, "{said:?}");
    copy("ca.crt", "certs/ca.crt");
    let dir = world.path("certs");
    world.set("DHOW_CERTS", &dir);
    let said = world.pull(Store::new().dir.path(), &name);
    assert!(said.ok, "{said:?}");
    world.set("DHOW_CERTS", "/nonexistent").set("SSL_CERT_FILE", &format!("{dir}/ca.crt"));
    let said = world.pull(Store::new().dir.path(), &name);
    assert!(said.ok, "{said:?}");

    // A certificate for another name.
    let said = world.pull(Store::new().dir.path(), &format!("other.test:{port}/tls/x"));
    assert!(!said.ok && said.text.contains("certificate"), "{said:?}");
    one_sentence(&said.text);
    // Plain HTTP where TLS is spoken, and the other way round.
    let liar = Liar::start();
    let said = world.pull(to.dir.path(), &format!("{}/r", liar.host.replace("127.0.0.1", "registry.test")));
    assert!(!said.ok, "{said:?}");
    one_sentence(&said.text);
}

/// Tunnels to wherever it is told, at `127.0.0.1`; logs the addresses.
fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = log.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let seen = seen.clone();
            std::thread::spawn(move || tunnel(client, &seen));
        }
    });
    (address, log)
}

fn tunnel(mut client: TcpStream, log: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        reader.read_line(&mut head).ok().filter(|n| *n > 0)?;
    }
    log.lock().unwrap().push(head.clone());
    let target = head.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    let port = target.rsplit(':').next()?;
    let server = TcpStream::connect(format!("127.0.0.1:{port}")).ok()?;
    client.write_all(b"HTTP/1.1 200 ok\r\n\r\n").ok()?;
    let (mut up, mut down) = (server.try_clone().ok()?, server);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut reader, &mut up);
        let _ = up.shutdown(std::net::Shutdown::Write);
    });
    let _ = std::io::copy(&mut down, &mut client);
    let _ = client.shutdown(std::net::Shutdown::Both);
    Some(())
}

#[test]
fn proxies_are_heeded() {
    let Some((_registry, certs, port)) = tls() else { return };
    let Some(mut world) = World::with_etc(HOSTS, "") else { return };
    let (address, log) = proxy();
    let name = format!("registry.test:{port}/proxy/x");
    let from = stored(&name);
    let ca = certs.path().join("ca.crt");
    world.set("SSL_CERT_FILE", ca.to_str().unwrap());
    world.set("HTTPS_PROXY", &format!("http://me:pass@{address}"));
    // The proxy resolves the name.
    world.write("etc/hosts", "127.0.0.1 localhost\n");
    let said = world.run(&["push", from.dir.path().to_str().unwrap(), &name]);
    assert!(said.ok, "{said:?}");
    let heads = std::mem::take(&mut *log.lock().unwrap());
    assert!(heads[0].starts_with(&format!("CONNECT registry.test:{port} ")), "{heads:?}");
    assert!(
        heads[0].to_lowercase().contains("proxy-authorization: basic bwu6cgfzcw==".to_lowercase().as_str())
    );

    // Not for what NO_PROXY names.
    world.write("etc/hosts", HOSTS);
    world.set("NO_PROXY", ".test");
    let said = world.pull(Store::new().dir.path(), &name);
    assert!(said.ok && log.lock().unwrap().is_empty(), "{said:?}");

    // HTTP_PROXY is for plain HTTP, and this very host needs no proxy.
    world.set("NO_PROXY", "").set("HTTPS_PROXY", "").set("http_proxy", &address);
    let liar = Liar::start();
    liar.image(&layer_tar(70, 1000), &Platform::host().architecture);
    let local = liar.host.clone();
    let said = world.pull(Store::new().dir.path(), &format!("{local}/r"));
    assert!(said.ok && log.lock().unwrap().is_empty(), "{said:?}");
    let far = local.replace("127.0.0.1", "registry.test");
    let store = Store::new();
    let said = world.run(&["pull", store.dir.path().to_str().unwrap(), &format!("{far}/r"), &far]);
    assert!(said.ok && !log.lock().unwrap().is_empty(), "{said:?}");

    // A proxy that is not there.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.set("http_proxy", &format!("http://{gone}"));
    let said = world.run(&["pull", Store::new().dir.path().to_str().unwrap(), &format!("{far}/r"), &far]);
    assert!(!said.ok, "{said:?}");
    one_sentence(&said.text);
}

/// Answers every question for `known.test` with 127.0.0.1 and denies all other names.
fn name_server(silent: bool) -> Option<String> {
    let [a, b] = sys::host::random::<2>().unwrap();
    let address = format!("127.53.{a}.{}", b.clamp(1, 254));
    let Ok(socket) = UdpSocket::bind((address.as_str(), 53)) else {
        println!("skipped: port 53 cannot be had");
        return None;
    };
    std::thread::spawn(move || {
        let mut buf = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut buf) {
            if silent {
                continue;
            }
            // The question is sent back; its name ends with a zero, type and class follow.
            let end = 12 + buf[12..n].iter().position(|b| *b == 0).unwrap() + 5;
            let question = &buf[12..end];
            let known = question.starts_with(b"\x05known\x04test\0");
            let ipv4 = question[question.len() - 3] == 1;
            let mut out = buf[..2].to_vec();
            out.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(known && ipv4), 0, 0, 0, 0]);
            out.extend(question);
            if known && ipv4 {
                out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 127, 0, 0, 1]);
            }
            let _ = socket.send_to(&out, from);
        }
    });
    Some(address)
}

#[test]
fn names_are_resolved_without_libc() {
    let (Some(server), Some(mute)) = (name_server(false), name_server(true)) else { return };
    let Some(world) = World::with_etc(HOSTS, &format!("nameserver {server}\n")) else { return };
    let liar = Liar::start();
    liar.image(&layer_tar(71, 1000), &Platform::host().architecture);
    let port = liar.host.rsplit(':').next().unwrap();
    let pull = |host: &str| {
        let store = Store::new();
        let host = format!("{host}:{port}");
        world.run(&["pull", store.dir.path().to_str().unwrap(), &format!("{host}/r"), &host])
    };
    // By /etc/hosts, by DNS.
    for host in ["registry.test", "other.test", "known.test", "localhost"] {
        let said = pull(host);
        assert!(said.ok && said.took < Duration::from_secs(8), "{host}: {said:?}");
    }
    let unknown = |most: u64| {
        let said = pull("nowhere.test");
        assert!(!said.ok && said.text.contains("nowhere.test"), "{said:?}");
        assert!(said.text.contains("cannot be resolved"), "{said:?}");
        assert!(said.took < Duration::from_secs(most), "{said:?}");
        one_sentence(&said.text);
    };
    unknown(5);
    // A server that says nothing, one that is not there, none at all.
    world.write("etc/resolv.conf", &format!("nameserver {mute}\noptions timeout:1 attempts:1\n"));
    unknown(15);
    assert!(pull("registry.test").ok);
    world.write("etc/resolv.conf", "nameserver 127.53.255.255\n");
    unknown(15);
    std::fs::remove_file(world.path("etc/resolv.conf")).unwrap();
    assert!(pull("registry.test").ok);
    unknown(15);
}

#[test]
fn login_and_logout_keep_the_rest() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("htpasswd");
    std::fs::write(&file, HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: r, path: {}}}}}", file.display());
    let Some(registry) = RegistryServer::start_with("", &auth) else { return };
    let world = World::new();
    let host = registry.host.as_str();
    let name = format!("{host}/private/x");
    let store = stored(&name);
    let from = store.dir.path().to_str().unwrap();

    let said = world.run(&["push", from, &name]);
    assert!(!said.ok && said.text.contains(&format!("dhow login {host}")), "{said:?}");
    let config = world.path("docker/config.json");
    world.write(
        "docker/config.json",
        r#"{"HttpHeaders":{"X":"y"},"auths":{"example.org":{"auth":"YTpi","email":"e"}},"n":1.5}"#,
    );
    let said = world.run(&["login", host, "user", "wrong"]);
    assert!(!said.ok && said.text.contains("incorrect username or password"), "{said:?}");
    let said = world.run(&["login", host, "user", "secret"]);
    assert!(said.ok && said.text.contains("config.json"), "{said:?}");
    assert_eq!(std::fs::metadata(&config).unwrap().permissions().mode() & 0o7777, 0o600);
    let read = || -> serde_json::Value { serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap() };
    let written = read();
    assert_eq!(written["auths"][host]["auth"], "dXNlcjpzZWNyZXQ=");
    assert_eq!(written["auths"]["example.org"]["email"], "e");
    assert_eq!((&written["HttpHeaders"]["X"], &written["n"]), (&"y".into(), &1.5.into()));

    let said = world.run(&["push", from, &name]);
    assert!(said.ok, "{said:?}");
    let said = world.pull(Store::new().dir.path(), &name);
    assert!(said.ok, "{said:?}");
    // A linked file stays linked, and its target is what changes.
    std::fs::rename(&config, world.path("real.json")).unwrap();
    std::os::unix::fs::symlink("../real.json", &config).unwrap();
    assert_eq!(world.run(&["logout", host]).text, "true");
    assert!(std::fs::symlink_metadata(&config).unwrap().is_symlink());
    assert!(read()["auths"].get(host).is_none() && read()["auths"].get("example.org").is_some());
    assert_eq!(world.run(&["logout", host]).text, "false");
    let said = world.pull(Store::new().dir.path(), &name);
    assert!(!said.ok && said.text.contains("dhow login"), "{said:?}");
    // Damaged configurations are named.
    world.write("real.json", "{");
    let said = world.pull(Store::new().dir.path(), &name);
    assert!(!said.ok && said.text.contains("config.json"), "{said:?}");
    one_sentence(&said.text);
}

/// Keeps one entry in a file beside itself, and logs what it was asked.
const HELPER: &str = r#"#!/bin/sh
d=$(dirname "$0"); in=$(cat); echo "$1 $in" >>"$d/log"
case $1 in
  get) [ -f "$d/kept" ] && cat "$d/kept" || { echo "credentials not found in native keychain"; exit 1; } ;;
  store) echo "$in" >"$d/kept" ;;
  erase) rm "$d/kept" ;;
esac
"#;

#[test]
fn credential_helpers_are_asked() {
    let (liar, world) = (Liar::start(), World::new());
    liar.image(&layer_tar(72, 1000), &Platform::host().architecture);
    let basic = Some(("Basic dXNlcjpzZWNyZXQ=".to_owned(), "Basic realm=\"x\"".to_owned()));
    let paths: Vec<String> = liar.answers.lock().unwrap().keys().cloned().collect();
    paths.iter().for_each(|p| liar.change(p, |a| a.auth = basic.clone()));
    let host = liar.host.as_str();
    let name = format!("{host}/r");
    for (config, helper) in [
        (format!(r#"{{"credHelpers":{{"{host}":"one"}},"credsStore":"absent"}}"#), "one"),
        (r#"{"credsStore":"two"}"#.to_owned(), "two"),
    ] {
        world.program(&format!("docker-credential-{helper}"), HELPER);
        world.write("docker/config.json", &config);
        let _ = std::fs::remove_file(world.path("bin/log"));
        let said = world.pull(Store::new().dir.path(), &name);
        assert!(!said.ok, "{said:?}");
        let said = world.run(&["login", host, "user", "secret"]);
        assert_eq!((said.ok, said.text.as_str()), (true, &*format!("docker-credential-{helper}")));
        let said = world.pull(Store::new().dir.path(), &name);
        assert!(said.ok, "{said:?}");
        assert_eq!(world.run(&["logout", host]).text, "true");
        let log = std::fs::read_to_string(world.path("bin/log")).unwrap();
        let expected = format!(
            "get {host}\nstore {{\"ServerURL\":\"{host}\",\"Username\":\"user\",\"Secret\":\"secret\"}}\nget {host}\nerase {host}\n"
        );
        assert_eq!(log, expected);
        assert_eq!(std::fs::read_to_string(world.path("docker/config.json")).unwrap(), config);
    }
    world.write("docker/config.json", r#"{"credsStore":"absent"}"#);
    let said = world.pull(Store::new().dir.path(), &name);
    assert!(!said.ok && said.text.contains("docker-credential-absent"), "{said:?}");
    one_sentence(&said.text);
}

fn token(text: &str) -> Answer {
    Answer { status: 200, body: format!(r#"{{"access_token":"{text}"}}"#).into_bytes(), ..Default::default() }
}

fn bearer(liar: &Liar, realm: &str, path: &str, token: &str) {
    let challenge = format!("Bearer realm=\"http://{realm}/token\",service=\"s\"");
    liar.change(path, |a| a.auth = Some((format!("Bearer {token}"), challenge)));
}

#[test]
fn a_token_that_expires_is_renewed() {
    let (liar, world) = (Liar::start(), World::new());
    let (_, layer) = liar.image(&layer_tar(73, 1000), &Platform::host().architecture);
    let paths: Vec<String> = liar.answers.lock().unwrap().keys().cloned().collect();
    for path in paths.iter().filter(|p| *p != "/v2/") {
        bearer(&liar, &liar.host, path, if *path == blob_path(&layer) { "two" } else { "one" });
    }
    liar.set("/token", Answer { then: Some(Box::new(token("two"))), ..token("one") });
    world.write(
        "docker/config.json",
        &format!(r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#, liar.host),
    );
    let said = world.pull(Store::new().dir.path(), &format!("{}/r", liar.host));
    assert!(said.ok, "{said:?}");
    let asked =
        "GET /token?service=s&scope=repository%3Ar%3Apull&account=user range= auth=Basic dXNlcjpwYXNz";
    assert_eq!(liar.logged(asked), 2);

    // An identity token is exchanged, as OAuth wants it: one scope parameter.
    liar.set("/token", Answer { then: Some(Box::new(token("two"))), ..token("one") });
    let entry = r#"{"auth":"PHRva2VuPjo=","identitytoken":"re fresh"}"#;
    world.write("docker/config.json", &format!(r#"{{"auths":{{"{}":{entry}}}}}"#, liar.host));
    let said = world.pull(Store::new().dir.path(), &format!("{}/r", liar.host));
    assert!(said.ok, "{said:?}");
    let words = "grant_type=refresh_token&client_id=dhow&refresh_token=re%20fresh&service=s&scope=repository%3Ar%3Apull";
    assert_eq!(liar.logged("POST /token range= auth= "), 2);
    assert_eq!(liar.logged(words), 2);

    // A token service that refuses, or answers nonsense.
    liar.set("/token", Answer { status: 401, ..Default::default() });
    let said = world.pull(Store::new().dir.path(), &format!("{}/r", liar.host));
    assert!(!said.ok && said.text.contains("login to"), "{said:?}");
    one_sentence(&said.text);
    liar.set("/token", Answer { status: 200, body: b"[]".to_vec(), ..Default::default() });
    let said = world.pull(Store::new().dir.path(), &format!("{}/r", liar.host));
    assert!(!said.ok && said.text.contains("no token"), "{said:?}");
}

#[test]
fn a_push_asks_for_its_scope() {
    let (liar, elsewhere, world) = (Liar::start(), Liar::start(), World::new());
    let name = format!("{}/r", liar.host);
    let store = stored(&name);
    let image = store.images.resolve(&name, None).unwrap();
    // The upload of blobs goes to another host, without the token.
    let accepted = |place: &str| Answer {
        status: 202,
        headers: vec![("Location".into(), format!("http://{}{place}", elsewhere.host))],
        ..Default::default()
    };
    liar.set("POST /v2/r/blobs/uploads/", accepted("/up?a=b"));
    bearer(&liar, &liar.host, "POST /v2/r/blobs/uploads/", "push");
    elsewhere.set("PUT /up", Answer { status: 201, ..Default::default() });
    liar.set(&format!("PUT {}", manifest_path("latest")), Answer { status: 201, ..Default::default() });
    bearer(&liar, &liar.host, &format!("PUT {}", manifest_path("latest")), "push");
    liar.set(&blob_path(&image.id), Answer { status: 404, ..Default::default() });
    bearer(&liar, &liar.host, &blob_path(&image.id), "push");
    liar.set("/token", token("push"));
    world.write(
        "docker/config.json",
        &format!(r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#, liar.host),
    );
    let said = world.run(&["push", store.dir.path().to_str().unwrap(), &name]);
    assert!(said.ok, "{said:?}");
    assert_eq!(liar.logged("GET /token?service=s&scope=repository%3Ar%3Apull%2Cpush&account=user"), 1);
    assert_eq!(
        elsewhere.logged("PUT /up?a=b&digest=sha256%3A") + elsewhere.logged("PUT /up?a=b&digest=sha256:"),
        2
    );
    assert_eq!(elsewhere.logged("auth=B"), 0);
}

#[test]
fn a_silent_registry_is_given_up() {
    let mut world = World::new();
    world.set("DHOW_REGISTRY_TIMEOUT", "1");
    let arch = Platform::host().architecture;
    for what in ["manifest", "blob head", "blob body"] {
        let (liar, store) = (Liar::start(), Store::new());
        let (_, layer) = liar.image(&layer_tar(74, 300_000), &arch);
        match what {
            "manifest" => liar.change(&manifest_path("latest"), |a| a.stall_at = Some(0)),
            "blob head" => liar.change(&blob_path(&layer), |a| a.stall_at = Some(0)),
            _ => liar.change(&blob_path(&layer), |a| {
                // Some bytes, and never again one.
                a.then = Some(Box::new(Answer { stall_at: Some(0), ..a.clone() }));
                a.stall_at = Some(1000);
            }),
        }
        let said = world.pull(store.dir.path(), &format!("{}/r", liar.host));
        assert!(
            !said.ok && said.text.contains(&liar.host) && said.text.contains("silent"),
            "{what}: {said:?}"
        );
        assert!(said.took < Duration::from_secs(30), "{what}: {said:?}");
        one_sentence(&said.text);
    }
    // One that takes no connection at all.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let said = world.pull(Store::new().dir.path(), &format!("{host}/r"));
    assert!(!said.ok && said.text.contains("silent") && said.took < Duration::from_secs(15), "{said:?}");
}
