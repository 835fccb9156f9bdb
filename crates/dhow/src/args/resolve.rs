//! Finishes a [`Draft`] with what only the machine knows: the environment, files that flags name, the working directory.

use super::request::Draft;
use super::{lists, mounts};
use engine::CreateRequest;
use std::path::{Component, Path, PathBuf};
use types::docker::MountType;

/// What a command line may refer to.
pub struct Surroundings<'a> {
    /// Base of relative paths.
    pub cwd: &'a Path,
    /// Our own environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

/// Reads the files, looks up the variables and makes paths absolute.
pub fn resolve(draft: Draft, around: &Surroundings<'_>) -> Result<CreateRequest, String> {
    let mut request = draft.request;
    let env = environment(&draft.env_files, &draft.env, around)?;
    request.config.env = (!env.is_empty()).then_some(env);
    let mut labels = Vec::new();
    for file in &draft.label_files {
        labels.extend(lists::env_file(&read(file)?).map_err(|e| format!("invalid label file {file}: {e}"))?);
    }
    labels.extend(draft.labels);
    request.config.labels = Some(lists::label_map(&labels)?).filter(|l| !l.is_empty());
    let binds: Vec<String> = draft
        .binds
        .into_iter()
        .map(|(source, target, options)| {
            let source = if mounts::is_relative_name(&source) { source } else { absolute(&source, around) };
            if options.is_empty() {
                format!("{source}:{target}")
            } else {
                format!("{source}:{target}:{options}")
            }
        })
        .collect();
    request.host.binds = (!binds.is_empty()).then_some(binds);
    for m in request.host.mounts.iter_mut().flatten() {
        if m.typ == Some(MountType::BIND)
            && let Some(source) = &m.source
        {
            m.source = Some(absolute(source, around));
        }
    }
    for o in request.host.security_opt.iter_mut().flatten() {
        inline_profile(o)?;
    }
    Ok(request)
}

/// Variables of the files, then those of the flags; a name alone takes our own value, or is left out.
pub fn environment(
    files: &[String],
    flags: &[String],
    around: &Surroundings<'_>,
) -> Result<Vec<String>, String> {
    let mut out: Vec<String> = Vec::new();
    let mut all = Vec::new();
    for file in files {
        all.extend(lists::env_file(&read(file)?).map_err(|e| format!("invalid env file {file}: {e}"))?);
    }
    all.extend(flags.iter().cloned());
    for entry in all {
        if entry.contains('=') {
            out.push(entry);
        } else if let Some(value) = (around.env)(&entry) {
            out.push(format!("{entry}={value}"));
        }
    }
    Ok(out)
}

/// Docker's clients send a seccomp profile itself, not its path.
fn inline_profile(option: &mut String) -> Result<(), String> {
    let Some(value) = option.strip_prefix("seccomp=") else { return Ok(()) };
    if matches!(value, "unconfined" | "builtin" | "default") || value.trim_start().starts_with('{') {
        return Ok(());
    }
    let text = std::fs::read_to_string(value)
        .map_err(|e| format!("opening seccomp profile ({value}) failed: {e}"))?;
    let json: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| format!("compacting json for seccomp profile ({value}) failed: {e}"))?;
    *option = format!("seccomp={json}");
    Ok(())
}

fn read(file: &str) -> Result<String, String> {
    let bytes = std::fs::read(file).map_err(|e| format!("open {file}: {e}"))?;
    String::from_utf8(bytes).map_err(|_| format!("{file} is not valid UTF-8 text"))
}

