//! Credentials as Docker keeps them: `~/.docker/config.json` with `auths`, `credHelpers` and `credsStore`, and the
//! protocol of `docker-credential-helpers`.

use crate::ImageError;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The key of Docker Hub, for historical reasons.
const HUB: &str = "https://index.docker.io/v1/";

/// What lets a user in.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password or access token.
    Password {
        /// User.
        user: String,
        /// Password.
        password: String,
    },
    /// An identity token (OAuth2 refresh token).
    Token(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password of {user:?}"),
            Self::Token(_) => f.write_str("Token"),
        }
    }
}

impl Credentials {
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => Some(format!("{user}:{password}")),
            Self::Token(_) => None,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperEntry {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    username: String,
    secret: String,
}

/// Where the configuration lies: `$DOCKER_CONFIG` or `~/.docker`.
pub fn config_path() -> Option<PathBuf> {
    let dir = match std::env::var_os("DOCKER_CONFIG").filter(|d| !d.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(&std::env::var_os("HOME")?).join(".docker"),
    };
    Some(dir.join("config.json"))
}

fn load(path: &Path) -> Result<Map<String, Value>, ImageError> {
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        Err(e) => Err(ImageError::io("read", path, e)),
        Ok(bytes) if bytes.trim_ascii().is_empty() => Ok(Map::new()),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| ImageError::Invalid(format!("{} is not valid JSON: {e}", path.display()))),
    }
}

fn key(host: &str) -> &str {
    if host == "docker.io" { HUB } else { host }
}

/// Whether an entry of `auths` is for a registry; old entries are addresses.
fn is_for(entry: &str, host: &str) -> bool {
    let bare = entry.trim_start_matches("https://").trim_start_matches("http://");
    let bare = bare.split('/').next().unwrap_or(bare);
    let hub = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    bare == host || host == "docker.io" && hub.contains(&bare)
}

fn helper_for(config: &Map<String, Value>, host: &str) -> Option<String> {
    let own = config
        .get("credHelpers")
        .and_then(Value::as_object)
        .and_then(|h| h.iter().find(|(k, _)| is_for(k, host)).and_then(|(_, v)| v.as_str()));
    let name = own.or_else(|| config.get("credsStore").and_then(Value::as_str))?;
    // It becomes part of a program's name.
    let sane = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    sane.then(|| name.to_owned())
}

/// Looks credentials up; none is fine.
pub fn find(host: &str) -> Result<Option<Credentials>, ImageError> {
    let Some(path) = config_path() else { return Ok(None) };
    let config = load(&path)?;
    if let Some(helper) = helper_for(&config, host)
        && let Some(found) = ask_helper(&helper, host)?
    {
        return Ok(Some(found));
    }
    let auths = config.get("auths").and_then(Value::as_object);
    let entry = auths
        .and_then(|a| a.get(key(host)).or_else(|| a.iter().find(|(k, _)| is_for(k, host)).map(|(_, v)| v)));
    let Some(entry) = entry else { return Ok(None) };
    let text = |k: &str| entry.get(k).and_then(Value::as_str).filter(|s| !s.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials::Token(token.to_owned())));
    }
    if let (Some(user), Some(password)) = (text("username"), text("password")) {
        return Ok(Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() }));
    }
    let Some(auth) = text("auth") else { return Ok(None) };
    let damaged = || ImageError::Invalid(format!("the entry for {host} in {} is damaged", path.display()));
    let pair = BASE64_STANDARD.decode(auth).map_err(|_| damaged())?;
    let pair = String::from_utf8(pair).map_err(|_| damaged())?;
    let (user, password) = pair.split_once(':').ok_or_else(damaged)?;
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Some(Credentials::Password { user: user.to_owned(), password }))
}

