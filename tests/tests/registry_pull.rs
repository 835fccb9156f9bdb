//! Pulling from a registry that means well.

use dhow_tests::layout::{self, Layout, Packing, Tar};
use dhow_tests::liar::Liar;
use dhow_tests::registry::{Registry, USER};
use dhow_tests::{Store, have};
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn layer(seed: u64, size: usize) -> Vec<u8> {
    Tar::new().file(&format!("seed-{seed}"), b"").file("big", &layout::noise(seed, size)).end()
}

/// Puts images into a registry, pushed there by skopeo. None if something is not installed.
fn with_image(repository: &str, layers: &[Vec<u8>], packing: Packing) -> Option<Registry> {
    let registry = Registry::start()?;
    if !have("skopeo") {
        println!("skipped: skopeo is not installed");
        return None;
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(tmp.path());
    layout.name(layout.image(layers, packing, layout::arch()), "x");
    registry.receive(&format!("oci:{}:x", tmp.path().display()), repository);
    Some(registry)
}

#[test]
fn tags_digests_and_names() {
    let Some(registry) = with_image("team/app:v1", &[layer(1, 1000), layer(2, 1000)], Packing::Gzip) else {
        return;
    };
    let store = Store::new();
    let name = registry.name("team/app:v1");
    let said = store.ok(&["pull", &name]);
    assert_eq!(said.matches("Status: Downloaded newer image for ").count(), 1, "{said}");
    let digest = said.lines().find_map(|l| l.strip_prefix("Digest: ")).unwrap().to_owned();
    assert_eq!(said.matches("Digest: ").count(), 1, "{said}");
    assert_eq!(said.lines().last().unwrap(), name);

    // Nothing is fetched twice: one configuration and two layers were.
    assert_eq!(registry.blobs_fetched("team/app"), 3);
    assert!(store.ok(&["pull", &name]).contains("Status: Image is up to date for "));
    let by_digest = format!("{}@{digest}", registry.name("team/app"));
    assert_eq!(store.ok(&["pull", "-q", &by_digest]), by_digest);
    assert_eq!(registry.blobs_fetched("team/app"), 3);

    let id = store.ok(&["inspect", "-f", "{{.Id}}", &name]);
    assert_eq!(store.ok(&["inspect", "-f", "{{.Id}}", &by_digest]), id);
    assert_eq!(store.ok(&["inspect", "-f", "{{index .RepoDigests 0}}", &id]), by_digest);
    // Short names are those of Docker Hub.
    store.ok(&["tag", &name, "debian"]);
    assert_eq!(store.ok(&["inspect", "-f", "{{.Id}}", "docker.io/library/debian:latest"]), id);
    assert!(store.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).contains("debian:latest"));

    let gone = store.out(&["pull", "-q", &registry.name("team/app:v2")]);
    assert!(!gone.status.success() && text(&gone).contains("team/app:v2 not found"), "{}", text(&gone));
    let gone = store.out(&["pull", "-q", &registry.name("nobody/nothing")]);
    assert!(!gone.status.success() && text(&gone).contains("nobody/nothing"), "{}", text(&gone));
    assert!(text(&gone).trim_end().lines().count() == 1, "{}", text(&gone));

    // Every tag.
    store.ok(&["tag", &name, &registry.name("team/app:v3")]);
    store.ok(&["push", "-q", &registry.name("team/app:v3")]);
    let other = Store::new();
    other.ok(&["pull", "-q", "-a", &registry.name("team/app")]);
    assert_eq!(other.ok(&["images", "--format", "{{.Tag}}"]).lines().count(), 2);
}

