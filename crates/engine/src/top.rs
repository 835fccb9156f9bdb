//! `top`: what runs in a container, as `ps` shows it.
//!
//! `ps` runs as root and sees the whole host, and its words come from a client. So they are taken apart first: which processes
//! are shown is ours to say, by their pids, and a client's words say only how.

use crate::recover::Liveness;
use crate::spec::invalid;
use crate::store::Container;
use crate::{Engine, EngineError, Result, machine};
use std::process::Command;
use types::docker::ContainerTopResponse;

/// As many pids as fit into one word of a command line.
const PIDS: usize = 8192;

impl Engine {
    /// The processes of a running container, as `ps` with these options shows them; Docker's default is `-ef`.
    pub fn top(&self, name: &str, ps_args: &[String]) -> Result<ContainerTopResponse> {
        let container = self.find(name)?;
        let shown = match container.is_vm() {
            true => self.top_of_guest(&container, ps_args)?,
            false => self.top_of_container(&container, ps_args)?,
        };
        self.event(&container, "top", &[]);
        Ok(shown)
    }

    fn top_of_container(&self, container: &Container, ps_args: &[String]) -> Result<ContainerTopResponse> {
        let format = format_of(ps_args)?;
        let before = self.pids(container)?;
        let mut ps = Command::new("ps");
        ps.args(format);
        for some in before.chunks(PIDS) {
            let list: Vec<String> = some.iter().map(i32::to_string).collect();
            ps.arg("-p").arg(list.join(","));
        }
        let output =
            ps.output().map_err(EngineError::io("cannot run the program (package procps)", "ps".as_ref()))?;
        // It also fails where all of them have ended.
        if !output.status.success() && !output.stderr.is_empty() {
            return Err(invalid(format!("ps: {}", String::from_utf8_lossy(&output.stderr).trim())));
        }
        // A pid that was free meanwhile may have become somebody else's.
        let after = self.pids(container)?;
        let pids: Vec<i32> = before.into_iter().filter(|pid| after.contains(pid)).collect();
        parse_ps(&String::from_utf8_lossy(&output.stdout), &pids)
    }

    fn pids(&self, container: &Container) -> Result<Vec<i32>> {
        let not_running = || EngineError::NotRunning(container.id.to_string());
        let pids = match self.liveness(container)? {
            Liveness::Supervised(_) => {
                self.client(container)?.processes().map_err(|e| self.refused(container, e))?
            }
            Liveness::Ended(..) => return Err(not_running()),
        };
        if pids.is_empty() { Err(not_running()) } else { Ok(pids) }
    }

    /// The guest has no `ps` of this host, nor need its image have one: its agent knows one way to show them.
    fn top_of_guest(&self, container: &Container, ps_args: &[String]) -> Result<ContainerTopResponse> {
        if !matches!(ps_args, [] | [_]) || ps_args.iter().any(|a| a != "-ef" && a != "ef") {
            return Err(EngineError::Unsupported(format!(
                "top of a microVM takes no options but -ef, not {:?}: run ps inside (dhow exec {} ps)",
                ps_args.join(" "),
                container.name
            )));
        }
        if let Liveness::Ended(..) = self.liveness(container)? {
            return Err(EngineError::NotRunning(container.id.to_string()));
        }
        self.with_guest(container, |files| Ok(machine::files::top(files.processes()?)))
    }
}

