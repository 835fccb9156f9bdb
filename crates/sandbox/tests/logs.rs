//! Logs from writer to reader, across rotations, crashes and followers.

use dhow_sandbox::logs::{Entry, LogWriter, ReadOptions, Source, current_file, parse_options, read};
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use types::LogConfig;

fn config(driver: &str, options: &[(&str, &str)]) -> LogConfig {
    let options: BTreeMap<_, _> = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    parse_options(driver, &options).unwrap()
}

fn lines(dir: &Path, config: &LogConfig, options: &ReadOptions) -> Vec<String> {
    let mut out = Vec::new();
    let each = &mut |e: Entry| {
        out.push(String::from_utf8(e.line).unwrap());
        ControlFlow::Continue(())
    };
    read(dir, config, options, each, &|| false).unwrap();
    out
}

fn numbered(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|i| format!("line {i}\n")).collect()
}

/// Configurations that keep at least 2,000 short lines.
fn all() -> Vec<LogConfig> {
    vec![
        config("json-file", &[]),
        config("json-file", &[("max-size", "20k"), ("max-file", "50")]),
        config("json-file", &[("max-size", "20k"), ("max-file", "50"), ("compress", "true")]),
        config("local", &[]),
        config("local", &[("max-size", "5k"), ("max-file", "50")]),
    ]
}

#[test]
fn all_lines_come_back_in_order() {
    for config in all() {
        let tmp = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::open(tmp.path(), &config).unwrap();
        for (i, line) in numbered(0..2000).iter().enumerate() {
            let (a, b) = line.as_bytes().split_at(i % line.len());
            writer.write(Source::Stdout, a, 1_000 + i as i64);
            writer.write(Source::Stdout, b, 1_000 + i as i64);
        }
        drop(writer);
        let everything = ReadOptions::default();
        assert_eq!(lines(tmp.path(), &config, &everything), numbered(0..2000), "{config:?}");
        for tail in [0, 1, 150, 1999, 5000] {
            let tail_of = ReadOptions { tail: Some(tail), ..ReadOptions::default() };
            let first = 2000u32.saturating_sub(tail as u32);
            assert_eq!(lines(tmp.path(), &config, &tail_of), numbered(first..2000), "{tail} {config:?}");
        }
        let between = ReadOptions { since: Some(1_100), until: Some(1_200), ..ReadOptions::default() };
        assert_eq!(lines(tmp.path(), &config, &between), numbered(100..201));
        let none = ReadOptions { stdout: false, ..ReadOptions::default() };
        assert!(lines(tmp.path(), &config, &none).is_empty());
    }
}

#[test]
fn rotation_keeps_so_many_files() {
    let config = config("json-file", &[("max-size", "1k"), ("max-file", "3"), ("compress", "true")]);
    let tmp = tempfile::tempdir().unwrap();
    let mut writer = LogWriter::open(tmp.path(), &config).unwrap();
    for line in numbered(0..300) {
        writer.write(Source::Stdout, line.as_bytes(), 0);
    }
    while writer.work() {}
    let mut names: Vec<_> = std::fs::read_dir(tmp.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names[1].ends_with(".1.gz") && names[2].ends_with(".2.gz"));
    let kept = lines(tmp.path(), &config, &ReadOptions::default());
    assert_eq!(kept, numbered(300 - kept.len() as u32..300));
}

#[test]
fn a_torn_end_is_mended() {
    for config in all() {
        let tmp = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::open(tmp.path(), &config).unwrap();
        writer.write(Source::Stdout, b"line 0\n", 5);
        drop(writer);
        let path = current_file(tmp.path(), &config).unwrap();
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"\0\0\0\x30{\"log\":\"to")
            .unwrap();
        assert_eq!(
            lines(tmp.path(), &config, &ReadOptions { tail: Some(9), ..ReadOptions::default() }),
            numbered(0..1)
        );
        let mut writer = LogWriter::open(tmp.path(), &config).unwrap();
        writer.write(Source::Stdout, b"line 1\n", 6);
        assert_eq!(lines(tmp.path(), &config, &ReadOptions::default()), numbered(0..2), "{config:?}");
    }
}

#[test]
fn long_lines_are_cut_and_unfinished_ones_kept() {
    for config in all() {
        let tmp = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::open(tmp.path(), &config).unwrap();
        let long = "x".repeat(40_000) + "\nend";
        writer.write(Source::Stderr, long.as_bytes(), 5);
        writer.end(Source::Stderr, 6);
        let read = lines(tmp.path(), &config, &ReadOptions::default());
        assert_eq!(read.iter().map(String::len).collect::<Vec<_>>(), [16_384, 16_384, 7_233, 3]);
        assert_eq!(read.concat(), long);
    }
}

#[test]
fn a_follower_misses_and_doubles_nothing() {
    for config in all() {
        let tmp = tempfile::tempdir().unwrap();
        let running = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let follower = scope.spawn(|| {
                let mut out = Vec::new();
                let options = ReadOptions { follow: true, ..ReadOptions::default() };
                let each = &mut |e: Entry| {
                    out.push(String::from_utf8(e.line).unwrap());
                    ControlFlow::Continue(())
                };
                read(tmp.path(), &config, &options, each, &|| running.load(Ordering::SeqCst)).unwrap();
                out
            });
            let mut writer = LogWriter::open(tmp.path(), &config).unwrap();
            for line in numbered(0..2000) {
                writer.write(Source::Stdout, line.as_bytes(), sys::host::now_ns());
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
            drop(writer);
            running.store(false, Ordering::SeqCst);
            assert_eq!(follower.join().unwrap(), numbered(0..2000), "{config:?}");
        });
    }
}

#[test]
fn a_full_disk_loses_lines_and_says_so() {
    let tmp = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    let mounted = rustix::mount::mount("tmpfs", tmp.path(), "tmpfs", flags, c"size=64k");
    if let Err(e) = mounted {
        println!("skipped: a tmpfs cannot be mounted here: {e}");
        return;
    }
    let config = config("json-file", &[]);
    let mut writer = LogWriter::open(tmp.path(), &config).unwrap();
    let ballast = tmp.path().join("ballast");
    writer.write(Source::Stdout, b"before\n", 0);
    std::fs::write(&ballast, vec![0; 56 << 10]).unwrap();
    for _ in 0..10 {
        writer.write(Source::Stdout, "lost\n".repeat(100).as_bytes(), 0);
    }
    std::fs::remove_file(&ballast).unwrap();
    writer.write(Source::Stdout, b"after\n", 0);
    let read = lines(tmp.path(), &config, &ReadOptions::default());
    drop(writer);
    rustix::mount::unmount(tmp.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!((read[0].as_str(), read.last().unwrap().as_str()), ("before\n", "after\n"));
    assert_eq!(read.iter().filter(|l| l.contains("the log lost about")).count(), 1, "{read:?}");
}
