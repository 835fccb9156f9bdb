//! `-v`, `--mount` and `--tmpfs`, by the rules of `docker run`. Relative sources are made absolute later, by
//! [`super::resolve`]; whether a source exists is the engine's question.

use types::docker::{
    Mount, MountBindOptions, MountBindOptionsPropagationEnum as Propagation, MountImageOptions,
    MountTmpfsOptions, MountType, MountVolumeOptions,
};
use types::units;

/// What one `-v` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    /// `-v /path`: an anonymous volume.
    Anonymous(String),
    /// `-v source:target[:options]`.
    Bind {
        /// A path, perhaps relative, or the name of a volume.
        source: String,
        /// Absolute path inside.
        target: String,
        /// `ro`, `rshared`, …, as given.
        options: String,
    },
}

/// Options that Docker knows after the second colon.
const BIND_OPTIONS: [&str; 18] = [
    "rw",
    "ro",
    "z",
    "Z",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "nocopy",
    "cached",
    "consistent",
    "delegated",
    "default",
    "rro",
    "rbind",
    "bind",
];

/// Reads one `-v`.
pub fn parse_volume(s: &str) -> Result<Volume, String> {
    let invalid = |why: &str| format!("invalid volume specification: '{s}': {why}");
    let parts: Vec<&str> = s.split(':').collect();
    let (source, target, options) = match parts[..] {
        [""] => return Err("invalid empty volume spec".into()),
        [target] => ("", target, ""),
        [_, _] | [_, _, _] if parts.iter().any(|p| p.is_empty()) => {
            return Err(invalid("empty section between colons"));
        }
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => return Err(invalid("too many colons")),
    };
    if !target.starts_with('/') {
        return Err(invalid("mount path must be absolute"));
    }
    if clean(target) == "/" {
        return Err(invalid("destination can't be '/'"));
    }
    if source.is_empty() {
        return Ok(Volume::Anonymous(clean(target)));
    }
    if let Some(bad) = options.split(',').find(|o| !options.is_empty() && !BIND_OPTIONS.contains(o)) {
        return Err(invalid(&format!("invalid mode: {bad}")));
    }
    if is_relative_name(source) && !valid_volume_name(source) {
        return Err(format!(
            "{source:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use an absolute path"
        ));
    }
    Ok(Volume::Bind { source: source.into(), target: clean(target), options: options.into() })
}

/// Whether a `-v` source is a volume's name and no path.
pub fn is_relative_name(source: &str) -> bool {
    !source.starts_with(['/', '.', '~'])
}

fn valid_volume_name(s: &str) -> bool {
    let mut bytes = s.bytes();
    s.len() >= 2
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// `path.Clean` for absolute paths.
fn clean(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                out.pop();
            }
            p => out.push(p),
        }
    }
    format!("/{}", out.join("/"))
}

/// Reads one `--tmpfs`: `/path[:options]`.
pub fn parse_tmpfs(s: &str) -> Result<(String, String), String> {
    let (path, options) = s.split_once(':').unwrap_or((s, ""));
    if !path.starts_with('/') {
        return Err(format!("invalid tmpfs specification: '{s}': mount path must be absolute"));
    }
    if clean(path) == "/" {
        return Err(format!("invalid tmpfs specification: '{s}': destination can't be '/'"));
    }
    Ok((clean(path), options.into()))
}