#[test]
fn every_packing() {
    for (tag, packing) in [("plain", Packing::Plain), ("gzip", Packing::Gzip), ("zstd", Packing::Zstd)] {
        let Some(registry) = with_image(tag, &[layer(3, 200_000)], packing) else { return };
        let store = Store::new();
        store.ok(&["pull", "-q", &registry.name(tag)]);
        let id = store.ok(&["create", &registry.name(tag), "x"]);
        let out = store.out(&["cp", &format!("{id}:/big"), "-"]);
        let big = layout::noise(3, 200_000);
        assert!(out.stdout.windows(64).any(|w| *w == big[..64]), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn the_platform_is_chosen_from_an_index() {
    let Some(registry) = Registry::start() else { return };
    if !have("skopeo") {
        println!("skipped: skopeo is not installed");
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(tmp.path());
    let of =
        |arch: &str| layout.image(&[Tar::new().file("arch", arch.as_bytes()).end()], Packing::Gzip, arch);
    let (single, host, other) = (of("s390x"), of(layout::arch()), of("riscv64"));
    let index = layout.index(&[single.clone(), host, other]);
    layout.name(index, "multi");
    layout.name(single, "single");
    let from = |tag: &str| format!("oci:{}:{tag}", tmp.path().display());
    registry.receive(&from("multi"), "multi:1");
    registry.receive(&from("single"), "single:1");

    let store = Store::new();
    let multi = registry.name("multi:1");
    store.ok(&["pull", "-q", &multi]);
    assert_eq!(
        store.ok(&["inspect", "-f", "{{.Os}}/{{.Architecture}}", &multi]),
        format!("linux/{}", layout::arch())
    );
    store.ok(&["pull", "-q", "--platform", "linux/s390x", &multi]);
    assert_eq!(store.ok(&["inspect", "-f", "{{.Architecture}}", &multi]), "s390x");

    let host = format!("linux/{}", layout::arch());
    for (args, words) in [
        (&["pull", "-q", "--platform", "linux/ppc64le", &multi][..], ["linux/ppc64le", "linux/riscv64"]),
        (&["pull", "-q", &registry.name("single:1")], [&host, "linux/s390x"]),
    ] {
        let out = store.out(args);
        let said = text(&out);
        assert!(!out.status.success() && said.trim_end().lines().count() == 1, "{said}");
        assert!(words.iter().all(|w| said.contains(w)), "{said}");
    }
}

#[test]
fn passwords_come_from_login_and_from_helpers() {
    let Some(registry) = Registry::with_password() else { return };
    let (user, password) = USER;
    let store = Store::new();
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config.json");
    let run = |args: &[&str], input: &str| {
        let mut command = store.command(args);
        command.env("DOCKER_CONFIG", home.path()).env("HOME", home.path());
        command.env("PATH", format!("{}:{}", home.path().display(), std::env::var("PATH").unwrap()));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let must = |args: &[&str], input: &str| {
        let out = run(args, input);
        assert!(out.status.success(), "{args:?}: {}", text(&out));
    };
    let name = registry.name("private/x");
    std::fs::write(home.path().join("layer.tar"), layer(5, 10)).unwrap();
    must(&["import", home.path().join("layer.tar").to_str().unwrap(), &name], "");

    let refused = run(&["push", "-q", &name], "");
    assert!(!refused.status.success() && text(&refused).contains("dhow login"), "{}", text(&refused));
    let wrong = run(&["login", "-u", user, "--password-stdin", &registry.host], "wrong");
    assert!(
        !wrong.status.success() && text(&wrong).contains("incorrect username or password"),
        "{}",
        text(&wrong)
    );
    assert!(!config.exists(), "a refused password was kept");

    must(&["login", "-u", user, "--password-stdin", &registry.host], password);
    let kept = std::fs::read_to_string(&config).unwrap();
    assert!(kept.contains(&registry.host) && !kept.contains(password), "{kept}");
    assert_eq!(std::fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o600);
    must(&["push", "-q", &name], "");
    must(&["rmi", &name], "");
    must(&["pull", "-q", &name], "");
    must(&["logout", &registry.host], "");
    assert!(!std::fs::read_to_string(&config).unwrap().contains("\"auth\""));
    must(&["rmi", &name], "");
    let refused = run(&["pull", "-q", &name], "");
    assert!(!refused.status.success() && text(&refused).contains("dhow login"), "{}", text(&refused));

    // A helper keeps it instead, and is asked for it.
    let helper = home.path().join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nd={}/kept\ncase $1 in\nstore) cat > $d;;\nget) cat $d 2>/dev/null || \
         {{ echo credentials not found in native keychain; exit 1; }};;\nerase) rm -f $d;;\nesac\n",
        home.path().display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let helpers = serde_json::json!({"credHelpers": {&registry.host: "test"}, "other": {"kept": true}});
    std::fs::write(&config, helpers.to_string()).unwrap();
    must(&["login", "-u", user, "--password-stdin", &registry.host], password);
    let kept = std::fs::read_to_string(home.path().join("kept")).unwrap();
    assert!(kept.contains(user) && kept.contains(password), "{kept}");
    let config = std::fs::read_to_string(&config).unwrap();
    assert!(!config.contains(password) && config.contains("kept"), "{config}");
    must(&["pull", "-q", &name], "");
    must(&["logout", &registry.host], "");
    assert!(!home.path().join("kept").exists());
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let layers: Vec<_> = (10..15).map(|s| layer(s, 1 << 20)).collect();
    let Some(registry) = with_image("twice", &layers, Packing::Gzip) else { return };
    let store = Store::new();
    let name = registry.name("twice");
    let start = || store.command(&["pull", "-q", &name]).stdout(Stdio::null()).spawn().unwrap();
    for mut child in [start(), start(), start()] {
        assert!(child.wait().unwrap().success());
    }
    // Five layers; the configuration is small and may be asked for by each.
    let gets = registry.blobs_fetched("twice");
    assert!((6..=8).contains(&gets), "{gets} blobs were fetched");
}

#[test]
fn a_killed_pull_is_taken_up_where_it_was() {
    let liar = Liar::start();
    let layers = [layer(20, 2 << 20), layer(21, 100)];
    let paths = liar.serve(&layers, layout::arch());
    liar.change(&paths[0], |a| a.speed = 1 << 20);
    let store = Store::new();
    let mut child = store.command(&["pull", "-q", &liar.image()]).stdout(Stdio::null()).spawn().unwrap();
    let partials = || -> Vec<u64> {
        let all = std::fs::read_dir(store.root().join("content/tmp")).into_iter().flatten().flatten();
        all.filter(|e| e.file_name().to_string_lossy().ends_with(".partial"))
            .filter_map(|e| Some(e.metadata().ok()?.len()))
            .collect()
    };
    let begun = Instant::now();
    while !partials().iter().any(|n| *n > 500_000) {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing arrives");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(store.ok(&["images", "-aq"]), "");

    liar.change(&paths[0], |a| a.speed = 0);
    store.ok(&["pull", "-q", &liar.image()]);
    assert_eq!(liar.requests(&format!("GET {} from=0", paths[0])), 1, "the first part was fetched again");
    assert_eq!(liar.requests(&format!("GET {} from=", paths[0])), 2);
    assert_eq!(liar.requests(&format!("GET {} from=", paths[1])), 1);
    assert!(partials().is_empty());
    let left: Vec<_> = std::fs::read_dir(store.root().join("layers")).unwrap().flatten().collect();
    assert_eq!(left.len(), 2, "something of the killed pull is left: {left:?}");
}

#[test]
fn plain_http_is_for_this_host_and_those_that_are_named() {
    let Some(registry) = with_image("plain", &[layer(30, 10)], Packing::Gzip) else { return };
    let port = registry.host.rsplit(':').next().unwrap();
    let store = Store::new();
    store.ok(&["pull", "-q", &format!("localhost:{port}/plain")]);
    // The same registry under a name that is not this host's own loopback, as far as Dhow can tell.
    let Some(other) = std::net::UdpSocket::bind("0.0.0.0:0").ok().and_then(|s| {
        s.connect("192.0.2.1:9").ok()?;
        Some(s.local_addr().ok()?.ip().to_string())
    }) else {
        return println!("skipped: no address but loopback");
    };
    let forward = std::net::TcpListener::bind(format!("{other}:0")).unwrap();
    let name = format!("{}/plain", forward.local_addr().unwrap());
    let to = registry.host.clone();
    std::thread::spawn(move || {
        for a in forward.incoming().flatten() {
            let Ok(b) = std::net::TcpStream::connect(&to) else { continue };
            let (mut a2, mut b2) = (a.try_clone().unwrap(), b.try_clone().unwrap());
            let (mut a, mut b) = (a, b);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut a, &mut b);
                let _ = b.shutdown(std::net::Shutdown::Write);
            });
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut b2, &mut a2);
                let _ = a2.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    let out = store.out(&["pull", "-q", &name]);
    assert!(!out.status.success(), "plain HTTP was spoken to a registry that nobody named");
    assert_eq!(text(&out).trim_end().lines().count(), 1, "{}", text(&out));
    let host = name.split('/').next().unwrap();
    store.ok(&["pull", "-q", "--insecure-registry", host, &name]);
    let mut command = store.command(&["pull", "-q", &name]);
    assert!(command.env("DHOW_INSECURE_REGISTRIES", format!("a,{host}")).status().unwrap().success());
}
