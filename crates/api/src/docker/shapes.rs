//! Answers made whole: members that Docker's daemon always tells, zero and empty ones too, because clients read them
//! without asking whether they are there. What a value means is the engine's; here is only what stands in for none.

use crate::fault::Fault;
use engine::{Engine, ListOptions, Summary, Text, Words};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::sync::LazyLock;
use types::docker::{
    ContainerInspectResponse, ContainerSummaryHealth, ContainerSummaryStateEnum, EndpointSettings,
    MountPoint, PortSummary,
};

/// The time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Of how many containers of a list the room is reserved.
const MOST_RESERVED: usize = 1000;

/// `Config` of containers and images.
static CONFIG: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": false,
        "AttachStderr": false, "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": null, "Cmd": null,
        "Image": "", "Volumes": null, "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": null,
    })
});

/// `HostConfig`, all of it but the members that Docker leaves out as well.
static HOST: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "Binds": null, "ContainerIDFile": "", "LogConfig": {"Config": {}}, "PortBindings": null,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": false, "VolumeDriver": "",
        "VolumesFrom": null, "CapAdd": null, "CapDrop": null, "Dns": null, "DnsOptions": null, "DnsSearch": null,
        "ExtraHosts": null, "GroupAdd": null, "Cgroup": "", "Links": null, "OomScoreAdj": 0, "PidMode": "",
        "Privileged": false, "PublishAllPorts": false, "ReadonlyRootfs": false, "SecurityOpt": null, "UTSMode": "",
        "UsernsMode": "", "ConsoleSize": [0, 0], "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0,
        "CgroupParent": "", "BlkioWeight": 0, "BlkioWeightDevice": null, "BlkioDeviceReadBps": null,
        "BlkioDeviceWriteBps": null, "BlkioDeviceReadIOps": null, "BlkioDeviceWriteIOps": null, "CpuPeriod": 0,
        "CpuQuota": 0, "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0, "CpusetCpus": "", "CpusetMems": "",
        "Devices": null, "DeviceCgroupRules": null, "DeviceRequests": null, "MemoryReservation": 0, "MemorySwap": 0,
        "MemorySwappiness": null, "OomKillDisable": false, "PidsLimit": null, "Ulimits": null, "CpuCount": 0,
        "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0,
    })
});

/// What `NetworkSettings` tells beside its networks, of the default network.
static NETWORKS: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "Bridge": "", "HairpinMode": false, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null, "SecondaryIPv6Addresses": null, "EndpointID": "", "Gateway": "",
        "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "IPAddress": "", "IPPrefixLen": 0, "IPv6Gateway": "",
        "MacAddress": "",
    })
});

static INFO: LazyLock<Value> = LazyLock::new(|| {
    let commit = json!({"ID": "", "Expected": ""});
    json!({
        "BridgeNfIptables": false, "BridgeNfIp6tables": false, "Debug": false, "NFd": 0, "NGoroutines": 0,
        "NEventsListener": 0, "ContainerdCommit": commit, "RuncCommit": commit, "InitCommit": commit,
        "InitBinary": "", "ExperimentalBuild": false, "GenericResources": null, "HttpProxy": "", "HttpsProxy": "",
        "NoProxy": "", "IndexServerAddress": "https://index.docker.io/v1/", "Isolation": "", "Labels": [],
        "LiveRestoreEnabled": true, "OSVersion": "", "Plugins": {"Authorization": null},
        "RegistryConfig": {
            "AllowNondistributableArtifactsCIDRs": [], "AllowNondistributableArtifactsHostnames": [],
            "InsecureRegistryCIDRs": ["127.0.0.0/8", "::1/128"], "Mirrors": [],
            "IndexConfigs": {"docker.io": {"Name": "docker.io", "Mirrors": [], "Secure": true, "Official": true}},
        },
        "Swarm": {
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "",
            "RemoteManagers": null,
        },
    })
});

static CPU: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    })
});

/// Adds the members that are missing; where something else than null is usual, null is as good as missing.
fn fill(value: &mut Value, usual: &Value) {
    let (Some(have), Some(usual)) = (value.as_object_mut(), usual.as_object()) else { return };
    for (key, usual) in usual {
        match have.get_mut(key) {
            Some(value) if !value.is_null() => fill(value, usual),
            Some(value) => *value = usual.clone(),
            None => drop(have.insert(key.clone(), usual.clone())),
        }
    }
}

