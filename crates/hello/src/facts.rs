//! What a process can tell about the place it runs in, from `/proc` and `/sys` (`proc(5)`, `cgroups(7)`).

use std::fs;

/// Labelled facts in groups, ready to be shown in any form.
pub struct Facts(Vec<(&'static str, Vec<(String, String)>)>);

/// Names of capabilities by their bit (`capabilities(7)`).
const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

impl Facts {
    /// Looks around.
    pub fn gather() -> Self {
        let status = read("/proc/self/status");
        Self(vec![
            ("where", place()),
            ("who", who(&status)),
            ("limits", limits()),
            ("walls", walls(&status)),
            ("network", network()),
            ("namespaces", namespaces()),
        ])
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::from("\n  Hello from Dhow!\n");
        for (group, facts) in &self.0 {
            out += &format!("\n  {group}\n");
            for (key, value) in facts {
                out += &format!("    {key:<14} {value}\n");
            }
        }
        out += "\n  Serve this page: dhow run --rm -p 8080:8080 hello --http 8080\n\n";
        out
    }

    /// One object of objects of strings.
    pub fn json(&self) -> String {
        let group = |(name, facts): &(&str, Vec<(String, String)>)| {
            let facts: Vec<_> =
                facts.iter().map(|(k, v)| format!("    {}: {}", quoted(k), quoted(v))).collect();
            format!("  {}: {{\n{}\n  }}", quoted(name), facts.join(",\n"))
        };
        format!("{{\n{}\n}}\n", self.0.iter().map(group).collect::<Vec<_>>().join(",\n"))
    }

    /// A page.
    pub fn html(&self) -> String {
        let mut out = String::from(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>Hello from Dhow</title><style>\
             body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem;color:#123}\
             h2{font-size:1rem;color:#678;margin:1.5rem 0 .3rem}td{padding:.1rem 1rem .1rem 0;vertical-align:top}\
             td:first-child{color:#678;white-space:nowrap}</style><h1>Hello from Dhow!</h1>\n",
        );
        for (group, facts) in &self.0 {
            out += &format!("<h2>{group}</h2><table>\n");
            for (key, value) in facts {
                out += &format!("<tr><td>{}<td>{}\n", escaped(key), escaped(value));
            }
            out += "</table>\n";
        }
        out + "<p><a href=\"/json\">as JSON</a>\n"
    }
}

fn place() -> Vec<(String, String)> {
    let kernel = ["ostype", "osrelease", "version"]
        .map(|f| read(&format!("/proc/sys/kernel/{f}")).trim().to_owned())
        .join(" ");
    vec![
        fact("hull", hull()),
        fact("kernel", format!("{kernel} {}", std::env::consts::ARCH)),
        fact("host name", read("/proc/sys/kernel/hostname").trim()),
        fact("process", format!("pid {} of {} visible", std::process::id(), processes())),
        fact(
            "directory",
            std::env::current_dir().map_or_else(|e| e.to_string(), |d| d.display().to_string()),
        ),
        fact("mounts", read("/proc/self/mounts").lines().count()),
        fact("root", root()),
    ]
}

/// A microVM says so on its kernel's command line or by its machine's name.
fn hull() -> &'static str {
    let vendor = read("/sys/class/dmi/id/sys_vendor").to_lowercase();
    if read("/proc/cmdline").contains("dhow.") || vendor.contains("dhow") {
        "microVM (a kernel of its own)"
    } else if std::process::id() == 1 || read("/proc/self/mountinfo").contains(" / / ") && root() == "overlay"
    {
        "container (the host's kernel, behind namespaces and cgroups)"
    } else {
        "none that can be seen"
    }
}

fn root() -> String {
    read("/proc/self/mounts")
        .lines()
        .rev()
        .filter_map(|l| {
            let mut fields = l.split(' ').skip(1);
            (fields.next() == Some("/")).then(|| fields.next().unwrap_or("").to_owned())
        })
        .next()
        .unwrap_or_default()
}

fn who(status: &str) -> Vec<(String, String)> {
    let (uid, gid) = (effective(status, "Uid:"), effective(status, "Gid:"));
    let name = |file: &str, id: &str| {
        let line = read(file);
        let found = line.lines().find(|l| l.split(':').nth(2) == Some(id));
        found.and_then(|l| l.split(':').next()).map_or_else(String::new, |n| format!(" ({n})"))
    };
    let mut groups = field(status, "Groups:").to_owned();
    if groups.is_empty() {
        groups = "none".into();
    }
    vec![
        fact("user", format!("{uid}{}", name("/etc/passwd", uid))),
        fact("group", format!("{gid}{}", name("/etc/group", gid))),
        fact("more groups", groups),
        fact("ids mapped", read("/proc/self/uid_map").split_whitespace().collect::<Vec<_>>().join(" ")),
    ]
}

fn limits() -> Vec<(String, String)> {
    let cgroup = |v2: &str, v1: &str| {
        let text = [format!("/sys/fs/cgroup/{v2}"), format!("/sys/fs/cgroup/{v1}")].map(|p| read(&p));
        text.into_iter().map(|t| t.trim().to_owned()).find(|t| !t.is_empty())
    };
    let memory = match cgroup("memory.max", "memory/memory.limit_in_bytes") {
        Some(text) => match text.parse::<u64>() {
            Ok(bytes) if bytes < 1 << 60 => size(bytes),
            _ => "no limit".into(),
        },
        None => "not visible".into(),
    };
    let cpu = match cgroup("cpu.max", "cpu/cpu.cfs_quota_us") {
        Some(text) => {
            let period = cgroup("cpu.max", "cpu/cpu.cfs_period_us").unwrap_or_default();
            let number = |t: &str, n: usize| t.split(' ').nth(n).and_then(|t| t.parse::<f64>().ok());
            let period = number(&period, 1).or_else(|| number(&period, 0)).unwrap_or(0.0);
            match number(&text, 0) {
                Some(quota) if quota > 0.0 && period > 0.0 => format!("{:.2} CPUs", quota / period),
                _ => "no limit".into(),
            }
        }
        None => "not visible".into(),
    };
    let pids = match cgroup("pids.max", "pids/pids.max") {
        Some(text) if text == "max" => "no limit".into(),
        other => other.unwrap_or_else(|| "not visible".into()),
    };
    let total =
        field(&read("/proc/meminfo"), "MemTotal:").trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
    let host = size(total * 1024);
    let online = std::thread::available_parallelism().map_or(0, |n| n.get());
    let rlimits = read("/proc/self/limits");
    let files = rlimits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))
        .map(|l| l.split_whitespace().take(2).collect::<Vec<_>>().join(" to "))
        .unwrap_or_default();
    vec![
        fact("memory", format!("{memory} (the kernel has {host})")),
        fact("CPU time", format!("{cpu} ({online} to run on)")),
        fact("processes", pids),
        fact("open files", files),
    ]
}

fn walls(status: &str) -> Vec<(String, String)> {
    let bits = u64::from_str_radix(field(status, "CapEff:"), 16).unwrap_or(0);
    let held: Vec<_> =
        CAPABILITIES.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, n)| *n).collect();
    let capabilities = match held.len() {
        0 => "none".into(),
        n if n > 20 => format!("{n} of {}", CAPABILITIES.len()),
        _ => held.join(" "),
    };
    let seccomp = match field(status, "Seccomp:") {
        "0" => "off",
        "1" => "strict",
        "2" => "a filter",
        _ => "not visible",
    };
    let profile = read("/proc/self/attr/current");
    let profile = profile.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    let writable = read("/proc/self/mounts").lines().any(|l| {
        let mut fields = l.split(' ').skip(1);
        fields.next() == Some("/") && fields.nth(1).is_some_and(|o| o.starts_with("rw"))
    });
    vec![
        fact("capabilities", capabilities),
        fact("system calls", seccomp),
        fact("new privileges", if field(status, "NoNewPrivs:") == "1" { "refused" } else { "allowed" }),
        fact("label", if profile.is_empty() { "none" } else { profile }),
        fact("root is", if writable { "writable" } else { "read-only" }),
    ]
}

