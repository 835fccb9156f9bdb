//! Tests with real questions, in network namespaces of their own.

use super::message::tests::{answer, query};
use super::message::{Answer, Query, kind};
use super::relay::{Frame, Transport, next_part};
use super::*;
use crate::tests::{Namespace, attachment};
use crate::{NetError, configure_inside};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use types::{Attachment, Egress, EgressRule, EgressTo, NetworkPlan};

const WAIT: Duration = Duration::from_secs(20);

fn names(run: &Path, own: &Attachment, servers: &[IpAddr]) -> Names {
    Names {
        run: run.to_owned(),
        attachments: vec![own.clone()],
        servers: servers.to_vec(),
        permit: |_, _, _| Ok(()),
    }
}

fn place(n: u8, names: &[&str]) -> Attachment {
    Attachment { names: names.iter().map(|n| (*n).to_owned()).collect(), ..attachment(n, Vec::new()) }
}

/// Serves until the closure has returned.
fn serving<T: Send>(server: &mut Server, f: impl FnOnce() -> T + Send) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            over.store(true, Ordering::SeqCst);
            done
        });
        while !over.load(Ordering::SeqCst) {
            let mut fds = [PollFd::from_borrowed_fd(server.poll_fd(), PollFlags::IN)];
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 }));
            server.serve();
        }
        work.join().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Asks as a resolver would, by UDP.
fn ask(question: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Connected: an answer from another port is none.
    socket.connect((ADDRESS, 53)).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket.send(question).unwrap();
    let mut buffer = [0; 4096];
    let n = socket.recv(&mut buffer).unwrap();
    buffer[..n].to_vec()
}