fn each(value: &mut Value, mut change: impl FnMut(&mut Value)) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(change),
        Value::Object(all) => all.values_mut().for_each(&mut change),
        _ => {}
    }
}

/// An empty list or map as Go writes one that was never made.
pub(super) fn null_if_empty(value: &mut Value) {
    let empty = value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
    if empty {
        *value = Value::Null;
    }
}

fn config(value: &mut Value) {
    fill(value, &CONFIG);
    null_if_empty(&mut value["Env"]);
}

/// One entry of `Networks`, with what it does not tell.
#[derive(Serialize)]
struct Endpoint {
    #[serde(flatten)]
    told: EndpointSettings,
    #[serde(flatten)]
    untold: Untold,
}

/// Members that are there and null.
struct Untold([Option<&'static str>; 4]);

impl Serialize for Untold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().flatten().map(|key| (key, ())))
    }
}

/// `Networks`, as a version of the API knows them.
struct Networks(Vec<(Cow<'static, str>, Endpoint)>);

impl Serialize for Networks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, endpoint)| (name, endpoint)))
    }
}

impl Networks {
    fn of(told: impl IntoIterator<Item = (Cow<'static, str>, EndpointSettings)>, version: u32) -> Self {
        Self(told.into_iter().map(|(name, told)| (name, endpoint(told, version))).collect())
    }
}

fn endpoint(told: EndpointSettings, version: u32) -> Endpoint {
    let told = EndpointSettings {
        dns_names: told.dns_names.filter(|_| version >= 44),
        gw_priority: told.gw_priority.filter(|_| version >= 48),
        ..told
    };
    let untold = Untold([
        told.ipam_config.is_none().then_some("IPAMConfig"),
        told.links.is_none().then_some("Links"),
        told.aliases.is_none().then_some("Aliases"),
        told.driver_opts.is_none().then_some("DriverOpts"),
    ]);
    Endpoint { told, untold }
}

/// `containers/{id}/json`.
pub(super) fn container(mut found: ContainerInspectResponse, version: u32) -> serde_json::Result<Value> {
    let networks = found.network_settings.as_mut().and_then(|s| s.networks.take());
    let mut value = serde_json::to_value(found)?;
    let networks = networks.unwrap_or_default().into_iter().map(|(name, told)| (name.into(), told));
    value["NetworkSettings"]["Networks"] = serde_json::to_value(Networks::of(networks, version))?;
    complete(&mut value, version);
    Ok(value)
}

fn complete(value: &mut Value, version: u32) {
    fill(value, &json!({"ExecIDs": null}));
    config(&mut value["Config"]);
    let host = &mut value["HostConfig"];
    fill(host, &HOST);
    if version < 42 {
        fill(host, &json!({"KernelMemory": 0, "KernelMemoryTCP": 0}));
    }
    mask(host);
    let settings = &mut value["NetworkSettings"];
    let default = settings["Networks"]["bridge"].clone();
    fill(settings, &NETWORKS);
    for (key, value) in settings.as_object_mut().into_iter().flatten() {
        if let Some(known) = default.get(key) {
            *value = known.clone();
        }
    }
    let state = &value["State"];
    if state["Status"] == "created" && state["Error"] == "" {
        // Made by the first start.
        for key in ["ResolvConfPath", "HostnamePath", "HostsPath", "LogPath"] {
            value[key] = json!("");
        }
        value["NetworkSettings"]["SandboxID"] = json!("");
    }
}

fn mask(host: &mut Value) {
    let open = host["Privileged"] == true;
    let all = host["SecurityOpt"].as_array().is_some_and(|o| o.iter().any(|o| o == "systempaths=unconfined"));
    for (key, usual) in [("MaskedPaths", engine::MASKED_PATHS), ("ReadonlyPaths", engine::READ_ONLY_PATHS)] {
        if host[key].is_null() && !open {
            host[key] = if all { json!([]) } else { json!(usual) };
        }
    }
}

/// One of `containers/json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed<'a> {
    id: &'a str,
    names: [Slashed<'a>; 1],
    image: &'a str,
    #[serde(rename = "ImageID")]
    image_id: &'a str,
    command: &'a str,
    created: i64,
    ports: &'a [PortSummary],
    #[serde(skip_serializing_if = "Option::is_none")]
    size_rw: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<i64>,
    labels: &'a Words<'a>,
    state: &'a ContainerSummaryStateEnum,
    status: &'a str,
    host_config: ListedHost<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<&'a ContainerSummaryHealth>,
    mounts: &'a [MountPoint],
    network_settings: ListedNetworks,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ListedHost<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    network_mode: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a Words<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ListedNetworks {
    networks: Networks,
}

/// A name as Docker tells it.
struct Slashed<'a>(&'a str);

impl Serialize for Slashed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("/{}", self.0))
    }
}

