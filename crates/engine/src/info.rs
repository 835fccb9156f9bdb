//! `info` and `version`.

use crate::{Engine, Result, store};
use types::Status;
use types::docker::{
    PluginsInfo, Runtime, SystemInfo, SystemInfoCgroupDriverEnum, SystemInfoCgroupVersionEnum, SystemVersion,
    SystemVersionComponents, SystemVersionPlatform,
};

/// The newest version of Docker's API that is spoken: that of its client of version 28.
pub const API_VERSION: &str = "1.50";
/// The oldest.
pub const MIN_API_VERSION: &str = "1.24";

/// What the binary knows of its own making.
#[derive(Clone, Copy, Debug)]
pub struct BuildInfo {
    /// Version of the release.
    pub version: &'static str,
    /// Commit that it was built from; empty if unknown.
    pub commit: &'static str,
    /// Version of the compiler.
    pub compiler: &'static str,
}

impl Engine {
    /// The store and the host, in Docker's shape.
    pub fn info(&self, build: &BuildInfo) -> Result<SystemInfo> {
        let containers = store::all(&self.db)?;
        let states = containers.iter().map(|c| Ok(self.state(c)?.status)).collect::<Result<Vec<_>>>()?;
        let count = |status: Status| states.iter().filter(|s| **s == status).count() as i64;
        let running = count(Status::Running) + count(Status::Restarting);
        let paused = count(Status::Paused);
        let uname = rustix::system::uname();
        let cgroup = sandbox::container::cgroup::info().ok();
        let has = |f: fn(&sandbox::container::cgroup::Info) -> bool| Some(cgroup.as_ref().is_some_and(f));
        let text = |s: &std::ffi::CStr| Some(s.to_string_lossy().into_owned());
        Ok(SystemInfo {
            id: Some(self.paths.root.to_string_lossy().into_owned()),
            containers: Some(containers.len() as i64),
            containers_running: Some(running),
            containers_paused: Some(paused),
            containers_stopped: Some(containers.len() as i64 - running - paused),
            images: Some(self.images.list(&Default::default())?.len() as i64),
            driver: Some("overlay".into()),
            driver_status: Some(vec![vec!["Layers".into(), layer_format(self)]]),
            docker_root_dir: Some(self.paths.root.to_string_lossy().into_owned()),
            plugins: Some(PluginsInfo {
                volume: Some(vec!["local".into()]),
                network: Some(vec!["bridge".into(), "host".into(), "macvlan".into(), "null".into()]),
                authorization: None,
                log: Some(vec!["json-file".into(), "local".into(), "none".into()]),
            }),
            memory_limit: has(|c| c.memory_limit),
            swap_limit: has(|c| c.swap_limit),
            cpu_cfs_period: has(|c| c.cpu_cfs_quota),
            cpu_cfs_quota: has(|c| c.cpu_cfs_quota),
            cpu_shares: has(|c| c.cpu_shares),
            cpu_set: has(|c| c.cpuset),
            pids_limit: has(|c| c.pids_limit),
            oom_kill_disable: has(|c| c.oom_kill_disable),
            ipv4_forwarding: Some(
                std::fs::read("/proc/sys/net/ipv4/ip_forward").is_ok_and(|v| v.first() == Some(&b'1')),
            ),
            system_time: Some(types::units::rfc3339(sys::host::now_ns())),
            logging_driver: Some("json-file".into()),
            cgroup_driver: Some(SystemInfoCgroupDriverEnum::CGROUPFS),
            cgroup_version: Some(match cgroup.as_ref().map(|c| c.version) {
                Some(sandbox::container::cgroup::Version::V2) => SystemInfoCgroupVersionEnum::_2,
                _ => SystemInfoCgroupVersionEnum::_1,
            }),
            kernel_version: text(uname.release()),
            operating_system: Some(os_name()),
            os_type: Some("linux".into()),
            architecture: text(uname.machine()),
            ncpu: std::thread::available_parallelism().ok().map(|n| n.get() as i64),
            mem_total: i64::try_from(sandbox::container::cgroup::host_memory()).ok(),
            name: text(uname.nodename()),
            server_version: Some(build.version.into()),
            runtimes: Some(
                ["dhow", crate::VM_RUNTIME].map(|name| (name.to_owned(), Runtime::default())).into(),
            ),
            default_runtime: Some("dhow".into()),
            security_options: Some(security_options()),
            warnings: Some(Vec::new()),
            ..Default::default()
        })
    }
}

fn layer_format(engine: &Engine) -> String {
    match engine.images.layers().format() {
        types::LayerFormat::Erofs => "erofs".into(),
        types::LayerFormat::Dir => "directories".into(),
    }
}

/// Version of this binary; needs no store.
pub fn version(build: &BuildInfo) -> SystemVersion {
    let uname = rustix::system::uname();
    SystemVersion {
        platform: Some(SystemVersionPlatform { name: "Dhow".into() }),
        components: Some(vec![SystemVersionComponents {
            name: "Engine".into(),
            version: build.version.into(),
            details: Some(
                [
                    ("ApiVersion", API_VERSION),
                    ("MinAPIVersion", MIN_API_VERSION),
                    ("Arch", &types::Platform::host().architecture),
                    ("Os", "linux"),
                    ("GitCommit", build.commit),
                    ("GoVersion", ""),
                    ("BuildTime", ""),
                    ("Experimental", "false"),
                    ("KernelVersion", &uname.release().to_string_lossy()),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ),
        }]),
        version: Some(build.version.into()),
        api_version: Some(API_VERSION.into()),
        min_api_version: Some(MIN_API_VERSION.into()),
        git_commit: Some(build.commit.into()),
        os: Some("linux".into()),
        arch: Some(types::Platform::host().architecture),
        kernel_version: Some(uname.release().to_string_lossy().into_owned()),
        ..Default::default()
    }
}

fn os_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".into(), |n| n.trim_matches('"').to_owned())
}

fn security_options() -> Vec<String> {
    let mut out = vec!["name=seccomp,profile=builtin".to_owned()];
    if std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|v| v.first() == Some(&b'Y')) {
        out.insert(0, "name=apparmor".into());
    }
    out.push("name=cgroupns".into());
    out
}
