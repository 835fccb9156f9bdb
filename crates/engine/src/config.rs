//! What a container's configuration asks of its supervisor, read and checked: log, restart policy, health check.

use crate::Result;
use crate::spec::invalid;
use crate::store::Container;
use std::collections::BTreeMap;
use types::docker::{ContainerConfig, HostConfig};
use types::{HealthCheck, LogConfig, RestartPolicy};

/// The log driver and its options.
pub(crate) fn log_config(container: &Container) -> Result<LogConfig> {
    let config = container.host.log_config.clone().unwrap_or_default();
    let options = config.config.unwrap_or_default().into_iter().collect();
    let mut out = sandbox::logs::parse_options(config.typ.as_deref().unwrap_or("json-file"), &options)
        .map_err(invalid)?;
    attributes(&options, container, &mut out.attrs);
    Ok(out)
}

/// `--log-opt labels=a,b`, `env=A,B` and `tag=…`: what each line carries of the container.
fn attributes(options: &BTreeMap<String, String>, container: &Container, out: &mut BTreeMap<String, String>) {
    let listed = |key: &str| options.get(key).map_or("", String::as_str).split(',').filter(|k| !k.is_empty());
    let labels = container.config.labels.as_ref();
    for key in listed("labels") {
        if let Some(value) = labels.and_then(|l| l.get(key)) {
            out.insert(key.to_owned(), value.clone());
        }
    }
    for key in listed("env") {
        let value =
            container.config.env.iter().flatten().find_map(|e| e.strip_prefix(key)?.strip_prefix('='));
        if let Some(value) = value {
            out.insert(key.to_owned(), value.to_owned());
        }
    }
    if let Some(tag) = options.get("tag").filter(|t| !t.is_empty()) {
        let tag = tag
            .replace("{{.ID}}", container.id.short())
            .replace("{{.FullID}}", container.id.as_str())
            .replace("{{.Name}}", &container.name)
            .replace("{{.ImageName}}", &container.image)
            .replace(
                "{{.ImageID}}",
                container.image_id.trim_start_matches("sha256:").get(..12).unwrap_or(""),
            );
        out.insert("tag".into(), tag);
    }
}

/// The restart policy.
pub(crate) fn restart_policy(host: &HostConfig) -> Result<RestartPolicy> {
    use types::docker::RestartPolicyNameEnum as Name;
    let Some(policy) = &host.restart_policy else { return Ok(RestartPolicy::No) };
    let count = policy.maximum_retry_count.unwrap_or(0);
    let out = match policy.name.unwrap_or(Name::EMPTY) {
        Name::EMPTY | Name::NO => RestartPolicy::No,
        Name::ALWAYS => RestartPolicy::Always,
        Name::UNLESS_STOPPED => RestartPolicy::UnlessStopped,
        Name::ON_FAILURE => {
            let count = u32::try_from(count)
                .map_err(|_| invalid("invalid restart policy: maximum retry count cannot be negative"))?;
            return Ok(RestartPolicy::OnFailure(count));
        }
    };
    if count != 0 {
        return Err(invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ));
    }
    Ok(out)
}

/// The health check with Docker's defaults; none where there is none, or where it is switched off.
pub(crate) fn health_check(config: &ContainerConfig) -> Result<Option<HealthCheck>> {
    let Some(health) = &config.healthcheck else { return Ok(None) };
    let time = |value: Option<i64>, default: u64, what: &str| match value.unwrap_or(0) {
        0 => Ok(default),
        n if n < 1_000_000 => Err(invalid(format!("health check {what} cannot be less than 1ms"))),
        n => Ok(n as u64),
    };
    const SECOND: u64 = 1_000_000_000;
    // Checked of one that is inherited or switched off as well.
    let interval_ns = time(health.interval, 30 * SECOND, "interval")?;
    let timeout_ns = time(health.timeout, 30 * SECOND, "timeout")?;
    let start_period_ns = time(health.start_period, 0, "start period")?;
    let start_interval_ns = time(health.start_interval, 5 * SECOND, "start interval")?;
    let test = health.test.as_deref().unwrap_or_default();
    let command = match test.first().map(String::as_str) {
        None | Some("NONE") => return Ok(None),
        Some("CMD") if test.len() > 1 => test[1..].to_vec(),
        Some("CMD-SHELL") if test.len() == 2 => {
            let shell = config.shell.clone().filter(|s| !s.is_empty());
            let mut command = shell.unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
            command.push(test[1].clone());
            command
        }
        Some(other) => {
            return Err(invalid(format!("invalid health check {other:?}: CMD, CMD-SHELL or NONE")));
        }
    };
    Ok(Some(HealthCheck {
        command,
        interval_ns,
        timeout_ns,
        start_period_ns,
        start_interval_ns,
        retries: match health.retries.unwrap_or(0) {
            0 => 3,
            n => u32::try_from(n).map_err(|_| invalid("health check retries cannot be negative"))?,
        },
    }))
}
