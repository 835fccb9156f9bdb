//! JSON as Docker prints it: the members of the known objects in Docker's order, all others sorted, four spaces.

use serde_json::Value;
use std::fmt::Write;

/// Members that come first, in this order, wherever they occur.
const ORDER: [&str; 43] = [
    "Id",
    "Created",
    "Path",
    "Args",
    "Status",
    "Running",
    "Paused",
    "Restarting",
    "OOMKilled",
    "Dead",
    "Pid",
    "ExitCode",
    "Error",
    "StartedAt",
    "FinishedAt",
    "State",
    "Image",
    "ResolvConfPath",
    "HostnamePath",
    "HostsPath",
    "LogPath",
    "Name",
    "RestartCount",
    "Driver",
    "Platform",
    "MountLabel",
    "ProcessLabel",
    "AppArmorProfile",
    "ExecIDs",
    "Hostname",
    "Domainname",
    "User",
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "Env",
    "Cmd",
    "HostConfig",
    "GraphDriver",
    "Mounts",
];

/// On many lines.
pub fn pretty(v: &Value) -> String {
    let mut out = String::new();
    write(&mut out, v, Some(0));
    out
}

/// On one line.
pub fn compact(v: &Value) -> String {
    let mut out = String::new();
    write(&mut out, v, None);
    out
}

fn write(out: &mut String, v: &Value, indent: Option<usize>) {
    let line = |out: &mut String, depth: usize| {
        if let Some(base) = indent {
            out.push('\n');
            let _ = write!(out, "{:1$}", "", (base + depth) * 4);
        }
    };
    let inner = indent.map(|i| i + 1);
    match v {
        Value::Array(a) if !a.is_empty() => {
            out.push('[');
            for (i, item) in a.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                line(out, 1);
                write(out, item, inner);
            }
            line(out, 0);
            out.push(']');
        }
        Value::Object(o) if !o.is_empty() => {
            let mut members: Vec<_> = o.iter().collect();
            let rank = |k: &str| ORDER.iter().position(|n| *n == k).unwrap_or(ORDER.len());
            members.sort_by(|(a, _), (b, _)| rank(a).cmp(&rank(b)).then_with(|| a.cmp(b)));
            out.push('{');
            for (i, (k, item)) in members.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                line(out, 1);
                let _ = write!(out, "{}:", Value::String(k.clone()));
                if indent.is_some() {
                    out.push(' ');
                }
                write(out, item, inner);
            }
            line(out, 0);
            out.push('}');
        }
        other => {
            let _ = write!(out, "{other}");
        }
    }
}