/// Those of the words that say how processes are shown (ps(1)); what says which ones is left out, and all else is refused.
fn format_of(words: &[String]) -> Result<Vec<String>> {
    let refused = |word: &str| invalid(format!("ps: {word:?} is none of the options that may be given here"));
    let mut format = Vec::new();
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if word == "--forest" {
            format.push(word.to_owned());
            continue;
        }
        if let Some(keys) = word.strip_prefix("--sort=") {
            format.push(format!("--sort={}", columns(keys)?));
            continue;
        }
        let (dash, letters) = match word.strip_prefix('-') {
            Some(letters) => ("-", letters),
            None => ("", word),
        };
        // Which processes, and how; BSD's "e" would show their environments.
        let (which, how) = if dash.is_empty() { ("axg", "cfjlnSsuvwm") } else { ("eAad", "cFfHjLlTwyMm") };
        for (at, letter) in letters.char_indices() {
            if letter == 'o' {
                let rest = letters.get(at + 1..).filter(|rest| !rest.is_empty());
                let list = rest.or_else(|| words.next()).ok_or_else(|| refused(word))?;
                format.extend(["-o".to_owned(), columns(list)?]);
                break;
            }
            if how.contains(letter) {
                format.push(format!("{dash}{letter}"));
            } else if !which.contains(letter) {
                return Err(refused(word));
            }
        }
        if letters.is_empty() {
            return Err(refused(word));
        }
    }
    if format.is_empty() {
        format.push("-f".into());
    }
    Ok(format)
}

/// A list of columns that have the titles that `ps` gives them, since one of these tells whose a line is.
fn columns(list: &str) -> Result<String> {
    let is_known =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '%' | ',' | '+' | '-' | ':');
    let shows_environments = list.split(',').any(|column| column.trim_start_matches(['+', '-']).starts_with("env"));
    match !list.is_empty() && list.chars().all(is_known) && !shows_environments {
        true => Ok(list.to_owned()),
        false => Err(invalid(format!("ps: the columns {list:?} may not be given here: name them, without titles"))),
    }
}

fn parse_ps(text: &str, pids: &[i32]) -> Result<ContainerTopResponse> {
    let mut lines = text.lines();
    let titles: Vec<String> =
        lines.next().unwrap_or("").split_ascii_whitespace().map(str::to_owned).collect();
    let at = titles
        .iter()
        .position(|t| t == "PID")
        .ok_or_else(|| invalid("couldn't find PID field in ps output: the options must show it"))?;
    let processes = lines
        .filter_map(|line| {
            let mut fields: Vec<String> = Vec::with_capacity(titles.len());
            let mut rest = line.trim_start();
            // The last column is a command line, which has spaces.
            while fields.len() + 1 < titles.len() {
                let (field, tail) = rest.split_once(char::is_whitespace)?;
                fields.push(field.to_owned());
                rest = tail.trim_start();
            }
            fields.push(rest.to_owned());
            pids.contains(&fields.get(at)?.parse().ok()?).then_some(fields)
        })
        .collect();
    Ok(ContainerTopResponse { titles: Some(titles), processes: Some(processes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_processes_are_shown() {
        let text = "UID  PID PPID CMD\nroot   1    0 /sbin/init splash\nroot  20    1 sleep 100 x\n";
        let top = parse_ps(text, &[20]).unwrap();
        assert_eq!(top.processes.unwrap(), [["root", "20", "1", "sleep 100 x"]]);
        assert!(parse_ps("UID CMD\n", &[1]).is_err());
    }

    #[test]
    fn words_say_how_and_not_which() {
        let of = |words: &str| {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            format_of(&words).map(|format| format.join(" ")).ok()
        };
        for (words, format) in [
            ("", "-f"),
            ("-ef", "-f"),
            ("-e", "-f"),
            ("aux", "u"),
            ("-eo pid,comm,pcpu", "-o pid,comm,pcpu"),
            ("axo pid,args:50", "-o pid,args:50"),
            ("-opid -w --sort=-pcpu", "-o pid -w --sort=-pcpu"),
            ("-eLf --forest", "-L -f --forest"),
        ] {
            assert_eq!(of(words).as_deref(), Some(format), "{words}");
        }
        for words in [
            "axeww", "ef", "-o vsz=PID,pid=P,args", "axo pid=", "-p 1", "-q1", "-C sh", "-u root", "1", "-o", "-",
            "-o environ", "--sort=a=b", "--pid=1", "-t", "p1", "-N", "-o pid,\"x",
        ] {
            assert_eq!(of(words), None, "{words}");
        }
    }
}
