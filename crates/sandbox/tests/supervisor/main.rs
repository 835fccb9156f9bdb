//! The supervisor from a client's side, over a hull of plain processes.

mod fake;
mod rig;
mod slow;

use dhow_sandbox::client::*;
use rig::{BOTH, Rig, collect, until};
use std::time::{Duration, Instant};
use types::{HealthCheck, HealthStatus, RestartPolicy, Status, oci};

/// Not a test: what the tests execute as the supervisor.
#[test]
fn as_supervisor() {
    if let Some(tmp) = std::env::var_os("SUPERVISE") {
        std::process::exit(rig::supervisor_main(tmp.as_ref()));
    }
}

fn exec(args: &[&str]) -> ExecOptions {
    let process: oci::Process = serde_json::from_value(serde_json::json!({
        "cwd": "/", "args": args, "user": {"uid": 0, "gid": 0}
    }))
    .unwrap();
    ExecOptions {
        id: args.join("-"),
        process,
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
        console_size: None,
        detach: false,
        tied: false,
    }
}

#[test]
fn output_reaches_client_and_log_and_the_code_is_kept() {
    let mut rig = Rig::new("echo out; echo err >&2; printf end; exit 3");
    let (_, stream) = rig.launch(Some(BOTH)).unwrap();
    assert_eq!(collect(stream.unwrap()), (b"out\nend".to_vec(), b"err\n".to_vec(), Some(3)));
    assert_eq!(rig.gone(), 3);
    let state = rig.state();
    assert_eq!((state.status, state.exit_code, state.pid), (Status::Exited, 3, 0));
    let mut log = rig.log();
    log.sort();
    let mut all = b"out\nerr\nend".to_vec();
    all.sort();
    assert_eq!(log, all);
    assert_eq!(rig.events(), ["attach", "start", "(ended)", "die exitCode=3", "(finished)"]);
    assert_eq!(std::fs::read_dir(rig.run_dir()).unwrap().count(), 1, "only the lock remains");
}

#[test]
fn a_command_that_is_missing_is_127_and_leaves_nothing() {
    let mut rig = Rig::new("");
    rig.bundle.spec.process_mut().as_mut().unwrap().set_args(Some(vec!["missing".into()]));
    let Err(ClientError::Refused(failure)) = rig.launch(Some(BOTH)) else { panic!() };
    assert_eq!(failure.exit_code, 127);
    assert_eq!(rig.gone(), 127);
    let state = rig.state();
    assert_eq!((state.status, state.exit_code), (Status::Created, 127));
    assert!(state.error.contains("missing"));
    assert_eq!(rig.events(), ["attach", "(ended)", "(finished)"]);
}

fn attachment(slot: usize, internal: bool) -> types::Attachment {
    serde_json::from_value(serde_json::json!({
        "bridge": { "name": format!("br{slot}"), "gateway4": "10.0.0.1", "prefix4": 24, "gateway6": null, "prefix6": 64,
                    "mtu": 1500, "internal": internal },
        "id": rig::ID, "network": slot.to_string().repeat(64), "network_name": format!("net{slot}"), "names": ["t"],
        "default_route": slot == 0, "host_ifname": format!("vd{slot}"), "ifname": format!("eth{slot}"),
        "mac": [2, 0, 0, 0, 0, slot], "ipv4": format!("10.0.{slot}.2"), "ipv6": null,
        "ports": [{ "host_ip": "0.0.0.0", "host_port": 8080 + slot, "container_port": 80, "protocol": "tcp" }],
    }))
    .unwrap()
}

/// The interfaces of the bundle on the disk, and which of them has the default route.
fn noted(rig: &Rig) -> Vec<(String, bool)> {
    let bundle: types::Bundle =
        serde_json::from_slice(&std::fs::read(rig.dir().join("bundle.json")).unwrap()).unwrap();
    bundle.network.attachments().iter().map(|a| (a.ifname.clone(), a.default_route)).collect()
}

