//! Operations in a process of their own: with its own environment, and, as root, with its own `/etc`.

use image::{PullOptions, PushOptions, Quiet, registry::Access};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use types::{ImageRef, Kinded};

/// What a worker said, and how long it took.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub text: String,
    pub took: Duration,
}

/// The place that workers see.
pub struct World {
    pub dir: tempfile::TempDir,
    env: Vec<(String, String)>,
    own_etc: bool,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["etc", "bin", "docker"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let mut world = Self { dir, env: Vec::new(), own_etc: false };
        let docker = world.path("docker");
        world.set("DOCKER_CONFIG", &docker);
        let path = format!("{}:{}", world.path("bin"), std::env::var("PATH").unwrap_or_default());
        world.set("PATH", &path);
        world
    }

    /// With an `/etc` of its own in which only these hosts are known. None if that cannot be had here.
    pub fn with_etc(hosts: &str, resolv: &str) -> Option<Self> {
        let works = Command::new("unshare").args(["-m", "mount", "--bind", "/etc", "/etc"]).output();
        if !works.is_ok_and(|o| o.status.success()) {
            println!("skipped: a private /etc needs root and unshare");
            return None;
        }
        let mut world = Self::new();
        world.own_etc = true;
        world.write("etc/hosts", hosts);
        world.write("etc/resolv.conf", resolv);
        Some(world)
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn program(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        self.write(&format!("bin/{name}"), text);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.path(&format!("bin/{name}")), mode).unwrap();
    }

    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts `verb store image [insecure]`, `login registry user password [insecure]` or `logout registry`.
    pub fn start(&self, words: &[&str]) -> Child {
        let exe = std::env::current_exe().unwrap();
        let own = ["worker", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
        let mut command = match self.own_etc {
            false => Command::new(&exe),
            true => {
                let mut c = Command::new("unshare");
                let script = "mount --bind \"$0\" /etc && exec \"$@\"";
                c.args(["-m", "sh", "-c", script, &self.path("etc")]).arg(&exe);
                c
            }
        };
        command.args(own).env_clear().envs(self.env.iter().cloned());
        command.env("DHOW_TEST_WORDS", words.join("\n"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn run(&self, words: &[&str]) -> Said {
        let start = Instant::now();
        let said = said(&self.start(words).wait_with_output().unwrap());
        Said { took: start.elapsed(), ..said }
    }

    pub fn pull(&self, store: &Path, image: &str) -> Said {
        self.run(&["pull", store.to_str().unwrap(), image])
    }
}

pub fn said(out: &Output) -> Said {
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().find_map(|l| l.split_once("worker says ").map(|(_, w)| w.to_owned()));
    let err = || format!("{text}{}", String::from_utf8_lossy(&out.stderr));
    let line = line.unwrap_or_else(|| panic!("the worker failed: {}", err()));
    Said {
        ok: line.starts_with("ok "),
        text: line.split_once(' ').unwrap().1.to_owned(),
        took: Duration::ZERO,
    }
}

/// The other side of [`World::start`]; nothing if this is no worker.
pub fn work() {
    let Ok(words) = std::env::var("DHOW_TEST_WORDS") else { return };
    let words: Vec<&str> = words.lines().collect();
    let access = |at: usize| Access {
        insecure: words.get(at).into_iter().map(|w| w.to_string()).collect(),
        ..Access::default()
    };
    let done = match words[..] {
        ["pull", store, name, ..] => {
            let options = PullOptions { access: access(3), ..Default::default() };
            let name = ImageRef::parse(name).unwrap();
            let store = super::open(Path::new(store));
            store.pull(&name, &options, &Quiet).map(|p| format!("{} {}", p.image.id, p.up_to_date))
        }
        ["push", store, name, ..] => {
            let options = PushOptions { access: access(3) };
            let name = ImageRef::parse(name).unwrap();
            super::open(Path::new(store)).push(&name, &options, &Quiet).map(|p| p.digest.to_string())
        }
        ["login", registry, user, password, ..] => image::login(registry, user, password, &access(4)),
        ["logout", registry] => image::logout(registry).map(|found| found.to_string()),
        _ => panic!("{words:?}"),
    };
    match done {
        Ok(text) => println!("\nworker says ok {text}"),
        Err(e) => println!("\nworker says {:?} {e}", e.kind()),
    }
}