fn network() -> Vec<(String, String)> {
    let mut names: Vec<String> = read("/proc/net/dev")
        .lines()
        .skip(2)
        .filter_map(|l| Some(l.split_once(':')?.0.trim().to_owned()))
        .collect();
    names.sort();
    let interfaces = if names.is_empty() { "none".into() } else { names.join(" ") };
    let mut addresses: Vec<String> = Vec::new();
    // Each local address stands before its "/32 host LOCAL" line.
    let trie = read("/proc/net/fib_trie");
    let mut last = "";
    for line in trie.lines() {
        if line.contains("/32 host LOCAL") && !addresses.iter().any(|a| a == last) {
            addresses.push(last.to_owned());
        }
        last = line.trim().trim_start_matches("|-- ");
    }
    for line in read("/proc/net/if_inet6").lines() {
        if let Some(address) = line.get(..32).and_then(|hex| u128::from_str_radix(hex, 16).ok()) {
            addresses.push(std::net::Ipv6Addr::from_bits(address).to_string());
        }
    }
    let resolvers: Vec<_> = read("/etc/resolv.conf")
        .lines()
        .filter_map(|l| Some(l.strip_prefix("nameserver")?.trim().to_owned()))
        .collect();
    let or_none = |list: Vec<String>| if list.is_empty() { "none".into() } else { list.join(" ") };
    vec![
        fact("interfaces", interfaces),
        fact("addresses", or_none(addresses)),
        fact("name servers", or_none(resolvers)),
    ]
}

fn namespaces() -> Vec<(String, String)> {
    ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
        .iter()
        .filter_map(|n| {
            let link = fs::read_link(format!("/proc/self/ns/{n}")).ok()?;
            let link = link.to_string_lossy();
            Some(fact(n, link.split_once(':').map_or(&*link, |(_, id)| id.trim_matches(['[', ']']))))
        })
        .collect()
}

fn processes() -> usize {
    let numeric = |e: &fs::DirEntry| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit());
    fs::read_dir("/proc").map_or(0, |d| d.flatten().filter(numeric).count())
}

fn fact(key: &str, value: impl ToString) -> (String, String) {
    (key.to_owned(), value.to_string())
}

fn read(path: &str) -> String {
    fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
}

/// The value of a line `KEY value` of a file like `/proc/self/status`.
fn field<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines().find_map(|l| l.strip_prefix(key)).map_or("", str::trim)
}

/// The second of the four ids of a line.
fn effective<'a>(status: &'a str, key: &str) -> &'a str {
    field(status, key).split_whitespace().nth(1).unwrap_or("")
}

fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64),
        b => format!("{:.1} MiB", b as f64 / (1u64 << 20) as f64),
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if (c as u32) < 32 => out += &format!("\\u{:04x}", c as u32),
            c => out.push(c),
        }
    }
    out + "\""
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_hold_the_facts() {
        let facts = Facts::gather();
        let kernel = read("/proc/sys/kernel/osrelease");
        for text in [facts.text(), facts.json(), facts.html()] {
            assert!(text.contains(kernel.trim()), "{text}");
        }
        assert_eq!(quoted("a\"\\\n"), "\"a\\\"\\\\\\u000a\"");
        assert_eq!(escaped("<&>"), "&lt;&amp;&gt;");
    }
}