#[test]
fn networks_come_and_go_and_the_bundle_knows() {
    let mut rig = Rig::new("sleep 1000");
    rig.bundle.network = types::NetworkPlan::Networks(vec![attachment(0, false)]);
    rig.launch(None).unwrap();
    let mut client = rig.client();
    let bare = |slot, internal| types::Attachment { ports: Vec::new(), ..attachment(slot, internal) };
    client.connect_network(&bare(2, false)).unwrap();
    client.connect_network(&bare(1, true)).unwrap();
    let all = [("eth0".into(), true), ("eth1".into(), false), ("eth2".into(), false)];
    assert_eq!(noted(&rig), all);
    let Err(ClientError::Refused(twice)) = client.connect_network(&bare(2, false)) else { panic!() };
    assert_eq!(twice.kind, types::ErrorKind::Conflict);
    // One that cannot be connected leaves nothing.
    let Err(ClientError::Refused(failed)) = client.connect_network(&bare(9, false)) else { panic!() };
    assert_eq!(failed.message, "no wire left");
    assert_eq!(noted(&rig), all);
    // The next one that leads outside has the default route and the ports.
    client.disconnect_network(&"0".repeat(64)).unwrap();
    assert_eq!(noted(&rig), [("eth1".into(), false), ("eth2".into(), true)]);
    assert_eq!(rig.state().ports.len(), 1);
    let Err(ClientError::Refused(none)) = client.disconnect_network(&"0".repeat(64)) else { panic!() };
    assert_eq!(none.kind, types::ErrorKind::NotFound);
    client.disconnect_network(&"2".repeat(64)).unwrap();
    assert_eq!(noted(&rig), [("eth1".into(), false)]);
    assert!(rig.state().ports.is_empty());
    // A network that leads outside has the route if nobody has it.
    client.connect_network(&bare(3, false)).unwrap();
    assert_eq!(noted(&rig), [("eth1".into(), false), ("eth3".into(), true)]);
    let wired: Vec<_> =
        rig.events().into_iter().filter(|e| e.starts_with("(c") || e.starts_with("(d")).collect();
    assert_eq!(
        wired,
        [
            "(connect eth2 default=false)",
            "(connect eth1 default=false)",
            "(connect eth9 default=false)",
            "(disconnect eth9)",
            "(disconnect eth0)",
            "(configure eth2 default=true)",
            "(disconnect eth2)",
            "(connect eth3 default=true)",
        ]
    );
    client.kill_all().unwrap();
    rig.gone();
}

#[test]
fn who_has_no_networks_of_its_own_gets_none() {
    let mut rig = Rig::new("sleep 1000");
    rig.launch(None).unwrap();
    let Err(ClientError::Refused(refused)) = rig.client().connect_network(&attachment(0, false)) else {
        panic!()
    };
    assert!(refused.message.contains("no network (none)"), "{refused}");
    rig.client().kill_all().unwrap();
    rig.gone();
}

#[test]
fn who_adopts_finishes_a_connection() {
    let mut rig = Rig::new("sleep 1000");
    rig.bundle.network = types::NetworkPlan::Networks(vec![attachment(0, false), attachment(7, false)]);
    rig.launch(None).unwrap();
    let mut first = rig.child.take().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    rig.adopt();
    assert!(rig.events().contains(&"(connect eth7 default=false)".to_owned()), "{:?}", rig.events());
    rig.client().kill_all().unwrap();
    rig.gone();
}

#[test]
fn much_binary_output_survives_slow_and_vanishing_clients() {
    let mut rig = Rig::new("");
    rig.bundle.spec.process_mut().as_mut().unwrap().set_args(Some(
        [
            "sh",
            "-c",
            &format!(
                "cd {}; head -c 8000000 /dev/urandom > data; sleep 0.3; cat data",
                rig.tmp.path().display()
            ),
        ]
        .map(str::to_owned)
        .to_vec(),
    ));
    let (_, stream) = rig.launch(Some(BOTH)).unwrap();
    let slow = rig.client().attach(BOTH).unwrap();
    let vanishing = rig.client().attach(BOTH).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    drop(vanishing);
    let slow = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        collect(slow)
    });
    let (out, _, code) = collect(stream.unwrap());
    let data = std::fs::read(rig.tmp.path().join("data")).unwrap();
    assert!(out == data && code == Some(0));
    assert!(slow.join().unwrap().0 == data);
    rig.gone();
    let expected: String = data
        .utf8_chunks()
        .map(|c| format!("{}{}", c.valid(), "\u{fffd}".repeat(c.invalid().len())))
        .collect();
    // Lines are cut at 16 KiB before they are decoded; random data has no such lines.
    assert!(rig.log() == expected.into_bytes());
}

