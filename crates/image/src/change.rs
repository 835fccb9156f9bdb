//! `--change` instructions of `import` and `commit`: the Dockerfile instructions that touch the configuration only.

use crate::ImageError;
use types::{ImageHealth, ProcessDefaults};

/// Applies one instruction, such as `ENV A=b` or `CMD ["sh"]`.
pub(crate) fn apply(config: &mut ProcessDefaults, line: &str) -> Result<(), ImageError> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let word = word.to_ascii_uppercase();
    let wrong = |why: &str| ImageError::Invalid(format!("--change {line:?}: {why}"));
    if rest.is_empty() && !matches!(word.as_str(), "CMD" | "ENTRYPOINT") {
        return Err(wrong("the instruction needs an argument"));
    }
    match word.as_str() {
        "CMD" => config.cmd = command(config, rest),
        "ENTRYPOINT" => config.entrypoint = command(config, rest),
        "ENV" => {
            for (name, value) in pairs(rest).ok_or_else(|| wrong("expected NAME=value"))? {
                let start = format!("{name}=");
                config.env.retain(|e| !e.starts_with(&start));
                config.env.push(format!("{name}={value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest).ok_or_else(|| wrong("expected NAME=value"))?),
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let port =
                    expose(port).ok_or_else(|| wrong("a port is 1 to 65535, with /tcp, /udp or /sctp"))?;
                config.exposed_ports.insert(port, serde_json::json!({}));
            }
        }
        "VOLUME" => {
            let paths =
                exec_form(rest).unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect());
            config.volumes.extend(paths.into_iter().map(|p| (p, serde_json::json!({}))));
        }
        "USER" => config.user = rest.to_owned(),
        "WORKDIR" => {
            config.working_dir = match (rest.starts_with('/'), config.working_dir.trim_end_matches('/')) {
                (true, _) => rest.to_owned(),
                (false, base) => format!("{base}/{rest}"),
            }
        }
        "STOPSIGNAL" => config.stop_signal = Some(rest.to_owned()),
        "SHELL" => {
            config.shell = Some(exec_form(rest).ok_or_else(|| wrong("SHELL needs the JSON form"))?);
        }
        "ONBUILD" => config.on_build.get_or_insert_default().push(rest.to_owned()),
        "HEALTHCHECK" => config.healthcheck = Some(health(rest).ok_or_else(|| {
            wrong(
                "expected NONE or [--interval=…] [--timeout=…] [--start-period=…] [--retries=…] CMD command",
            )
        })?),
        _ => {
            return Err(wrong(
                "not one of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME, WORKDIR",
            ));
        }
    }
    Ok(())
}

fn exec_form(s: &str) -> Option<Vec<String>> {
    serde_json::from_str(s).ok()
}

fn command(config: &ProcessDefaults, rest: &str) -> Option<Vec<String>> {
    exec_form(rest).or_else(|| {
        let default = || vec!["/bin/sh".to_owned(), "-c".to_owned()];
        let mut line = config.shell.clone().unwrap_or_else(default);
        line.push(rest.to_owned());
        (!rest.is_empty()).then_some(line)
    })
}

fn expose(port: &str) -> Option<String> {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let ok = number.split('-').all(|p| p.parse::<u16>().is_ok_and(|p| p > 0));
    let protocol = protocol.to_ascii_lowercase();
    (ok && matches!(protocol.as_str(), "tcp" | "udp" | "sctp")).then(|| format!("{number}/{protocol}"))
}

fn health(s: &str) -> Option<ImageHealth> {
    let mut h = ImageHealth::default();
    let mut rest = s.trim();
    if rest.eq_ignore_ascii_case("none") {
        return Some(ImageHealth { test: vec!["NONE".into()], ..h });
    }
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace)?;
        let (name, value) = flag.split_once('=')?;
        let time = || types::units::parse_duration(value);
        match name {
            "interval" => h.interval = time()?,
            "timeout" => h.timeout = time()?,
            "start-period" => h.start_period = time()?,
            "start-interval" => h.start_interval = time()?,
            "retries" => h.retries = value.parse().ok()?,
            _ => return None,
        }
        rest = after.trim_start();
    }
    let (word, line) = rest.split_once(char::is_whitespace)?;
    if !word.eq_ignore_ascii_case("cmd") {
        return None;
    }
    h.test = match exec_form(line.trim()) {
        Some(args) => std::iter::once("CMD".to_owned()).chain(args).collect(),
        None => vec!["CMD-SHELL".into(), line.trim().to_owned()],
    };
    Some(h)
}

/// `A=b C="d e"`, or the old form `A b c`.
fn pairs(s: &str) -> Option<Vec<(String, String)>> {
    let words = words(s);
    if !words.first()?.contains('=') {
        let (name, value) = s.split_once(char::is_whitespace)?;
        return Some(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words
        .iter()
        .map(|w| w.split_once('=').filter(|(n, _)| !n.is_empty()).map(|(n, v)| (n.to_owned(), v.to_owned())))
        .collect()
}

/// Splits at white space, with quotes and backslashes as in a Dockerfile.
fn words(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => word.extend(chars.next()),
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => quote = Some(c),
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    out.push(std::mem::take(&mut word));
                }
            }
            (c, _) => word.push(c),
        }
    }
    if !word.is_empty() {
        out.push(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str]) -> ProcessDefaults {
        let mut c = ProcessDefaults::default();
        for l in lines {
            apply(&mut c, l).unwrap();
        }
        c
    }

    #[test]
    fn instructions() {
        let c = after(&[
            "CMD [\"a\", \"b\"]",
            "entrypoint run me",
            "ENV A=1 B=\"x y\"",
            "ENV A=2",
            "ENV OLD one two",
            "EXPOSE 80 53/udp",
            "LABEL k=v",
            "USER 1:2",
            "VOLUME /a /b",
            "WORKDIR /x",
            "WORKDIR y",
            "HEALTHCHECK --interval=5s --retries=2 CMD curl x",
            "ONBUILD RUN x",
            "STOPSIGNAL SIGINT",
        ]);
        assert_eq!(c.cmd.unwrap(), ["a", "b"]);
        assert_eq!(c.entrypoint.unwrap(), ["/bin/sh", "-c", "run me"]);
        assert_eq!(c.env, ["B=x y", "A=2", "OLD=one two"]);
        assert!(c.exposed_ports.contains_key("80/tcp") && c.exposed_ports.contains_key("53/udp"));
        assert_eq!(c.labels["k"], "v");
        assert_eq!((c.user.as_str(), c.working_dir.as_str()), ("1:2", "/x/y"));
        assert_eq!(c.volumes.len(), 2);
        let h = c.healthcheck.unwrap();
        assert_eq!(
            (h.interval, h.retries, h.test),
            (5_000_000_000, 2, vec!["CMD-SHELL".into(), "curl x".into()])
        );
    }

    #[test]
    fn wrong_instructions_are_refused() {
        for bad in ["RUN x", "ENV", "EXPOSE 0", "EXPOSE x", "HEALTHCHECK curl", "SHELL sh", "", "LABEL x"] {
            assert!(apply(&mut ProcessDefaults::default(), bad).is_err(), "{bad}");
        }
    }
}