fn ask_by_tcp(question: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect((ADDRESS, 53)).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(&(question.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(question).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).unwrap();
    message
}

fn addresses(question: &[u8], message: &[u8]) -> Vec<IpAddr> {
    let query = Query::parse(question).unwrap();
    let answer = Answer::to(query.question(), query.id, message).expect("an answer to the question");
    answer.addresses(query.name.as_deref().unwrap()).into_iter().map(|(a, _)| a).collect()
}

fn rcode(message: &[u8]) -> u8 {
    message[3] & 0xf
}

/// A namespace with its loopback interface up.
fn inside() -> Option<Namespace> {
    let inside = Namespace::new()?;
    inside.run(|| configure_inside(&NetworkPlan::None).unwrap());
    Some(inside)
}

#[test]
fn a_workload_finds_its_neighbours_and_may_serve_names_itself() {
    // As it is before a sandbox configures itself.
    let Some(inside) = Namespace::new() else { return };
    let run = tempfile::tempdir().unwrap();
    let own = place(2, &["me"]);
    announce(run.path(), &place(3, &["db", "data"])).unwrap();
    let mut server = Server::inside(names(run.path(), &own, &[]), inside.fd()).unwrap();
    let work = || {
        inside.run(|| {
            // As CoreDNS or a Pi-hole in a container would.
            let taken = UdpSocket::bind("0.0.0.0:53").unwrap();
            let listener = std::net::TcpListener::bind("0.0.0.0:53").unwrap();
            let question = query("DB", kind::A, None);
            assert_eq!(addresses(&question, &ask(&question)), [IpAddr::from([172, 30, 0, 3])]);
            assert_eq!(addresses(&question, &ask_by_tcp(&question)), [IpAddr::from([172, 30, 0, 3])]);
            // Changes are seen at once.
            announce(run.path(), &place(4, &["late"])).unwrap();
            let question = query("late.test", kind::A, None);
            assert_eq!(addresses(&question, &ask(&question)), [IpAddr::from([172, 30, 0, 4])]);
            withdraw(run.path(), &place(4, &[])).unwrap();
            assert_eq!(ask(&query("3.0.30.172.in-addr.arpa", kind::PTR, None))[7], 1);
            assert_eq!(rcode(&ask(&query("4.0.30.172.in-addr.arpa", kind::PTR, None))), 3);
            assert_eq!(rcode(&ask(&[1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])), 1);
            drop((taken, listener));
        });
    };
    serving(&mut server, work);
    // The next supervisor finds the rules of the one before.
    drop(server);
    let mut server = Server::inside(names(run.path(), &own, &[]), inside.fd()).unwrap();
    let question = query("data", kind::A, None);
    let again = serving(&mut server, || inside.run(|| ask(&question)));
    assert_eq!(addresses(&question, &again), [IpAddr::from([172, 30, 0, 3])]);
}

#[test]
fn who_asks_in_haste_sees_changes_too() {
    let Some(inside) = inside() else { return };
    let run = tempfile::tempdir().unwrap();
    let both = [3, 4].map(|n| place(n, &["both"]));
    both.iter().for_each(|place| announce(run.path(), place).unwrap());
    let ruled = Attachment {
        egress: Egress::Only(vec![EgressRule {
            to: EgressTo::Name("ruled".into()),
            port: Some(443),
            protocol: None,
        }]),
        ..place(2, &[])
    };
    announce(run.path(), &place(6, &["ruled"])).unwrap();
    // What cannot be permitted is tried anew at each question, so that those that come here can be counted.
    static PERMITTED: AtomicUsize = AtomicUsize::new(0);
    let mut names = names(run.path(), &ruled, &[]);
    names.permit = |_, _, _| {
        PERMITTED.fetch_add(1, Ordering::SeqCst);
        Err(NetError::system("permit")(std::io::ErrorKind::Other.into()))
    };
    let mut server = Server::inside(names, inside.fd()).unwrap();
    let work = || {
        inside.run(|| {
            let (db, both, ruled) =
                (query("db", kind::A, None), query("both", kind::A, None), query("ruled", kind::A, None));
            for round in 0..5u8 {
                let now = place(5 + 10 * round, &["db"]);
                announce(run.path(), &Attachment { id: "db".repeat(32), ..now.clone() }).unwrap();
                // Longer than an answer holds that was given before.
                std::thread::sleep(Duration::from_millis(3));
                for _ in 0..100 {
                    let told = addresses(&db, &ask(&db));
                    assert!(told.contains(&now.ipv4.into()), "{round}: {told:?}");
                }
            }
            let firsts: std::collections::BTreeSet<_> =
                (0..100).map(|_| addresses(&both, &ask(&both))[0]).collect();
            assert_eq!(firsts.len(), 2, "they took no turns");
            for _ in 0..100 {
                assert_eq!(rcode(&ask(&ruled)), 2);
            }
            assert_eq!(PERMITTED.load(Ordering::SeqCst), 100);
        });
    };
    serving(&mut server, work);
}

#[test]
fn a_hundred_names_come_by_tcp_when_a_datagram_is_too_small() {
    let Some(inside) = inside() else { return };
    let run = tempfile::tempdir().unwrap();
    for n in 10..110 {
        announce(run.path(), &place(n, &["many"])).unwrap();
    }
    let mut server = Server::inside(names(run.path(), &place(2, &[]), &[]), inside.fd()).unwrap();
    let question = query("many", kind::A, None);
    let (short, long) = serving(&mut server, || inside.run(|| (ask(&question), ask_by_tcp(&question))));
    // Each is the first in turn, also for a client that asks for both families at once.
    let both =
        || (0..4).map(|_| (ask(&question), ask(&query("many", kind::AAAA, None))).0).collect::<Vec<_>>();
    let answers = serving(&mut server, || inside.run(both));
    let firsts: std::collections::BTreeSet<_> = answers.iter().map(|a| addresses(&question, a)[0]).collect();
    assert_eq!(firsts.len(), 4);
    assert!(short.len() <= 512 && short[2] & 2 != 0);
    assert_eq!(addresses(&question, &long).len(), 100);
}

/// A server outside: answers by a closure, until it is dropped.
fn outside_server(address: &str, reply: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) {
    let address: SocketAddr = format!("{address}:53").parse().unwrap();
    let udp = UdpSocket::bind(address).unwrap();
    let tcp = std::net::TcpListener::bind(address).unwrap();
    let reply = std::sync::Arc::new(reply);
    let by_tcp = reply.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, from)) = udp.recv_from(&mut buffer) {
            if let Some(answer) = reply(&buffer[..n]) {
                udp.send_to(&answer, from).unwrap();
            }
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut message = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut message).unwrap();
            if let Some(answer) = by_tcp(&message) {
                let _ = stream.write_all(&[&(answer.len() as u16).to_be_bytes(), &answer[..]].concat());
            }
        }
    });
}

fn fixed(address: [u8; 4]) -> impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static {
    move |question| {
        let name = Query::parse(question).ok()?.name?;
        Some(answer(question, &[(&name, kind::A, 60, address.to_vec())]))
    }
}