#[test]
fn a_stuck_client_holds_the_workload_but_not_its_end() {
    let mut rig = Rig::new("yes | head -c 30000000; exit 4");
    rig.launch(None).unwrap();
    let stuck = rig.client().attach(BOTH);
    let code = rig.client().stop(None, Some(1)).unwrap();
    assert!(code == 4 || code > 128);
    drop(stuck);
    rig.gone();
}

#[test]
fn stdin_is_fed_and_closed() {
    let mut rig = Rig::new("cat; echo done");
    (rig.bundle.open_stdin, rig.bundle.stdin_once) = (true, true);
    let (_, stream) = rig.launch(Some(AttachOptions { stdin: true, ..BOTH })).unwrap();
    let stream = stream.unwrap();
    let big = vec![b'x'; 3_000_000];
    std::thread::scope(|scope| {
        let input = scope.spawn(|| {
            // Reads meanwhile, or both sides would wait.
            let mut reader = rig.client().attach(BOTH).unwrap();
            let mut n = 0;
            while let Some(OwnedFrame::Stdout(bytes)) = reader.next_frame().unwrap() {
                n += bytes.len();
            }
            n
        });
        std::thread::sleep(Duration::from_millis(100));
        // Output of this one is left unread up to the socket's size only.
        stream.write_stdin(&big[..60_000]).unwrap();
        stream.end_stdin().unwrap();
        assert_eq!(input.join().unwrap(), 60_005);
    });
    assert_eq!(collect(stream).0.len(), 60_005);
}

#[test]
fn detaching_ends_nothing() {
    let mut rig = Rig::new("cat");
    (rig.bundle.open_stdin, rig.bundle.stdin_once) = (true, true);
    let (_, stream) = rig.launch(Some(AttachOptions { stdin: true, ..BOTH })).unwrap();
    stream.unwrap().detach().unwrap();
    until("the event", || rig.events().contains(&"detach".to_owned()));
    let again = rig.client().attach(AttachOptions { stdin: true, ..BOTH }).unwrap();
    again.write_stdin(b"still here\n").unwrap();
    again.end_stdin().unwrap();
    assert_eq!(collect(again), (b"still here\n".to_vec(), Vec::new(), Some(0)));
}

#[test]
fn a_terminal_is_one_stream_with_a_size() {
    let mut rig = Rig::new("read x; stty size; tty >/dev/null && echo tty $x >&2");
    rig.bundle.open_stdin = true;
    rig.bundle.spec.process_mut().as_mut().unwrap().set_terminal(Some(true));
    let (_, stream) = rig.launch(Some(AttachOptions { stdin: true, ..BOTH })).unwrap();
    let stream = stream.unwrap();
    stream.resize(33, 111).unwrap();
    stream.write_stdin(b"hello\n").unwrap();
    let (out, err, code) = collect(stream);
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("33 111\r\n") && out.contains("tty hello\r\n"), "{out:?}");
    assert_eq!((err.len(), code), (0, Some(0)));
}

#[test]
fn stop_asks_then_kills() {
    let mut rig = Rig::new("trap 'echo no' TERM; while true; do sleep 0.05; done");
    rig.bundle.restart = RestartPolicy::Always;
    rig.launch(None).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(rig.client().stop(None, Some(0)).unwrap(), 137);
    rig.gone();
    let events = rig.events();
    assert_eq!(
        events,
        ["start", "kill signal=15", "kill signal=9", "(ended)", "die exitCode=137", "stop", "(finished)"]
    );
    assert!(rig.state().stopped_by_user);
}