/// `containers/json`, as it goes out: many make a long document, which is not built twice.
pub(super) fn containers(engine: &Engine, options: &ListOptions, version: u32) -> Result<Vec<u8>, Fault> {
    let mut out = vec![b'['];
    let mut written = Ok(());
    engine.list_each(options, &mut |mut container, left| {
        let begin = out.len();
        if begin > 1 {
            out.push(b',');
        }
        let networks = Networks::of(std::mem::take(&mut container.networks), version);
        if let Err(e) = serde_json::to_writer(&mut out, &listed(&container, networks)) {
            written = Err(e);
        }
        // They are about as long as each other.
        out.reserve((out.len() - begin).saturating_mul(left.min(MOST_RESERVED)));
    })?;
    written?;
    out.extend(b"]\n");
    Ok(out)
}

fn listed<'a>(c: &'a Summary<'a>, networks: Networks) -> Listed<'a> {
    Listed {
        id: c.id,
        names: [Slashed(c.name)],
        image: c.image,
        image_id: c.image_id,
        command: &c.command,
        created: c.created,
        ports: &c.ports,
        size_rw: c.sizes.map(|(rw, _)| rw),
        size_root_fs: c.sizes.map(|(_, all)| all),
        labels: &c.labels,
        state: &c.state,
        status: &c.status,
        host_config: ListedHost {
            network_mode: c.network_mode.as_ref().map(Text::as_str),
            annotations: c.annotations.as_ref(),
        },
        health: c.health.as_ref(),
        mounts: &c.mounts,
        network_settings: ListedNetworks { networks },
    }
}

/// `images/{name}/json`.
pub(super) fn image(value: &mut Value, version: u32) {
    fill(value, &json!({"Parent": "", "Comment": "", "Author": "", "DockerVersion": ""}));
    // From 1.50 on what is empty is left out of it.
    if version < 50 {
        config(&mut value["Config"]);
    }
    if version < 45 {
        fill(value, &json!({"Container": "", "ContainerConfig": *CONFIG}));
    }
    if version < 44 {
        value["VirtualSize"] = value["Size"].clone();
    }
}

/// `images/json`.
pub(super) fn images(value: &mut Value, version: u32) {
    each(value, |image| {
        null_if_empty(&mut image["Labels"]);
        if version < 44 {
            image["VirtualSize"] = image["Size"].clone();
        }
        if version < 43 {
            let nameless = ["RepoTags", "RepoDigests"].iter().all(|k| image[*k] == json!([]));
            if nameless {
                image["RepoTags"] = json!(["<none>:<none>"]);
                image["RepoDigests"] = json!(["<none>@<none>"]);
            }
            null_if_empty(&mut image["RepoTags"]);
            null_if_empty(&mut image["RepoDigests"]);
        }
    });
}

/// `networks/{id}`, and one of `networks`.
pub(super) fn network(value: &mut Value, version: u32) {
    fill(value, &json!({"Containers": {}, "IPAM": {"Options": null}}));
    if let Some(map) = value.as_object_mut().filter(|_| version < 48) {
        map.remove("EnableIPv4");
    }
}

/// `networks`.
pub(super) fn networks(value: &mut Value, version: u32) {
    each(value, |n| network(n, version));
}

/// `info`.
pub(super) fn info(value: &mut Value, version: u32) {
    fill(value, &INFO);
    if version < 42 {
        fill(value, &json!({"KernelMemory": false, "KernelMemoryTCP": false}));
    }
    null_if_empty(&mut value["Warnings"]);
    each(&mut value["Runtimes"], |runtime| fill(runtime, &json!({"path": "dhow"})));
}

/// `version`.
pub(super) fn version(value: &mut Value) {
    fill(value, &json!({"GoVersion": "", "BuildTime": ""}));
}