/// An absolute path without `.` and `..`; symbolic links are left for the kernel to follow.
fn absolute(path: &str, around: &Surroundings<'_>) -> String {
    let path = match path.strip_prefix("~/") {
        Some(rest) => match (around.env)("HOME") {
            Some(home) => Path::new(&home).join(rest),
            None => PathBuf::from(path),
        },
        None => PathBuf::from(path),
    };
    if path.is_absolute() && !path.components().any(|c| matches!(c, Component::ParentDir | Component::CurDir))
    {
        return path.to_string_lossy().into_owned();
    }
    let mut out = PathBuf::from("/");
    for c in around.cwd.join(path).components() {
        match c {
            Component::Normal(n) => out.push(n),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::request::draft;
    use super::super::testing::flags;
    use super::*;

    fn around<'a>() -> Surroundings<'a> {
        Surroundings { cwd: Path::new("/work"), env: &|n| (n == "SET").then(|| "yes".to_owned()) }
    }

    fn create(args: &[&str]) -> Result<CreateRequest, String> {
        let (f, mut rest) = flags(args);
        let image = rest.remove(0);
        resolve(draft(f, image, rest)?, &around())
    }

    #[test]
    fn the_environment_is_looked_up() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "F=1\nSET\n").unwrap();
        let path = file.path().to_str().unwrap();
        let r = create(&["-e", "A=1", "-e", "SET", "-e", "UNSET", "--env-file", path, "img"]).unwrap();
        assert_eq!(r.config.env.unwrap(), ["F=1", "SET=yes", "A=1", "SET=yes"]);
        assert!(create(&["--env-file", "/does/not/exist", "img"]).is_err());
    }

    #[test]
    fn relative_sources_become_absolute() {
        let r = create(&["-v", "./x/../y:/a:ro", "-v", "vol:/b", "--mount", "type=bind,src=z,dst=/c", "img"])
            .unwrap();
        assert_eq!(r.host.binds.unwrap(), ["/work/y:/a:ro", "vol:/b"]);
        assert_eq!(r.host.mounts.unwrap()[0].source.as_deref(), Some("/work/z"));
    }

    #[test]
    fn dockers_rules() {
        let r = create(&[
            "-it",
            "--rm",
            "-p",
            "8080:80",
            "--entrypoint",
            "",
            "-m",
            "64m",
            "img",
            "sh",
            "-c",
            "x",
        ])
        .unwrap();
        assert_eq!(r.config.cmd.unwrap(), ["sh", "-c", "x"]);
        assert_eq!(r.config.entrypoint.unwrap(), [""]);
        assert_eq!(
            (r.config.tty, r.config.stdin_once, r.host.auto_remove),
            (Some(true), Some(true), Some(true))
        );
        assert_eq!(r.host.memory, Some(64 << 20));
        assert_eq!(r.config.exposed_ports.unwrap(), ["80/tcp"]);
        let r = create(&[
            "--security-opt",
            "systempaths=unconfined",
            "--security-opt",
            "no-new-privileges:true",
            "img",
        ]);
        let r = r.unwrap();
        assert_eq!(r.host.masked_paths, Some(vec![]));
        assert_eq!(r.host.security_opt.unwrap(), ["no-new-privileges=true"]);
        for bad in [
            &["--rm", "--restart", "always", "img"][..],
            &["--gpus", "all", "img"],
            &["--link", "a", "img"],
            &["--isolation", "zone", "img"],
            &["--no-healthcheck", "--health-cmd", "x", "img"],
            &["--health-interval", "-1s", "img"],
            &["--cpus", "1", "--cpu-quota", "5", "img"],
            &["--pid", "zone", "img"],
            &["--network", "none", "--ip", "1.2.3.4", "img"],
            &["--log-driver", "none", "--log-opt", "max-size=1", "img"],
            &["-a", "stdfoo", "img"],
            &["--pull", "sometimes", "img"],
            &["--security-opt", "what", "img"],
            &["-e", "=x", "img"],
        ] {
            assert!(create(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flags_end_at_the_image() {
        let r = create(&["--init=false", "-e=X=1", "img", "--rm", "-it", "--", "x"]).unwrap();
        assert_eq!(r.config.cmd.unwrap(), ["--rm", "-it", "--", "x"]);
        assert_eq!((r.host.auto_remove, r.host.init), (Some(false), None));
    }
}