#[test]
fn a_restart_is_the_supervisors_business() {
    let mut rig = Rig::new("trap '' TERM; echo up; while true; do sleep 0.05; done");
    rig.bundle.auto_remove = true;
    rig.launch(None).unwrap();
    let is_up = |rig: &Rig, runs: usize| until("a run", || rig.log().len() == runs * 3);
    is_up(&rig, 1);
    // Who asks goes before it is done.
    let asks = rig.client().restarting(None, Some(1)).unwrap();
    until("the stop", || rig.state().start_again);
    drop(asks);
    is_up(&rig, 2);
    let state = rig.state();
    assert!(!state.stopped_by_user && !state.start_again && state.restart_count == 0, "{state:?}");
    assert_eq!(rig.client().restarting(None, Some(0)).unwrap().answer_until(None).unwrap(), Some(0));
    is_up(&rig, 3);
    // A stop is the last word.
    let mut dropped = rig.client().restarting(None, Some(600)).unwrap();
    until("the stop", || rig.state().start_again);
    assert_eq!(rig.client().stop(None, Some(0)).unwrap(), 137);
    assert!(dropped.answer_until(None).is_err());
    rig.gone();
    let run = ["kill signal=15", "kill signal=9", "(ended)", "die exitCode=137", "stop"];
    let again = ["start", "restart"];
    let expected = [&["start"], &run[..], &again, &run, &again, &["kill signal=15"], &run, &["(finished)"]];
    assert_eq!(rig.events(), expected.concat());
}

#[test]
fn who_fed_one_run_does_not_end_the_input_of_the_next() {
    let mut rig = Rig::new("echo up; cat");
    (rig.bundle.open_stdin, rig.bundle.stdin_once) = (true, true);
    let fed = AttachOptions { stdin: true, ..BOTH };
    let (_, stream) = rig.launch(Some(fed)).unwrap();
    until("the first run", || rig.log() == b"up\n");
    rig.client().restarting(None, Some(0)).unwrap().answer_until(None).unwrap();
    drop(stream);
    until("the second run", || rig.log() == b"up\nup\n");
    let again = rig.client().attach(fed).unwrap();
    again.write_stdin(b"still here\n").unwrap();
    again.end_stdin().unwrap();
    assert_eq!(collect(again), (b"still here\n".to_vec(), Vec::new(), Some(0)));
}

#[test]
fn a_lost_socket_and_a_lost_state_come_back() {
    let mut rig = Rig::new("exec sleep 60");
    let (pid, _) = rig.launch(None).unwrap();
    std::fs::remove_file(rig.run_dir().join(SOCKET)).unwrap();
    let supervisor = rustix::process::Pid::from_child(rig.child.as_ref().unwrap());
    rustix::process::kill_process(supervisor, rustix::process::Signal::HUP).unwrap();
    until("a new socket", || Client::connect(&rig.run_dir()).is_ok());
    std::fs::write(rig.dir().join("state.json"), "").unwrap();
    let state = rig.client().state().unwrap();
    assert_eq!((state.status, state.pid), (Status::Running, pid));
    assert_eq!(rig.state(), state);
}

#[test]
fn signals_pause_and_waiting() {
    let mut rig = Rig::new("trap 'exit 5' USR1; while true; do sleep 0.02; done");
    rig.launch(None).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let mut client = rig.client();
    client.pause().unwrap();
    assert_eq!(rig.state().status, Status::Paused);
    assert!(client.pause().unwrap_err().to_string().contains("already paused"));
    assert!(
        matches!(rig.client().exec(exec(&["true"])), Err(ClientError::Refused(f)) if f.message.contains("paused"))
    );
    client.resume().unwrap();
    assert!(client.resume().is_err());
    // Who holds it lets it go on by going, however it goes.
    let mut holder = rig.client();
    holder.hold().unwrap();
    assert_eq!(rig.state().status, Status::Paused);
    drop(holder);
    until("it to go on", || rig.state().status == Status::Running);
    assert_eq!(client.stats().unwrap().pids, 1);
    assert_eq!(client.processes().unwrap(), [rig.state().pid]);
    assert_eq!(client.state().unwrap().status, Status::Running);
    let mut waiter = rig.client();
    let waited = std::thread::spawn(move || waiter.wait(WaitCondition::NotRunning));
    std::thread::sleep(Duration::from_millis(50));
    client.signal(10).unwrap();
    assert_eq!(waited.join().unwrap().unwrap(), 5);
    rig.gone();
}

#[test]
fn restarts_follow_the_policy() {
    let mut rig = Rig::new("exit 2");
    rig.bundle.restart = RestartPolicy::OnFailure(2);
    rig.launch(None).unwrap();
    assert_eq!(rig.client().wait(WaitCondition::Removed).unwrap(), 2);
    rig.gone();
    assert_eq!(rig.state().restart_count, 2);
    assert_eq!(rig.events().iter().filter(|e| *e == "start").count(), 3);
}

