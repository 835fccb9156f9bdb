//! Starts and commands that take their time, as those of machines do: everything else goes on meanwhile.

use crate::rig::{Rig, collect, fifo, until};
use dhow_sandbox::client::*;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use types::{RestartPolicy, Status};

/// See open(2).
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Failure {
    match answer {
        Err(ClientError::Refused(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

/// A supervisor whose container takes its time.
fn started_slowly(rig: &mut Rig) -> Launch {
    let launch = rig.begin(Some(crate::rig::BOTH));
    until("the supervisor", || Client::connect(&rig.run_dir()).is_ok());
    launch
}

#[test]
fn a_start_is_ended_by_a_stop_at_once_and_hides_nothing() {
    let mut rig = Rig::new("echo never");
    rig.bundle.restart = RestartPolicy::Always;
    rig.slow("BOOT");
    let launch = started_slowly(&mut rig);
    assert_eq!(rig.client().state().unwrap().status, Status::Created);
    assert_eq!(rig.client().execs().unwrap(), []);
    for failure in [
        refused(rig.client().exec(crate::exec(&["true"]))),
        refused(rig.client().attach(crate::rig::BOTH)),
        refused(rig.client().pause()),
        refused(rig.client().stats()),
        refused(rig.client().signal(10)),
    ] {
        assert!(failure.message.contains("is starting"), "{failure}");
    }
    assert_eq!(rig.client().stop(None, Some(600)).unwrap(), 137);
    let failure = refused(launch.started());
    assert_eq!(failure.exit_code, 137);
    assert!(failure.message.contains("was stopped before its workload had started"), "{failure}");
    rig.gone();
    let state = rig.state();
    assert_eq!((state.status, state.exit_code, state.stopped_by_user), (Status::Exited, 137, true));
    let events = ["attach", "kill signal=15", "(ended)", "die exitCode=137", "stop", "(finished)"];
    assert_eq!(rig.events(), events);
}

#[test]
fn kill_and_removal_end_a_start_in_each_of_its_stages() {
    for stage in ["BOOT", "START"] {
        let mut rig = Rig::new("echo never");
        rig.slow(stage);
        let launch = started_slowly(&mut rig);
        rig.client().signal(9).unwrap();
        assert_eq!(refused(launch.started()).exit_code, 137);
        assert_eq!(rig.gone(), 137);

        let mut rig = Rig::new("echo never");
        rig.slow(stage);
        let launch = started_slowly(&mut rig);
        assert_eq!(rig.client().kill_all().unwrap(), 137);
        assert_eq!(refused(launch.started()).exit_code, 137);
        rig.gone();
    }
}

#[test]
fn what_cannot_be_done_before_the_start_is_done_after_it() {
    let mut rig = Rig::new("sleep 1000");
    let boot = rig.slow("BOOT");
    let launch = started_slowly(&mut rig);
    let mut client = rig.client();
    let renamed = std::thread::spawn(move || client.rename("other"));
    // It is asked after the other, if that was quick enough.
    rig.client().state().unwrap();
    std::fs::write(&boot, "x").unwrap();
    launch.started().unwrap();
    renamed.join().unwrap().unwrap();
    rig.client().kill_all().unwrap();
    rig.gone();
}

#[test]
fn the_signal_of_a_stop_reaches_a_workload_that_is_about_to_start() {
    let mut rig = Rig::new("trap 'exit 5' TERM; while true; do sleep 0.02; done");
    let (boot, start) = (rig.slow("BOOT"), rig.slow("START"));
    let launch = started_slowly(&mut rig);
    std::fs::write(&boot, "x").unwrap();
    // Nobody but the supervisor opens it for reading.
    let open = || std::fs::File::options().write(true).custom_flags(NONBLOCK).open(&start).ok();
    until("the second stage", || open().is_some());
    let mut client = rig.client();
    let stopped = std::thread::spawn(move || client.stop(Some(15), Some(600)));
    rig.client().state().unwrap();
    std::fs::write(&start, "x").unwrap();
    launch.started().unwrap();
    // It may have had no time to prepare for the signal.
    let code = stopped.join().unwrap().unwrap();
    assert!(code == 5 || code == 143, "{code}");
    rig.gone();
}

#[test]
fn a_stop_has_no_patience_beyond_its_own_with_a_workload_that_does_not_start() {
    let mut rig = Rig::new("echo never");
    rig.slow("START");
    let launch = started_slowly(&mut rig);
    assert_eq!(rig.client().stop(Some(15), Some(0)).unwrap(), 137);
    assert_eq!(refused(launch.started()).exit_code, 137);
    rig.gone();

    let mut rig = Rig::new("echo never");
    rig.slow("BOOT");
    let env = rig.bundle.spec.process_mut().as_mut().unwrap().env_mut();
    env.as_mut().unwrap().push("LIMIT=100".into());
    let launch = rig.begin(None);
    assert!(refused(launch.started()).message.contains("it is late"));
    rig.gone();
}

#[test]
fn a_command_that_never_begins_costs_its_own_session_alone() {
    let mut rig = Rig::new("sleep 1000");
    rig.launch(None).unwrap();
    let slow = |name: &str, limit: u32| {
        let mut options = crate::exec(&["sh", "-c", "cat; exit 3"]);
        let fifo = fifo(&rig.tmp.path().join(name));
        options.id = name.to_owned();
        options.process.set_env(Some(vec![format!("BEGIN={}", fifo.display()), format!("LIMIT={limit}")]));
        (options, fifo)
    };
    let exec = |options: ExecOptions| {
        let client = rig.client();
        std::thread::spawn(move || client.exec(options))
    };
    let is_there = |name: &str| rig.client().execs().unwrap().iter().any(|e| e.id == name);
    let (late, _) = slow("late", 300);
    let late = exec(late);
    let (begins, go) = slow("begins", 600_000);
    let begins = exec(begins);
    let (detached, go_detached) = slow("detached", 600_000);
    let detached = exec(ExecOptions { detach: true, ..detached });
    let (never, _) = slow("never", 600_000);
    let never = exec(never);
    until("all of them", || ["begins", "detached", "never"].iter().all(|name| is_there(name)));

    let stream = rig.client().exec(crate::exec(&["echo", "quick"])).unwrap().unwrap();
    assert_eq!(collect(stream).0, b"quick\n");
    assert!(refused(late.join().unwrap()).message.contains("it is late"));
    assert!(!is_there("late"));

    std::fs::write(&go, "x").unwrap();
    let stream = begins.join().unwrap().unwrap().unwrap();
    stream.write_stdin(b"in").unwrap();
    stream.end_stdin().unwrap();
    assert_eq!(collect(stream), (b"in".to_vec(), Vec::new(), Some(3)));
    std::fs::write(&go_detached, "x").unwrap();
    assert!(detached.join().unwrap().unwrap().is_none());

    rig.client().kill_all().unwrap();
    assert!(refused(never.join().unwrap()).message.contains("is not running"));
    rig.gone();
}

/// A guest that says nothing before it is told to.
struct Guest(PathBuf, File);

impl Guest {
    /// That of a supervisor which is started with it.
    fn of(rig: &mut Rig) -> Self {
        let fifo = rig.slow("GUEST");
        rig.launch(None).unwrap();
        // Readable as well: what is written stays.
        let open = File::options().read(true).write(true).open(&fifo).unwrap();
        Self(fifo, open)
    }

    /// What it was asked.
    fn asked(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.with_extension("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn answer(&mut self) {
        self.1.write_all(b"x").unwrap();
    }
}

#[test]
fn a_guest_that_is_silent_costs_nobodys_time_but_who_asks_it() {
    let mut rig = Rig::new("sleep 1000");
    let guest = Guest::of(&mut rig);
    let mut client = rig.client();
    let signal = std::thread::spawn(move || client.signal(10));
    until("the question", || !guest.asked().is_empty());
    let mut client = rig.client();
    let stats = std::thread::spawn(move || client.stats());
    let mut client = rig.client();
    let gone = std::thread::spawn(move || client.processes());
    until("the others", || guest.asked().len() == 3);
    // All else goes on.
    assert_eq!(rig.client().state().unwrap().status, Status::Running);
    let stream = rig.client().exec(crate::exec(&["echo", "quick"])).unwrap().unwrap();
    assert_eq!(collect(stream).0, b"quick\n");
    rig.client().pause().unwrap();
    rig.client().resume().unwrap();
    // It hears neither the signal of the stop nor SIGKILL: its time is up then.
    assert_eq!(rig.client().stop(Some(15), Some(0)).unwrap(), 137);
    let failures = [
        refused(signal.join().unwrap()),
        refused(stats.join().unwrap().map(drop)),
        refused(gone.join().unwrap().map(drop)),
    ];
    for failure in failures {
        assert!(failure.message.contains("is not running"), "{failure}");
    }
    rig.gone();
    let state = rig.state();
    assert_eq!((state.status, state.exit_code), (Status::Exited, 137));
}

#[test]
fn a_guest_that_answers_has_its_part_in_what_is_told() {
    let mut rig = Rig::new("trap 'exit 5' USR1; while true; do sleep 0.02; done");
    let mut guest = Guest::of(&mut rig);
    guest.answer();
    assert_eq!(rig.client().stats().unwrap().pids, 42);
    assert_eq!(rig.client().processes().unwrap(), [42]);
    rig.client().update(None, Some(RestartPolicy::No)).unwrap();
    // It may have had no time to prepare for the signal.
    rig.client().signal(10).unwrap();
    let code = rig.gone();
    assert!(code == 5 || code == 138, "{code}");
}

#[test]
fn a_guest_that_is_too_late_is_an_error_and_what_it_tells_is_missing() {
    let mut rig = Rig::new("sleep 1000");
    let process = rig.bundle.spec.process_mut().as_mut().unwrap();
    process.set_env(Some(vec!["LIMIT=300".into()]));
    rig.bundle.network = types::NetworkPlan::Networks(vec![crate::attachment(0, false)]);
    let _guest = Guest::of(&mut rig);
    assert!(refused(rig.client().signal(10)).message.contains("it is late"));
    assert!(refused(rig.client().processes().map(drop)).message.contains("it is late"));
    assert_eq!(rig.client().stats().unwrap().pids, 1, "what the host counts is told");
    // It is on no network that it does not know, and on none any more that it was to leave.
    let connected = rig.client().connect_network(&crate::attachment(1, false));
    assert!(refused(connected).message.contains("it is late"));
    assert_eq!(crate::noted(&rig), [("eth0".into(), true)]);
    rig.client().disconnect_network(&"0".repeat(64)).unwrap();
    assert_eq!(crate::noted(&rig), []);
    rig.client().kill_all().unwrap();
    rig.gone();
}

#[test]
fn changes_follow_each_other_and_of_sizes_the_last_one_stays() {
    let mut rig = Rig::new("sleep 1000");
    let mut guest = Guest::of(&mut rig);
    let mut client = rig.client();
    let update = std::thread::spawn(move || client.update(None, Some(RestartPolicy::No)));
    until("the question", || !guest.asked().is_empty());
    let mut client = rig.client();
    let renamed = std::thread::spawn(move || client.rename("other"));
    let mut client = rig.client();
    let second = std::thread::spawn(move || client.update(None, Some(RestartPolicy::No)));
    let stream = rig.client().attach(crate::rig::BOTH).unwrap();
    for columns in 1..=20 {
        stream.resize(columns, columns).unwrap();
    }
    until("the first size", || guest.asked().len() == 2);
    // What came after the sizes is dealt with after them.
    rig.client().state().unwrap();
    assert!(!renamed.is_finished() && !second.is_finished());
    assert_eq!(guest.asked().len(), 2);
    guest.answer();
    for done in [update, renamed, second] {
        done.join().unwrap().unwrap();
    }
    until("the last size", || guest.asked().iter().any(|line| line.contains("\"rows\":20")));
    let sizes = guest.asked().iter().filter(|line| line.contains("rows")).count();
    assert!(sizes <= 20, "{sizes}");
    drop(stream);
    rig.client().kill_all().unwrap();
    rig.gone();
}
