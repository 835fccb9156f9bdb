//! `inspect`, `container inspect`, `image inspect`.

use super::common::{inspect_all, value};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use serde_json::Value;
use types::{ErrorKind, Kinded};

/// Flags of `inspect`.
#[derive(clap::Args, Debug)]
pub struct Inspect {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
    /// Display total file sizes if the type is container
    #[arg(short, long)]
    size: bool,
    /// Only inspect objects of the given type: container, image, network or volume
    #[arg(long = "type", value_name = "string")]
    kind: Option<String>,
}

/// `container inspect`.
#[derive(clap::Args, Debug)]
pub struct Container {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
}

/// `image inspect`.
#[derive(clap::Args, Debug)]
pub struct Image {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
}

impl Verb for Inspect {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let kind = self.kind.as_deref().unwrap_or("");
        if !matches!(kind, "" | "container" | "image" | "network" | "volume") {
            return Err(format!(
                "{kind:?} is not a valid value for --type: use container, image, network or volume"
            )
            .into());
        }
        inspect_all(cx, &words, self.format.as_deref(), |name| {
            match kind {
                "container" => return container(cx, name, self.size),
                "image" => return image(cx, name),
                "network" => return super::network::look(cx, name),
                "volume" => return super::volume::look(cx, name),
                _ => {}
            }
            let engine = cx.engine()?;
            match engine.inspect(name, self.size) {
                Ok(found) => return Ok(complete(value(&found)?)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
            match engine.images().inspect(name) {
                Ok(found) => return value(&found),
                Err(e) if e.kind() == ErrorKind::NotFound || e.kind() == ErrorKind::Invalid => {}
                Err(e) => return Err(e.into()),
            }
            match engine.inspect_network(name) {
                Ok(found) => return value(&found),
                Err(e) if e.kind() == ErrorKind::NotFound || e.kind() == ErrorKind::Invalid => {}
                Err(e) => return Err(e.into()),
            }
            super::volume::look(cx, name).map_err(|_| Failure::from(format!("no such object: {name}")))
        })
    }
}

impl Verb for Container {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        inspect_all(cx, &words, self.format.as_deref(), |name| container(cx, name, self.size))
    }
}

impl Verb for Image {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        inspect_all(cx, &words, self.format.as_deref(), |name| image(cx, name))
    }
}

fn container(cx: &Context, name: &str, size: bool) -> Result<Value, Failure> {
    Ok(complete(value(&cx.engine()?.inspect(name, size)?)?))
}

fn image(cx: &Context, name: &str) -> Result<Value, Failure> {
    value(&cx.engine()?.images().inspect(name)?)
}

/// Members that Docker always prints, so that templates may ask for them; an absent one would be an error there.
/// Object, default (JSON), names.
const ALWAYS: &[(&str, &str, &[&str])] = &[
    ("", "{}", &["State", "Config", "HostConfig", "NetworkSettings"]),
    ("", "[]", &["Args", "Mounts"]),
    ("", "0", &["RestartCount"]),
    ("", "null", &["ExecIDs"]),
    (
        "",
        "\"\"",
        &[
            "ResolvConfPath",
            "HostnamePath",
            "HostsPath",
            "LogPath",
            "MountLabel",
            "ProcessLabel",
            "AppArmorProfile",
        ],
    ),
    ("State", "\"\"", &["Status", "Error"]),
    ("State", "false", &["Running", "Paused", "Restarting", "OOMKilled", "Dead"]),
    ("State", "0", &["Pid", "ExitCode"]),
    ("State", "\"0001-01-01T00:00:00Z\"", &["StartedAt", "FinishedAt"]),
    // Docker's own types have these, though its JSON often has not: `{{if .State.Health}}` must work.
    ("State", "null", &["Health"]),
    ("Config", "null", &["Healthcheck", "Cmd", "Entrypoint", "Volumes", "OnBuild"]),
    ("Config", "\"\"", &["Hostname", "Domainname", "User", "Image", "WorkingDir"]),
    ("Config", "false", &["AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce"]),
    ("Config", "[]", &["Env"]),
    ("Config", "{}", &["Labels"]),
    (
        "HostConfig",
        "null",
        &[
            "Binds",
            "VolumesFrom",
            "CapAdd",
            "CapDrop",
            "ExtraHosts",
            "GroupAdd",
            "Links",
            "SecurityOpt",
            "DeviceCgroupRules",
            "DeviceRequests",
            "MemorySwappiness",
            "PidsLimit",
            "Init",
        ],
    ),
    (
        "HostConfig",
        "\"\"",
        &[
            "ContainerIDFile",
            "VolumeDriver",
            "Cgroup",
            "PidMode",
            "UTSMode",
            "UsernsMode",
            "Isolation",
            "Runtime",
            "CgroupParent",
            "CpusetCpus",
            "CpusetMems",
            "IpcMode",
            "CgroupnsMode",
            "NetworkMode",
        ],
    ),
    (
        "HostConfig",
        "false",
        &["AutoRemove", "Privileged", "PublishAllPorts", "ReadonlyRootfs", "OomKillDisable"],
    ),
    (
        "HostConfig",
        "0",
        &[
            "OomScoreAdj",
            "CpuShares",
            "Memory",
            "NanoCpus",
            "BlkioWeight",
            "CpuPeriod",
            "CpuQuota",
            "ShmSize",
            "CpuRealtimePeriod",
            "CpuRealtimeRuntime",
            "MemoryReservation",
            "MemorySwap",
        ],
    ),
    (
        "HostConfig",
        "[]",
        &[
            "Dns",
            "DnsOptions",
            "DnsSearch",
            "BlkioWeightDevice",
            "BlkioDeviceReadBps",
            "BlkioDeviceWriteBps",
            "BlkioDeviceReadIOps",
            "BlkioDeviceWriteIOps",
            "Devices",
            "Ulimits",
            "Mounts",
        ],
    ),
    ("HostConfig", "{}", &["LogConfig", "PortBindings", "RestartPolicy", "Tmpfs", "Sysctls"]),
    ("NetworkSettings", "\"\"", &["SandboxID", "SandboxKey"]),
    ("NetworkSettings", "{}", &["Ports", "Networks"]),
];

/// Adds what Docker always prints.
fn complete(mut v: Value) -> Value {
    for (object, default, names) in ALWAYS {
        let object = if object.is_empty() { &mut v } else { &mut v[*object] };
        let (Some(o), Ok(default)) = (object.as_object_mut(), serde_json::from_str::<Value>(default)) else {
            continue;
        };
        for name in *names {
            o.entry(*name).or_insert_with(|| default.clone());
        }
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_may_ask_for_what_is_absent() {
        let v = complete(json!({"Id": "a", "State": {"Running": true}}));
        let text = crate::format::one(
            "{{if .State.Health}}x{{else}}none{{end}} {{.State.Running}} {{.HostConfig.Memory}} {{len .NetworkSettings.Ports}}",
            &v,
        );
        assert_eq!(text.unwrap(), "none true 0 0");
    }
}