#[test]
fn a_stop_ends_the_back_off() {
    let mut rig = Rig::new("exit 0");
    rig.bundle.restart = RestartPolicy::Always;
    rig.launch(None).unwrap();
    until("a long wait", || rig.state().status == Status::Restarting && rig.state().restart_count >= 3);
    let begun = Instant::now();
    rig.client().stop(None, None).unwrap();
    assert!(begun.elapsed() < Duration::from_millis(300));
    rig.gone();
    assert_eq!(rig.state().status, Status::Exited);
}

#[test]
fn exec_sessions() {
    let mut rig = Rig::new("sleep 1000");
    rig.launch(None).unwrap();
    let stream = rig.client().exec(exec(&["sh", "-c", "cat; echo e >&2; exit 7"])).unwrap().unwrap();
    stream.write_stdin(b"in").unwrap();
    stream.end_stdin().unwrap();
    assert_eq!(collect(stream), (b"in".to_vec(), b"e\n".to_vec(), Some(7)));
    let Err(ClientError::Refused(missing)) = rig.client().exec(exec(&["missing"])) else { panic!() };
    assert_eq!(missing.exit_code, 127);
    let detached = ExecOptions { detach: true, ..exec(&["sh", "-c", "exit 9"]) };
    assert!(rig.client().exec(detached).unwrap().is_none());
    until("its code", || rig.client().execs().unwrap().iter().any(|e| e.exit_code == Some(9)));
    let tty = ExecOptions { tty: true, ..exec(&["sh", "-c", "read x; stty size"]) };
    let id = tty.id.clone();
    let stream = rig.client().exec(tty).unwrap().unwrap();
    rig.client().resize(Some(&id), 5, 6).unwrap();
    stream.write_stdin(b"\n").unwrap();
    assert!(String::from_utf8(collect(stream).0).unwrap().contains("5 6"));
    // A background process that keeps the pipe open does not hold the session.
    let stream = rig.client().exec(exec(&["sh", "-c", "sleep 3 & echo x"])).unwrap().unwrap();
    let begun = Instant::now();
    assert_eq!(collect(stream).0, b"x\n");
    assert!(begun.elapsed() < Duration::from_secs(2));
    // The end of the container ends them all.
    let stream = rig.client().exec(exec(&["sleep", "1000"])).unwrap().unwrap();
    rig.client().kill_all().unwrap();
    assert_eq!(collect(stream).2, Some(137));
    rig.gone();
    let events = rig.events();
    assert!(events.contains(&"exec_die exitCode=7".to_owned()), "{events:?}");
}

#[test]
fn health_checks_judge() {
    let mut rig = Rig::new("sleep 1000");
    let flag = rig.tmp.path().join("sick").display().to_string();
    rig.bundle.health = Some(HealthCheck {
        command: ["sh", "-c", &format!("echo checked; test ! -e {flag}")].map(str::to_owned).to_vec(),
        interval_ns: 50_000_000,
        timeout_ns: 5_000_000_000,
        start_period_ns: 0,
        start_interval_ns: 0,
        retries: 2,
    });
    rig.launch(None).unwrap();
    let status = |rig: &Rig| rig.state().health.unwrap().status;
    until("health", || status(&rig) == HealthStatus::Healthy);
    std::fs::write(&flag, "").unwrap();
    until("illness", || status(&rig) == HealthStatus::Unhealthy);
    assert_eq!(rig.state().health.unwrap().log.last().unwrap().output, "checked\n");
    assert!(rig.events().contains(&"health_status: unhealthy".to_owned()));
}

#[test]
fn a_health_check_that_hangs_is_killed() {
    let mut rig = Rig::new("sleep 1000");
    rig.bundle.health = Some(HealthCheck {
        command: ["sh", "-c", "exec sleep 77"].map(str::to_owned).to_vec(),
        interval_ns: 20_000_000,
        timeout_ns: 100_000_000,
        start_period_ns: 0,
        start_interval_ns: 0,
        retries: 1,
    });
    rig.launch(None).unwrap();
    until("illness", || rig.state().health.unwrap().status == HealthStatus::Unhealthy);
    let entry = rig.state().health.unwrap().log.pop().unwrap();
    assert_eq!(entry.exit_code, -1);
    assert!(entry.output.contains("exceeded timeout"), "{}", entry.output);
}