/// Reads one `--mount`: comma-separated `key=value` fields, CSV quoting as Docker's.
pub fn parse_mount(s: &str) -> Result<Mount, String> {
    let mut m = Mount { typ: Some(MountType::VOLUME), ..Mount::default() };
    let (mut bind, mut volume, mut tmpfs) =
        (MountBindOptions::default(), MountVolumeOptions::default(), MountTmpfsOptions::default());
    let mut image = MountImageOptions::default();
    let mut readonly_mode = None;
    for field in csv_fields(s)? {
        let (key, value) = match field.split_once('=') {
            Some((k, v)) => (k.to_ascii_lowercase(), Some(v)),
            None => (field.to_ascii_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("readonly" | "ro", None) => m.read_only = Some(true),
            ("volume-nocopy", None) => volume.no_copy = Some(true),
            ("bind-nonrecursive", None) => bind.non_recursive = Some(true),
            ("readonly" | "ro", Some(v)) => m.read_only = Some(flag(&key, v)?),
            ("volume-nocopy", Some(v)) => volume.no_copy = Some(flag(&key, v)?),
            ("bind-nonrecursive", Some(v)) => bind.non_recursive = Some(flag(&key, v)?),
            (_, None) => {
                return Err(format!("invalid field '{field}' must be a key=value pair"));
            }
            ("type", Some(v)) => m.typ = Some(mount_type(v)?),
            ("source" | "src", Some(v)) => m.source = Some(v.into()),
            ("target" | "dst" | "destination", Some(v)) => m.target = Some(v.into()),
            ("consistency", Some(v)) => m.consistency = Some(v.into()),
            ("bind-propagation", Some(v)) => bind.propagation = Some(propagation(v)?),
            ("bind-recursive", Some(v)) => readonly_mode = Some(recursive(&mut bind, v)?),
            ("bind-create-src" | "bind-create-mountpoint", Some(v)) => {
                bind.create_mountpoint = Some(flag(&key, v)?);
            }
            ("volume-subpath", Some(v)) => volume.subpath = Some(v.into()),
            ("image-subpath", Some(v)) => image.subpath = Some(v.into()),
            ("volume-label", Some(v)) => {
                let (k, v) = v.split_once('=').unwrap_or((v, ""));
                volume.labels.get_or_insert_default().insert(k.into(), v.into());
            }
            ("volume-driver", Some(v)) => {
                volume.driver_config.get_or_insert_default().name = Some(v.into());
            }
            ("volume-opt", Some(v)) => {
                let (k, v) = v.split_once('=').unwrap_or((v, ""));
                let driver = volume.driver_config.get_or_insert_default();
                driver.options.get_or_insert_default().insert(k.into(), v.into());
            }
            ("tmpfs-size", Some(v)) => {
                let size =
                    units::parse_bytes(v).ok_or_else(|| format!("invalid value for tmpfs-size: {v}"))?;
                tmpfs.size_bytes = Some(size);
            }
            ("tmpfs-mode", Some(v)) => {
                let mode =
                    u32::from_str_radix(v, 8).map_err(|_| format!("invalid value for tmpfs-mode: {v}"))?;
                tmpfs.mode = Some(mode.into());
            }
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
    }
    if image != MountImageOptions::default() {
        if m.typ != Some(MountType::IMAGE) {
            let typ = m.typ.unwrap_or(MountType::VOLUME);
            return Err(format!("cannot mix 'image-*' options with mount type '{typ}'"));
        }
        m.image_options = Some(image);
    }
    finish(m, bind, volume, tmpfs, readonly_mode)
}

fn finish(
    mut m: Mount,
    bind: MountBindOptions,
    volume: MountVolumeOptions,
    tmpfs: MountTmpfsOptions,
    recursive_readonly: Option<bool>,
) -> Result<Mount, String> {
    let typ = m.typ.unwrap_or(MountType::VOLUME);
    let Some(target) = m.target.as_deref().filter(|t| !t.is_empty()) else {
        return Err("target is required".into());
    };
    if !target.starts_with('/') {
        return Err(format!("invalid mount target {target:?}: mount path must be absolute"));
    }
    if clean(target) == "/" {
        return Err("invalid mount target: destination can't be '/'".into());
    }
    m.target = Some(clean(target));
    let mismatch = |what: &str| Err(format!("cannot mix '{what}-*' options with mount type '{typ}'"));
    if bind != MountBindOptions::default() {
        if typ != MountType::BIND {
            return mismatch("bind");
        }
        m.bind_options = Some(bind);
    }
    if volume != MountVolumeOptions::default() {
        if typ != MountType::VOLUME {
            return mismatch("volume");
        }
        m.volume_options = Some(volume);
    }
    if tmpfs != MountTmpfsOptions::default() {
        if typ != MountType::TMPFS {
            return mismatch("tmpfs");
        }
        m.tmpfs_options = Some(tmpfs);
    }
    match typ {
        MountType::BIND if m.source.as_deref().unwrap_or("").is_empty() => {
            return Err("source is required for a bind mount".into());
        }
        MountType::IMAGE if m.source.as_deref().unwrap_or("").is_empty() => {
            return Err("source is required for an image mount".into());
        }
        MountType::TMPFS if m.source.is_some() => {
            return Err("source must not be specified for a tmpfs mount".into());
        }
        _ => {}
    }
    if recursive_readonly == Some(true) && m.read_only != Some(true) {
        return Err(
            "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction".into()
        );
    }
    Ok(m)
}

fn flag(key: &str, value: &str) -> Result<bool, String> {
    super::values::boolean(value).map_err(|_| format!("invalid value for {key}: {value}"))
}

fn mount_type(s: &str) -> Result<MountType, String> {
    match s.to_ascii_lowercase().as_str() {
        "bind" => Ok(MountType::BIND),
        "volume" => Ok(MountType::VOLUME),
        "tmpfs" => Ok(MountType::TMPFS),
        "image" => Ok(MountType::IMAGE),
        _ => Err(format!("invalid mount type {s:?}: use bind, image, tmpfs or volume")),
    }
}

/// `bind-recursive`; answers whether read-only was asked for recursively, which needs `readonly`.
fn recursive(bind: &mut MountBindOptions, value: &str) -> Result<bool, String> {
    match value {
        "enabled" => {}
        "disabled" => bind.non_recursive = Some(true),
        "writable" => bind.read_only_non_recursive = Some(true),
        "readonly" => bind.read_only_force_recursive = Some(true),
        _ => {
            return Err(format!(
                "invalid value for bind-recursive: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
            ));
        }
    }
    Ok(value == "readonly")
}

fn propagation(s: &str) -> Result<Propagation, String> {
    Ok(match s.to_ascii_lowercase().as_str() {
        "private" => Propagation::PRIVATE,
        "rprivate" => Propagation::RPRIVATE,
        "shared" => Propagation::SHARED,
        "rshared" => Propagation::RSHARED,
        "slave" => Propagation::SLAVE,
        "rslave" => Propagation::RSLAVE,
        _ => return Err(format!("invalid value for bind-propagation: {s}")),
    })
}

/// Fields of one CSV record (RFC 4180).
fn csv_fields(s: &str) -> Result<Vec<String>, String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = s.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            '"' => return Err(format!("stray quote in {s:?}: quote the whole field")),
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        return Err(format!("unclosed quote in {s:?}"));
    }
    fields.push(field);
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn volumes() {
        let bind = |s: &str, t: &str, o: &str| Volume::Bind {
            source: s.into(),
            target: t.into(),
            options: o.into(),
        };
        assert_eq!(parse_volume("/data").unwrap(), Volume::Anonymous("/data".into()));
        assert_eq!(parse_volume("/a:/b").unwrap(), bind("/a", "/b", ""));
        assert_eq!(parse_volume("./a:/b:ro,rshared").unwrap(), bind("./a", "/b", "ro,rshared"));
        assert_eq!(parse_volume("name:/b/../c").unwrap(), bind("name", "/c", ""));
        for bad in
            ["", ":", "/a:", ":/b", "/a:b", "/a:/", "/a:/b:xx", "/a:/b:ro:c", "a/b:/c", "rel", "/a:/b:"]
        {
            assert!(parse_volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts() {
        let m = parse_mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave").unwrap();
        assert_eq!(
            (m.typ, m.source.as_deref(), m.target.as_deref()),
            (Some(MountType::BIND), Some("/a"), Some("/b"))
        );
        assert_eq!(m.read_only, Some(true));
        assert_eq!(m.bind_options.unwrap().propagation, Some(Propagation::RSLAVE));
        let m =
            parse_mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap().tmpfs_options.unwrap();
        assert_eq!((m.size_bytes, m.mode), (Some(1 << 20), Some(0o1770)));
        let m = parse_mount("\"src=a,b\",type=bind,dst=/x").unwrap();
        assert_eq!(m.source.as_deref(), Some("a,b"));
        for bad in [
            "",
            "type=what,dst=/a",
            "type=bind,dst=/a",
            "type=bind,src=/a",
            "type=bind,src=/a,dst=b",
            "type=bind,src=/a,dst=/b,tmpfs-size=1",
            "type=tmpfs,src=/a,dst=/b",
            "type=tmpfs,dst=/b,tmpfs-size=x",
            "type=bind,src=/a,dst=/b,readonly=maybe",
            "type=bind,src=/a,dst=/b,nonsense",
            "type=image,dst=/b",
            "type=volume,src=v1,dst=/b,image-subpath=x",
            "type=bind,src=/a,dst=/b,bind-recursive=readonly",
            "\"type=bind",
        ] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tmpfs() {
        assert_eq!(parse_tmpfs("/run:size=1m,noexec").unwrap(), ("/run".into(), "size=1m,noexec".into()));
        assert!(parse_tmpfs("run").is_err());
        assert!(parse_tmpfs("/").is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(s in "\\PC{0,32}") {
            let _ = parse_mount(&s);
            let _ = parse_volume(&s);
            let _ = parse_tmpfs(&s);
        }
    }
}