/// One reading of `containers/{id}/stats`; of a container that does not run it has no figures.
pub(super) fn stats(mut value: Value, runs: bool) -> Value {
    let kinds = [
        "io_service_bytes",
        "io_serviced",
        "io_queue",
        "io_service_time",
        "io_wait_time",
        "io_merged",
        "io_time",
        "sectors",
    ];
    let blkio = |none: Value| -> Value {
        kinds.iter().map(|k| (format!("{k}_recursive"), none.clone())).collect::<Map<_, _>>().into()
    };
    if !runs {
        return json!({
            "read": NEVER, "preread": NEVER, "pids_stats": {}, "blkio_stats": blkio(Value::Null), "num_procs": 0,
            "storage_stats": {}, "cpu_stats": *CPU, "precpu_stats": *CPU, "memory_stats": {},
            "name": value["name"], "id": value["id"],
        });
    }
    fill(
        &mut value,
        &json!({"blkio_stats": blkio(json!([])), "storage_stats": {}, "precpu_stats": *CPU, "preread": NEVER, "num_procs": 0}),
    );
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays() {
        let c = json!({
            "State": {"Status": "running", "Error": ""}, "Config": {"Env": [], "Cmd": ["x"]},
            "HostConfig": {"Memory": 5, "RestartPolicy": {"Name": "always"}, "LogConfig": {"Type": "local"}},
            "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "10.0.0.2", "GwPriority": 0, "Aliases": ["a"]}}},
        });
        let c = container(serde_json::from_value(c).unwrap(), 41).unwrap();
        assert_eq!((&c["Config"]["Cmd"], &c["Config"]["Env"]), (&json!(["x"]), &Value::Null));
        assert_eq!(c["HostConfig"]["Memory"], 5);
        assert_eq!(c["HostConfig"]["RestartPolicy"], json!({"Name": "always", "MaximumRetryCount": 0}));
        assert_eq!(c["HostConfig"]["LogConfig"], json!({"Type": "local", "Config": {}}));
        assert_eq!(c["HostConfig"]["KernelMemory"], 0);
        assert_eq!(c["HostConfig"]["ReadonlyPaths"], json!(engine::READ_ONLY_PATHS));
        assert_eq!(c["NetworkSettings"]["IPAddress"], "10.0.0.2");
        assert_eq!(c["NetworkSettings"]["Gateway"], "");
        let bridge = json!({"IPAddress": "10.0.0.2", "Aliases": ["a"], "IPAMConfig": null, "Links": null, "DriverOpts": null});
        assert_eq!(c["NetworkSettings"]["Networks"]["bridge"], bridge);
    }

    #[test]
    fn lists_tell_what_is_missing_and_forget_what_is_unknown() {
        let one = json!({"GwPriority": 1, "DNSNames": ["a"]});
        let shown = |version| {
            let told = serde_json::from_value(one.clone()).unwrap();
            json!(Networks::of([("web".into(), told)], version))["web"].clone()
        };
        let untold = json!({"IPAMConfig": null, "Links": null, "Aliases": null, "DriverOpts": null});
        assert_eq!(shown(41), untold);
        assert_eq!((&shown(44)["DNSNames"], &shown(44)["GwPriority"]), (&json!(["a"]), &Value::Null));
        assert_eq!(shown(48)["GwPriority"], 1);
    }

    #[test]
    fn privileged_containers_have_nothing_masked() {
        let mut host = json!({"Privileged": true});
        mask(&mut host);
        assert!(host["MaskedPaths"].is_null());
        let mut host = json!({"Privileged": false, "SecurityOpt": ["systempaths=unconfined"]});
        mask(&mut host);
        assert_eq!(host["MaskedPaths"], json!([]));
    }

    #[test]
    fn images_without_a_name_are_as_each_version_tells_them() {
        let nameless = json!([{"RepoTags": [], "RepoDigests": [], "Labels": {}, "Size": 3}]);
        let (mut old, mut new) = (nameless.clone(), nameless);
        images(&mut old, 41);
        images(&mut new, 50);
        assert_eq!(old[0]["RepoTags"], json!(["<none>:<none>"]));
        assert_eq!((&new[0]["RepoTags"], &new[0]["VirtualSize"]), (&json!([]), &Value::Null));
    }
}