#[test]
fn a_killed_supervisor_is_replaced_without_loss() {
    let mut rig =
        Rig::new("i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo line $i; sleep 0.02; done; exec sleep 1000");
    rig.launch(None).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let pid = rig.state().pid;
    let mut first = rig.child.take().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    rig.adopt();
    assert_eq!((rig.state().pid, rig.state().status), (pid, Status::Running));
    let expected: String = (1..=60).map(|i| format!("line {i}\n")).collect();
    until("all lines", || rig.log().len() >= expected.len());
    assert_eq!(String::from_utf8(rig.log()).unwrap(), expected);
    rig.client().kill_all().unwrap();
    rig.gone();
    assert_eq!(rig.events().iter().filter(|e| *e == "start").count(), 1);
    assert_eq!(rig.state().status, Status::Exited);
}

#[test]
fn garbage_is_hung_up_on_and_sigterm_ignored() {
    use std::io::{Read, Write};
    let mut rig = Rig::new("sleep 1000");
    rig.launch(None).unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[2, 0, 0, 0, 255, 255, 255, 255], &[0; 64]] {
        let dir = std::fs::File::open(rig.run_dir()).unwrap();
        let path = format!("/proc/self/fd/{}/ctl.sock", std::os::fd::AsRawFd::as_raw_fd(&dir));
        let mut socket = std::os::unix::net::UnixStream::connect(path).unwrap();
        let _ = socket.write_all(garbage);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }
    let supervisor = rustix::process::Pid::from_raw(rig.child.as_ref().unwrap().id() as i32).unwrap();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::HUP, rustix::process::Signal::INT]
    {
        rustix::process::kill_process(supervisor, signal).unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(rig.client().state().unwrap().status, Status::Running);
}

#[test]
fn an_idle_supervisor_holds_little() {
    let mut rig = Rig::new("head -c 30000000 /dev/zero | tr '\\0' '\\n'; sleep 1000");
    let (_, stream) = rig.launch(Some(BOTH)).unwrap();
    let mut stream = stream.unwrap();
    let mut n = 0;
    while n < 30_000_000 {
        if let Some(OwnedFrame::Stdout(bytes)) = stream.next_frame().unwrap() {
            n += bytes.len();
        }
    }
    drop(stream);
    let path = format!("/proc/{}/smaps_rollup", rig.child.as_ref().unwrap().id());
    let mut anonymous = 0;
    until("its memory to be given back", || {
        let text = std::fs::read_to_string(&path).unwrap();
        let line = text.lines().find(|l| l.starts_with("Anonymous:")).unwrap();
        anonymous = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        anonymous < 900
    });
    println!("{anonymous} kB of its own");
}

/// Prints the rate.
#[test]
fn throughput() {
    const SIZE: usize = 100 << 20;
    let mut rig = Rig::new("");
    let file = rig.tmp.path().join("data");
    let line = "0123456789 the quick brown fox jumps over the lazy dog, again and again and again\n";
    std::fs::write(&file, line.repeat(SIZE / line.len())).unwrap();
    let args = ["cat".to_owned(), file.display().to_string()].to_vec();
    rig.bundle.spec.process_mut().as_mut().unwrap().set_args(Some(args));
    let begun = Instant::now();
    let (_, stream) = rig.launch(Some(BOTH)).unwrap();
    let mut stream = stream.unwrap();
    let mut n = 0;
    'all: loop {
        assert_ne!(stream.fill().unwrap(), Filled::End);
        while let Some(frame) = stream.frame().unwrap() {
            match frame {
                dhow_sandbox::protocol::Frame::Stdout(bytes) => n += bytes.len(),
                _ => break 'all,
            }
        }
        let mut fds = [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
    }
    let rate = n as f64 / begun.elapsed().as_secs_f64() / 1e6;
    println!("{rate:.0} MB/s through client and json-file log");
    assert_eq!(n, SIZE / line.len() * line.len());
    rig.gone();
    assert_eq!(rig.log().len(), n);
}
