//! The workload's processes as `ps -ef` shows them (ps(1), "standard format specifiers"; proc_pid_stat(5)).

use crate::Result;
use sandbox::files::Processes;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

/// Ticks of a second, `USER_HZ`.
const TICKS: u64 = 100;
/// Most processes that are listed.
const MOST: usize = 10_000;
/// Most bytes of a command line.
const LONGEST: usize = 256;

/// All processes of a cgroup and of those below.
pub fn list(cgroup: &Path) -> Result<Processes> {
    let mut pids = Vec::new();
    collect(cgroup, &mut pids);
    pids.sort_unstable();
    pids.truncate(MOST);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split('.').next().and_then(|s| s.parse().ok()).unwrap_or(0);
    // One that ends meanwhile is left out.
    Ok(pids.into_iter().filter_map(|pid| row(pid, now, uptime)).collect())
}

fn collect(cgroup: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&entry.path(), pids);
        }
    }
}

fn row(pid: i32, now: u64, uptime: u64) -> Option<[String; 8]> {
    let dir = Path::new("/proc").join(pid.to_string());
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let uid = fs::metadata(&dir).ok()?.uid();
    let command = fs::read(dir.join("cmdline")).ok()?;
    let stat = parse(&stat, TICKS)?;
    let age = uptime.saturating_sub(stat.started);
    let share = (stat.used * 100).checked_div(age).unwrap_or(0).min(99);
    Some([
        if uid == 0 { "root".into() } else { uid.to_string() },
        pid.to_string(),
        stat.parent.to_string(),
        share.to_string(),
        started(now.saturating_sub(age), now),
        terminal(stat.terminal),
        spent(stat.used),
        shown(&command, &stat.name),
    ])
}

/// Fields of `/proc/PID/stat`, times in seconds.
struct ProcessStat {
    name: String,
    parent: i32,
    terminal: u32,
    used: u64,
    started: u64,
}

fn parse(text: &str, ticks: u64) -> Option<ProcessStat> {
    let (head, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The third field of the manual page is the first after the name.
    let number = |field: usize| fields.get(field.checked_sub(3)?)?.parse::<u64>().ok();
    Some(ProcessStat {
        name: head.split_once('(')?.1.into(),
        parent: fields.get(1)?.parse().ok()?,
        terminal: u32::try_from(fields.get(4)?.parse::<i64>().ok()?).unwrap_or(0),
        used: number(14)?.saturating_add(number(15)?).checked_div(ticks)?,
        started: number(22)?.checked_div(ticks)?,
    })
}

/// The hour today, else the day, else the year; UTC, as nobody told the guest of another zone.
fn started(at: u64, now: u64) -> String {
    let date = |s: u64| i64::try_from(s).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    let (Some(at), Some(now)) = (date(at), date(now)) else { return "?".into() };
    if at.date() == now.date() {
        format!("{:02}:{:02}", at.hour(), at.minute())
    } else if at.year() == now.year() {
        let month = at.month().to_string();
        format!("{}{:02}", month.get(..3).unwrap_or(&month), at.day())
    } else {
        at.year().to_string()
    }
}

fn terminal(number: u32) -> String {
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00);
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        5 if minor == 1 => "console".into(),
        _ => "?".into(),
    }
}

/// `[days-]hours:minutes:seconds`.
fn spent(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let text = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days > 0 { format!("{days}-{text}") } else { text }
}

fn shown(command: &[u8], name: &str) -> String {
    let command = command.get(..LONGEST).unwrap_or(command);
    let words: Vec<_> = command.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
    match words.join(" ").trim_end() {
        "" => format!("[{name}]"),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let rest = "S 7 8 9 34817 0 0 0 0 0 0 250 150 0 0 20 0 1 0 12300 0";
        let stat = parse(&format!("42 (a) b) {rest}"), 100).unwrap();
        assert_eq!((stat.name.as_str(), stat.parent, stat.used, stat.started), ("a) b", 7, 4, 123));
        assert_eq!(terminal(stat.terminal), "pts/1");
        assert!(parse("42 (a", 100).is_none());
        assert!(parse("42 (a) S 1", 100).is_none());
    }

    #[test]
    fn times_are_written_as_ps_does() {
        let noon = 1_700_000_000;
        assert_eq!(started(noon, noon + 60), "22:13");
        assert_eq!(started(noon, noon + 86_400), "Nov14");
        assert_eq!(started(noon, noon + 400 * 86_400), "2023");
        assert_eq!(spent(3_725), "01:02:05");
        assert_eq!(spent(90_061), "1-01:01:01");
    }

    #[test]
    fn a_kernel_thread_is_named_in_brackets() {
        assert_eq!(shown(b"sleep\x0010\x00", "sleep"), "sleep 10");
        assert_eq!(shown(b"", "kworker"), "[kworker]");
    }
}
