//! `dhow serve` beside a recording of Docker's daemon: the same requests, and what their answers look like. Each difference
//! is listed in docs/docker-api.md with its reason; one that is not fails here, and so does a listed one that is gone.

use dhow_tests::registry::Registry;
use dhow_tests::server::Server;
use dhow_tests::{Store, have};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One difference: of which request, where in its answer, and what both have there.
#[derive(Debug)]
struct Difference {
    request: String,
    place: String,
    docker: String,
    ours: String,
}

/// A row of the table: requests (`*` for any text), where, Docker's, ours.
#[derive(Debug)]
struct Listed {
    row: String,
    requests: Vec<String>,
    place: String,
    docker: String,
    ours: String,
}

impl Listed {
    fn is_about(&self, d: &Difference) -> bool {
        self.place == d.place
            && self.requests.iter().any(|r| fits(r, &d.request))
            && fits(&self.docker, &d.docker)
            && fits(&self.ours, &d.ours)
    }
}

/// Whether text is what a pattern says; a `*` in it stands for any text.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).any(|at| tail.is_char_boundary(at) && fits(rest, &tail[at..]))
        }),
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rows of the table between the two marks in the documentation.
fn listed() -> Vec<Listed> {
    let text = std::fs::read_to_string(repository().join("docs/docker-api.md")).unwrap();
    let (_, rest) = text.split_once("<!-- differences -->").expect("docs/docker-api.md has a table");
    let (table, _) = rest.split_once("<!-- end of differences -->").expect("the table has an end");
    let rows = table.lines().filter(|l| l.starts_with("| ")).skip(1);
    rows.map(|row| {
        let cells: Vec<String> =
            row.trim_matches('|').split(" | ").map(|c| c.trim().trim_matches('`').to_owned()).collect();
        let [requests, place, docker, ours, why] = &cells[..] else { panic!("not five columns: {row}") };
        assert!(!why.is_empty(), "no reason: {row}");
        let requests = requests.split(", ").map(str::to_owned).collect();
        let (place, docker, ours) = (place.clone(), docker.clone(), ours.clone());
        Listed { row: row.to_owned(), requests, place, docker, ours }
    })
    .collect()
}

/// A value in one cell of the table.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) if map.is_empty() => "{}".into(),
        Value::Object(map) if map.contains_key("*") || map.contains_key("*?") => "a map".into(),
        Value::Object(_) => "an object".into(),
        Value::Array(list) if list.is_empty() => "[]".into(),
        Value::Array(list) if list.iter().all(Value::is_string) && list.len() > 1 => {
            let words: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            words.join(", ")
        }
        Value::Array(_) => "a list".into(),
        other => other.to_string(),
    }
}

struct Comparison<'a> {
    request: &'a str,
    found: Vec<Difference>,
}

impl Comparison<'_> {
    fn tell(&mut self, place: &str, docker: impl Into<String>, ours: impl Into<String>) {
        let (request, place) = (self.request.to_owned(), place.to_owned());
        self.found.push(Difference { request, place, docker: docker.into(), ours: ours.into() });
    }

    fn compare(&mut self, place: &str, docker: &Value, ours: &Value) {
        match (docker, ours) {
            (a, b) if a == b => {}
            (Value::Object(a), Value::Object(b)) if !a.is_empty() && !b.is_empty() => {
                self.objects(place, a, b)
            }
            (Value::Array(a), Value::Array(b)) if a.len() == 1 && b.len() == 1 => {
                self.compare(&format!("{place}[]"), &a[0], &b[0]);
            }
            (a, b) => self.tell(place, cell(a), cell(b)),
        }
    }

    /// Keys that only some of several objects have end in a question mark.
    fn objects(&mut self, place: &str, docker: &Map<String, Value>, ours: &Map<String, Value>) {
        let bare = |k: &String| k.trim_end_matches('?').to_owned();
        let keys: BTreeSet<String> = docker.keys().chain(ours.keys()).map(bare).collect();
        for key in keys {
            let at = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
            let sometimes = format!("{key}?");
            let find = |map: &Map<String, Value>| {
                let always = map.get(&key).map(|v| (v.clone(), true));
                always.or_else(|| map.get(&sometimes).map(|v| (v.clone(), false)))
            };
            match (find(docker), find(ours)) {
                (Some((a, _)), None) => self.tell(&at, cell(&a), "missing"),
                (None, Some((b, _))) => self.tell(&at, "missing", cell(&b)),
                (Some((a, of_all)), Some((b, of_all_ours))) => {
                    let word = |always| if always { "always" } else { "sometimes" };
                    if of_all != of_all_ours {
                        self.tell(&at, word(of_all), word(of_all_ours));
                    }
                    self.compare(&at, &a, &b);
                }
                (None, None) => {}
            }
        }
    }
}

/// All differences between two recordings. Messages are for people, and not compared; where statuses differ, nothing else is.
fn differences(docker: &Value, ours: &Value) -> Vec<Difference> {
    let mut all = Vec::new();
    for (request, docker) in docker["answers"].as_object().unwrap() {
        let ours = &ours["answers"][request];
        assert!(ours.is_object(), "{request} was not recorded of Docker: run tests/docker-api/record.py");
        let mut comparison = Comparison { request, found: Vec::new() };
        if docker["status"] != ours["status"] {
            comparison.tell("status", cell(&docker["status"]), cell(&ours["status"]));
        } else {
            for part in ["type", "stat", "order", "body"] {
                comparison.compare(part, &docker[part], &ours[part]);
            }
        }
        all.extend(comparison.found);
    }
    all
}

#[test]
fn answers_look_like_dockers() {
    for program in ["python3", "busybox"] {
        if !have(program) {
            println!("SKIPPED: {program} is not installed");
            return;
        }
    }
    let Some(registry) = Registry::start() else { return };
    let store = Store::new();
    let server = Server::start(&store, &[]);
    let out = store.run().join("ours.json");
    let record = repository().join("tests/docker-api/record.py");
    let done = Command::new("python3")
        .arg(record)
        .args(["--registry", &registry.host, "--verbose", "300"])
        .args(["--socket".as_ref(), server.socket.as_os_str(), "--out".as_ref(), out.as_os_str()])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "the requests could not all be made: {log}");
    let read = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let docker = read(&repository().join("tests/docker-api/dockerd.json"));
    let found = differences(&docker, &read(&out));
    let listed = listed();
    let mut wrong = String::new();
    for d in found.iter().filter(|d| !listed.iter().any(|l| l.is_about(d))) {
        let line = log.lines().find(|l| l.contains(&format!(" {}: ", d.request))).unwrap_or_default();
        wrong +=
            &format!("not listed: | {} | `{}` | {} | {} |   {line}\n", d.request, d.place, d.docker, d.ours);
    }
    for l in listed.iter().filter(|l| !found.iter().any(|d| l.is_about(d))) {
        wrong += &format!("listed, but not there: {}\n", l.row);
    }
    assert!(wrong.is_empty(), "docs/docker-api.md does not list the differences as they are:\n{wrong}");
    store.ok(&["system", "reset", "--force"]);
}

#[test]
fn patterns_fit() {
    assert!(fits("inspect *", "inspect rich") && fits("*", "") && fits("a*c*", "abcd") && fits("x", "x"));
    assert!(!fits("inspect *", "list rich") && !fits("a*c", "abcd"));
}