#[test]
fn the_servers_of_the_host_are_asked_one_after_the_other() {
    let (Some(inside), Some(host)) = (inside(), inside_as_host()) else { return };
    let run = tempfile::tempdir().unwrap();
    let own = place(2, &["me"]);
    let work = || {
        // Reached on the host's loopback: one that is silent, one that fails, one that knows.
        outside_server("127.0.0.53", |_| None);
        outside_server("127.0.0.54", |question| {
            let mut failure = answer(question, &[]);
            failure[3] |= 2;
            Some(failure)
        });
        outside_server("127.0.0.55", fixed([192, 0, 2, 1]));
        let servers: Vec<IpAddr> =
            ["127.0.0.53", "127.0.0.54", "127.0.0.55"].map(|a| a.parse().unwrap()).to_vec();
        let mut server = Server::inside(names(run.path(), &own, &servers), inside.fd()).unwrap();
        let question = query("example.org", kind::A, Some(1232));
        let (udp, tcp) = serving(&mut server, || inside.run(|| (ask(&question), ask_by_tcp(&question))));
        assert_eq!(addresses(&question, &udp), [IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(addresses(&question, &tcp), [IpAddr::from([192, 0, 2, 1])]);
        // The last failure is the answer where nobody knows; and where nobody is, SERVFAIL.
        let mut server = Server::inside(names(run.path(), &own, &servers[1..2]), inside.fd()).unwrap();
        assert_eq!(rcode(&serving(&mut server, || inside.run(|| ask(&question)))), 2);
        let nobody = ["127.0.0.99".parse().unwrap()];
        let mut server = Server::inside(names(run.path(), &own, &nobody), inside.fd()).unwrap();
        assert_eq!(rcode(&serving(&mut server, || inside.run(|| ask(&question)))), 2);
        // An internal network asks nobody.
        let mut internal = own.clone();
        internal.bridge.internal = true;
        let mut server = Server::inside(names(run.path(), &internal, &servers), inside.fd()).unwrap();
        assert_eq!(rcode(&serving(&mut server, || inside.run(|| ask(&question)))), 5);
        // Connected to another one, it does.
        server.change(&[internal, own.clone()]);
        assert_eq!(rcode(&serving(&mut server, || inside.run(|| ask(&question)))), 0);
    };
    host.run(work);
}

fn inside_as_host() -> Option<Namespace> {
    inside()
}

type Permitted = (String, Vec<IpAddr>, bool);
static PERMITTED: Mutex<Vec<Permitted>> = Mutex::new(Vec::new());

fn note(_: &Attachment, rule: &EgressRule, list: &[(IpAddr, Duration)]) -> Result<(), NetError> {
    let EgressTo::Name(name) = &rule.to else { panic!("a subnet has no name") };
    if name == "refused.example" {
        return Err(NetError::NoFreeSubnet);
    }
    let long = list.iter().all(|(_, time)| *time >= Duration::from_secs(60));
    PERMITTED.lock().unwrap().push((name.clone(), list.iter().map(|(a, _)| *a).collect(), long));
    Ok(())
}

#[test]
fn what_a_policy_names_is_permitted_before_it_is_told() {
    let (Some(inside), Some(host)) = (inside(), inside_as_host()) else { return };
    let run = tempfile::tempdir().unwrap();
    let rule = |name: &str| EgressRule { to: EgressTo::Name(name.into()), port: None, protocol: None };
    let own = Attachment {
        egress: Egress::Only(["api.example", "refused.example", "near.example", "db"].map(rule).to_vec()),
        ..place(2, &["me"])
    };
    announce(run.path(), &place(3, &["db"])).unwrap();
    let work = || {
        outside_server("127.0.0.53", |question| {
            let name = Query::parse(question).ok()?.name?;
            let last = if name == "near.example" { [169, 254, 169, 254] } else { [192, 0, 2, 7] };
            Some(answer(
                question,
                &[(&name, kind::A, 5, last.to_vec()), ("x.example", kind::A, 5, vec![192, 0, 2, 8])],
            ))
        });
        let given = ["127.0.0.53".parse().unwrap()];
        let names = Names { permit: note, ..names(run.path(), &own, &given) };
        let mut server = Server::inside(names, inside.fd()).unwrap();
        let ask_for = |name: &str| rcode(&ask(&query(name, kind::A, None)));
        let codes = serving(&mut server, || {
            inside.run(|| {
                ["api.example", "API.example", "other.example", "refused.example", "near.example", "db"]
                    .map(ask_for)
            })
        });
        assert_eq!(codes, [0, 0, 5, 2, 0, 0]);
    };
    host.run(work);
    let permitted = PERMITTED.lock().unwrap().clone();
    let expected = [
        ("api.example".to_owned(), vec![IpAddr::from([192, 0, 2, 7])], true),
        ("db".to_owned(), vec![IpAddr::from([172, 30, 0, 3])], true),
    ];
    assert_eq!(permitted, expected);
}

static OPENED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn names_open_no_more_addresses_than_are_kept() {
    let (Some(inside), Some(host)) = (inside(), inside_as_host()) else { return };
    let run = tempfile::tempdir().unwrap();
    let rule = EgressRule { to: EgressTo::Name("*.example".into()), port: None, protocol: None };
    let own = Attachment { egress: Egress::Only(vec![rule]), ..place(2, &["me"]) };
    let work = || {
        // A zone of who would fill the kernel's sets: 200 addresses for each name.
        outside_server("127.0.0.53", |question| {
            let name = Query::parse(question).ok()?.name?;
            let number: u8 = name.split('.').next()?.parse().ok()?;
            let all = (0..200).map(|n| (name.as_str(), kind::A, 86_400, vec![198, 18, number, n]));
            Some(answer(question, &all.collect::<Vec<_>>()))
        });
        let given = ["127.0.0.53".parse().unwrap()];
        let permit = |_: &Attachment, _: &EgressRule, list: &[(IpAddr, Duration)]| {
            OPENED.fetch_add(list.len(), Ordering::SeqCst);
            Ok(())
        };
        let names = Names { permit, ..names(run.path(), &own, &given) };
        let mut server = Server::inside(names, inside.fd()).unwrap();
        let codes = serving(&mut server, || {
            inside.run(|| {
                [(0..20), (0..20), (20..22)].map(|numbers| {
                    numbers.map(|n| rcode(&ask(&query(&format!("{n}.example"), kind::A, None)))).max()
                })
            })
        });
        assert_eq!(codes, [Some(0), Some(0), Some(2)]);
        assert_eq!(OPENED.load(Ordering::SeqCst), 4000);
        // All of these are opened anew for a firewall that has lost them.
        server.permit_again();
        assert_eq!(OPENED.load(Ordering::SeqCst), 8000);
    };
    host.run(work);
}

#[test]
fn an_agent_passes_questions_on() {
    let run = tempfile::tempdir().unwrap();
    announce(run.path(), &place(3, &["db"])).unwrap();
    let path = run.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut server = Server::behind(names(run.path(), &place(2, &[]), &[]), listener.into()).unwrap();
    let question = query("db", kind::A, None);
    let work = || {
        let mut agent = UnixStream::connect(&path).unwrap();
        agent.set_read_timeout(Some(WAIT)).unwrap();
        let mut frames = Vec::new();
        Frame { number: 7, transport: Transport::Udp, message: &question }.write(&mut frames);
        Frame { number: 9, transport: Transport::Tcp, message: &question }.write(&mut frames);
        // The longest that a workload can ask.
        let longest = [&question[..], &[0; 4096]].concat();
        Frame { number: 11, transport: Transport::Udp, message: &longest[..4096] }.write(&mut frames);
        // In pieces, as a stream comes.
        let (one, two) = frames.split_at(20);
        agent.write_all(one).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        agent.write_all(two).unwrap();
        let mut heard = Vec::new();
        while heard.len() < 3 * (7 + question.len() + 16) {
            let mut buffer = [0; 100];
            let n = agent.read(&mut buffer).unwrap();
            heard.extend_from_slice(&buffer[..n]);
        }
        let mut rest = &heard[..];
        for number in [7, 9, 11] {
            let frame = Frame::parse(next_part(&mut rest).unwrap()).unwrap();
            assert_eq!((frame.number, addresses(&question, frame.message).len()), (number, 1));
        }
        // What is none of the protocol ends the connection, and more agents than one machine has end the oldest.
        let mut bad = UnixStream::connect(&path).unwrap();
        bad.write_all(&[0, 6, 0, 0, 0, 0, 7, 0]).unwrap();
        bad.set_read_timeout(Some(WAIT)).unwrap();
        assert_eq!(bad.read(&mut [0]).unwrap(), 0);
        let many: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(agent.read(&mut [0]).unwrap(), 0);
        drop(many);
    };
    serving(&mut server, work);
    assert!(server.poll_fd().as_fd().try_clone_to_owned().is_ok());
}

/// The price at a workload's start; `cargo test -p dhow-net --release -- --ignored start_costs --nocapture`.
#[test]
#[ignore = "a measurement"]
fn start_costs_little() {
    let run = tempfile::tempdir().unwrap();
    let mut times = Vec::new();
    for _ in 0..50 {
        let Some(inside) = Namespace::new() else { return };
        let begin = std::time::Instant::now();
        let server = Server::inside(names(run.path(), &place(2, &[]), &[]), inside.fd()).unwrap();
        times.push(begin.elapsed());
        drop(server);
    }
    times.sort_unstable();
    eprintln!("median {:?}, most {:?}", times[25], times[49]);
}