fn run_helper(helper: &str, verb: &str, input: &[u8]) -> Result<(bool, Vec<u8>), ImageError> {
    let program = format!("docker-credential-{helper}");
    let fail = |e| ImageError::io("run the credential helper", Path::new(&program), e);
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(fail)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read is its own business.
        let _ = stdin.write_all(input);
    }
    let out = child.wait_with_output().map_err(fail)?;
    Ok((out.status.success(), out.stdout))
}

fn ask_helper(helper: &str, host: &str) -> Result<Option<Credentials>, ImageError> {
    let (ok, out) = run_helper(helper, "get", key(host).as_bytes())?;
    if !ok {
        // "credentials not found in native keychain", in words that differ.
        return Ok(None);
    }
    let entry: HelperEntry = serde_json::from_slice(&out).map_err(|_| {
        ImageError::Invalid(format!("docker-credential-{helper} answers something that is no credential"))
    })?;
    Ok(Some(match entry.username.as_str() {
        "<token>" => Credentials::Token(entry.secret),
        _ => Credentials::Password { user: entry.username, password: entry.secret },
    }))
}

fn save(path: &Path, config: &Map<String, Value>) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    let fail = |e| ImageError::io("write", path, e);
    // A link, as people who keep their configuration elsewhere have it, stays one.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let path = target.as_path();
    let dir = path.parent().unwrap_or(Path::new("."));
    if !dir.exists() {
        std::fs::create_dir_all(dir).map_err(fail)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(fail)?;
    }
    let mut bytes = serde_json::to_vec_pretty(config).map_err(|e| fail(e.into()))?;
    bytes.push(b'\n');
    // Passwords must not be readable for others at any moment: a new file of mode 0600 takes the old one's place.
    let unique = u64::from_ne_bytes(sys::host::random::<8>().map_err(fail)?);
    let tmp = dir.join(format!(".config.json.{unique:016x}"));
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    let write = |mut f: std::fs::File| f.write_all(&bytes).and_then(|()| f.sync_all());
    let written = options.open(&tmp).and_then(write).and_then(|()| std::fs::rename(&tmp, path));
    written.inspect_err(|_| drop(std::fs::remove_file(&tmp))).map_err(fail)
}

/// Remembers credentials that a registry accepted. Answers where: a helper's name, or the file, in which the
/// password stands unencrypted.
pub fn store(host: &str, user: &str, password: &str) -> Result<String, ImageError> {
    let path =
        config_path().ok_or_else(|| ImageError::Invalid("neither DOCKER_CONFIG nor HOME is set".into()))?;
    let mut config = load(&path)?;
    if let Some(helper) = helper_for(&config, host) {
        let entry =
            HelperEntry { server_url: key(host).into(), username: user.into(), secret: password.into() };
        let input = serde_json::to_vec(&entry).unwrap_or_default();
        let (ok, _) = run_helper(&helper, "store", &input)?;
        return match ok {
            true => Ok(format!("docker-credential-{helper}")),
            false => {
                Err(ImageError::Invalid(format!("docker-credential-{helper} did not store the credentials")))
            }
        };
    }
    let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let auths = config.entry("auths").or_insert_with(|| json!({}));
    let auths = auths
        .as_object_mut()
        .ok_or_else(|| ImageError::Invalid(format!("\"auths\" in {} is not an object", path.display())))?;
    auths.insert(key(host).to_owned(), json!({ "auth": auth }));
    save(&path, &config)?;
    Ok(path.display().to_string())
}

/// Forgets credentials. False: there were none.
pub fn erase(host: &str) -> Result<bool, ImageError> {
    let Some(path) = config_path() else { return Ok(false) };
    let mut config = load(&path)?;
    let mut found = false;
    if let Some(helper) = helper_for(&config, host) {
        found = run_helper(&helper, "erase", key(host).as_bytes())?.0;
    }
    if let Some(auths) = config.get_mut("auths").and_then(Value::as_object_mut) {
        let before = auths.len();
        auths.retain(|k, _| !is_for(k, host));
        if auths.len() != before {
            found = true;
            save(&path, &config)?;
        }
    }
    Ok(found)
}
