//! Debian's `docker-registry` on a port of its own, with storage that goes away with it.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// User and password of a registry that asks for them.
pub const USER: (&str, &str) = ("tester", "s3cret-pass");
/// The same as bcrypt, the only form that this registry reads.
const HTPASSWD: &str = "tester:$2y$05$Kl8cB7cNdbhP/Klteh51quOK.yhEKZuPNPsIOjdColCVB6tGSQGqW\n";

/// A registry that runs.
pub struct Registry {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub host: String,
    dir: tempfile::TempDir,
}

impl Registry {
    /// A registry that lets everybody in. None if the program is not there; then the reason was printed.
    pub fn start() -> Option<Self> {
        Self::launch("")
    }

    /// A registry that lets only [`USER`] in.
    pub fn with_password() -> Option<Self> {
        Self::launch("auth: {htpasswd: {realm: dhow-tests, path: DIR/htpasswd}}\n")
    }

    fn launch(more: &str) -> Option<Self> {
        if !crate::have("docker-registry") {
            println!("skipped: docker-registry is not installed");
            return None;
        }
        // Between choosing a port and binding it another test may take it: then once more.
        (0..5).find_map(|_| Self::attempt(more)).or_else(|| panic!("the registry does not start"))
    }

    fn attempt(more: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let yaml = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: false}}, level: info}}\n\
             storage: {{filesystem: {{rootdirectory: {at}/data}}, delete: {{enabled: true}}}}\n\
             http: {{addr: 127.0.0.1:{port}}}\n{}",
            more.replace("DIR", &at.to_string())
        );
        std::fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
        std::fs::write(dir.path().join("config.yml"), yaml).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { child, host: format!("127.0.0.1:{port}"), dir };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if !matches!(server.child.try_wait(), Ok(None)) {
                return None;
            }
            if TcpStream::connect(&server.host).is_ok() {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// `127.0.0.1:PORT/repository`.
    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.host)
    }

    /// How many requests of the access log hold all these words.
    pub fn requests(&self, words: &[&str]) -> usize {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        log.lines().filter(|l| l.starts_with("127.0.0.1 ") && words.iter().all(|w| l.contains(w))).count()
    }

    /// Blobs that were fetched from a repository.
    pub fn blobs_fetched(&self, repository: &str) -> usize {
        self.requests(&[&format!("\"GET /v2/{repository}/blobs/")])
    }

    /// Copies an image into it with skopeo, which is another's idea of the protocol.
    pub fn receive(&self, source: &str, repository: &str) {
        let to = format!("docker://{}", self.name(repository));
        let done = Command::new("skopeo")
            .args(["copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "--multi-arch=all"])
            .args([source, &to])
            .output()
            .unwrap();
        assert!(done.status.success(), "skopeo: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Where it keeps what it has.
    pub fn data(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
