use super::connection::BUFFER;
use super::mux::CONNECTIONS;
use super::packet::{HEADER, HOST_CID, Header, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND, STREAM, op};
use super::*;
use crate::devices::testing::{BUFFERS, Driver, WRITE, pump};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const CID: u64 = 3;
/// Room in the guest, unless a test says otherwise.
const ROOM: u32 = 1 << 18;
/// Of a buffer for packets to the guest.
const RX_BUFFER: u32 = 8192;

/// A device, and a guest that does what the tests say.
struct Rig {
    device: Vsock,
    driver: Driver,
    dir: tempfile::TempDir,
    free: VecDeque<u16>,
    sent: u64,
}

impl Rig {
    /// With so many buffers for packets to the guest.
    fn new(buffers: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("v")).unwrap();
        let mut device = Vsock::new(CID, listener, dir.path().join("v")).unwrap();
        let driver = Driver::new(3);
        device.activate(driver.activation(RING_FEATURES)).unwrap();
        let mut rig = Self { device, driver, dir, free: (0..buffers).collect(), sent: 0 };
        rig.refill();
        rig
    }

    fn buffer(head: u16) -> u64 {
        BUFFERS + u64::from(head) * u64::from(RX_BUFFER)
    }

    fn refill(&mut self) {
        while let Some(head) = self.free.pop_front() {
            self.driver.chain(0, head, &[(Self::buffer(head), RX_BUFFER, WRITE)]);
        }
    }

    /// A packet of the guest, and what the device does upon it.
    fn send_raw(&mut self, header: Header, data: &[u8]) -> Result<(), DeviceError> {
        let at = (8 << 20) + (self.sent % 32) * 0x2_0000;
        let head = (self.sent % 128) as u16 * 2;
        self.sent += 1;
        self.driver.write(at, &header.to_bytes());
        self.driver.write(at + HEADER as u64, data);
        let data = (at + HEADER as u64, data.len() as u32, 0);
        let header = (at, HEADER as u32, 0);
        let parts = if data.1 == 0 { vec![header] } else { vec![header, data] };
        self.driver.chain(1, head, &parts);
        self.device.ready(TX, IN)
    }

    fn header(guest: u32, host: u32, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            kind: STREAM,
            op,
            buf_alloc: ROOM,
            ..Header::default()
        }
    }

    fn send(&mut self, guest: u32, host: u32, op: u16, data: &[u8]) {
        self.send_with(guest, host, op, 0, data);
    }

    fn send_with(&mut self, guest: u32, host: u32, op: u16, flags: u32, data: &[u8]) {
        let header = Header { len: data.len() as u32, flags, ..Self::header(guest, host, op) };
        self.send_raw(header, data).unwrap();
    }

    /// What the guest got. The buffers are not given back before [`Self::refill`].
    fn taken(&mut self) -> Vec<(Header, Vec<u8>)> {
        pump(&mut self.device, 0).unwrap();
        let used = self.driver.used(0);
        let packets = used.iter().map(|(head, length)| {
            let bytes = self.driver.read(Self::buffer(*head), *length);
            let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
            assert_eq!(header.len as usize, length - HEADER);
            assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, STREAM));
            (header, bytes[HEADER..].to_vec())
        });
        let packets = packets.collect();
        self.free.extend(used.iter().map(|(head, _)| *head));
        packets
    }

    /// The same, and gives the buffers back.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let packets = self.taken();
        self.refill();
        if !packets.is_empty() {
            self.device.ready(RX, IN).unwrap();
        }
        packets
    }

    fn ops(&mut self) -> Vec<u16> {
        self.packets().iter().map(|(header, _)| header.op).collect()
    }

    /// A stream of the host to a port of the guest, which accepts; the host's port.
    fn accepted(&mut self, port: u32) -> (UnixStream, u32) {
        let mut stream = self.connect(format!("CONNECT {port}\n").as_bytes());
        let (header, _) = self.packets().remove(0);
        assert_eq!((header.op, header.dst_port, header.buf_alloc), (op::REQUEST, port, BUFFER));
        self.send(port, header.src_port, op::RESPONSE, b"");
        let mut line = [0; 64];
        let n = stream.read(&mut line).unwrap();
        assert_eq!(line[..n], *format!("OK {}\n", header.src_port).as_bytes());
        (stream, header.src_port)
    }

    fn connect(&self, line: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(self.dir.path().join("v")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(line).unwrap();
        stream
    }

    /// A listener of the host.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v_{port}"))).unwrap()
    }
}

fn ends(mut stream: &UnixStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(n) => n == 0,
        // It ended with something unread.
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn the_host_connects_and_data_flows_both_ways_until_both_have_ended() {
    let mut rig = Rig::new(32);
    let (mut stream, host) = rig.accepted(52);
    stream.write_all(b"question").unwrap();
    let packets = rig.packets();
    assert_eq!((packets.len(), packets[0].0.op, &*packets[0].1), (1, op::RW, &b"question"[..]));
    rig.send(52, host, op::RW, b"answer");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");

    // The host ends its half and still hears the guest.
    stream.shutdown(Shutdown::Write).unwrap();
    let (header, _) = rig.packets().remove(0);
    assert_eq!((header.op, header.flags, header.fwd_cnt), (op::SHUTDOWN, SHUT_SEND, 6));
    rig.send(52, host, op::RW, b"more");
    rig.send_with(52, host, op::SHUTDOWN, SHUT_BOTH, b"");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "more");
    assert_eq!(rig.ops(), [op::RST]);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn what_follows_the_line_at_once_is_data_of_the_guest() {
    let mut rig = Rig::new(32);
    let _stream = rig.connect(b"CONNECT 9\nearly");
    let (header, _) = rig.packets().remove(0);
    rig.send(9, header.src_port, op::RESPONSE, b"");
    assert_eq!(rig.packets()[0].1, b"early");
}

#[test]
fn lines_that_are_none_and_refusals_end_the_stream() {
    let mut rig = Rig::new(32);
    for line in [&b"HELO\n"[..], b"CONNECT x\n", b"CONNECT 4294967296\n", b"CONNECT -1\n", &[b'C'; 40], b"\n"]
    {
        let stream = rig.connect(line);
        assert!(rig.packets().is_empty());
        assert!(ends(&stream), "{line:?}");
    }
    let stream = rig.connect(b"CONNECT 1\n");
    let (header, _) = rig.packets().remove(0);
    rig.send(1, header.src_port, op::RST, b"");
    assert!(ends(&stream));
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn who_says_nothing_is_given_up() {
    let mut rig = Rig::new(32);
    let silent = rig.connect(b"CONN");
    let unanswered = rig.connect(b"CONNECT 7\n");
    assert_eq!(rig.ops(), [op::REQUEST]);
    assert_eq!(rig.device.connections(), 2);
    pump(&mut rig.device, 500).unwrap();
    assert!(ends(&silent) && ends(&unanswered));
    assert_eq!(rig.ops(), [op::RST]);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn the_guest_connects_to_listeners_of_the_host_only() {
    let mut rig = Rig::new(32);
    rig.send(1000, 80, op::REQUEST, b"");
    assert_eq!(rig.ops(), [op::RST]);
    let listener = rig.listen(80);
    rig.send(1000, 80, op::REQUEST, b"");
    assert_eq!(rig.ops(), [op::RESPONSE]);
    let (mut stream, _) = listener.accept().unwrap();
    rig.send(1000, 80, op::RW, b"hi");
    let mut hi = [0; 2];
    stream.read_exact(&mut hi).unwrap();
    // The same again is an attack on the connection, and costs it.
    rig.send(1000, 80, op::REQUEST, b"");
    assert_eq!(rig.ops(), [op::RST]);
    assert!(ends(&stream));
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn the_host_hangs_up_and_the_guest_learns_it_after_the_data() {
    let mut rig = Rig::new(32);
    let (mut stream, host) = rig.accepted(5);
    stream.write_all(b"last words").unwrap();
    drop(stream);
    let packets = rig.packets();
    assert_eq!(packets[0].1, b"last words");
    let (end, _) = packets.last().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, SHUT_BOTH));
    rig.send(5, host, op::RST, b"");
    assert_eq!(rig.device.connections(), 0);

    // A guest that does not confirm is not waited for.
    let (stream, _) = rig.accepted(5);
    drop(stream);
    assert_eq!(rig.packets().last().unwrap().0.op, op::SHUTDOWN);
    pump(&mut rig.device, 500).unwrap();
    assert_eq!(rig.ops(), [op::RST]);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn data_of_a_guest_that_has_gone_still_reaches_a_slow_host() {
    let mut rig = Rig::new(32);
    let (mut stream, host) = rig.accepted(5);
    // More than the kernel's buffer of the stream, so that some waits in ours.
    let (mut sent, mut told) = (0, 0);
    while sent + 16384 - told <= BUFFER as usize {
        rig.send(5, host, op::RW, &[7; 16384]);
        sent += 16384;
        told = rig.packets().last().map_or(told, |(header, _)| header.fwd_cnt as usize);
    }
    rig.send_with(5, host, op::SHUTDOWN, SHUT_BOTH, b"");
    assert_eq!(rig.ops(), [op::RST]);
    // However long it takes to begin.
    (0..5).for_each(|_| pump(&mut rig.device, 500).unwrap());
    assert_eq!(rig.device.connections(), 1);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.len()
    });
    while !reader.is_finished() {
        pump(&mut rig.device, 5).unwrap();
    }
    assert_eq!(reader.join().unwrap(), sent);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn a_guest_that_sends_more_than_it_may_loses_the_connection() {
    let mut rig = Rig::new(32);
    let (_stream, host) = rig.accepted(5);
    let mut sent = 0;
    let ended = loop {
        rig.send(5, host, op::RW, &[1; 32768]);
        sent += 32768;
        if rig.ops().contains(&op::RST) {
            break true;
        }
        if sent > 4 << 20 {
            break false;
        }
    };
    assert!(ended);
    assert_eq!(rig.device.connections(), 0);
    // One packet beyond the buffer is too much, too.
    let (_stream, host) = rig.accepted(6);
    rig.send(6, host, op::RW, &[1; BUFFER as usize + 1]);
    assert_eq!(rig.ops(), [op::RST]);
}

#[test]
fn the_guest_gets_what_it_has_room_for() {
    let mut rig = Rig::new(32);
    let mut stream = rig.connect(b"CONNECT 5\n");
    let (request, _) = rig.packets().remove(0);
    let answer =
        |op, buf_alloc, fwd_cnt| Header { buf_alloc, fwd_cnt, ..Rig::header(5, request.src_port, op) };
    rig.send_raw(answer(op::RESPONSE, 100, 0), b"").unwrap();
    stream.write_all(&[9; 300]).unwrap();
    let packets = rig.packets();
    assert_eq!(packets[0].1.len(), 100);
    assert_eq!(packets[1].0.op, op::CREDIT_REQUEST);
    assert_eq!(packets.len(), 2);
    rig.send_raw(answer(op::CREDIT_UPDATE, 100, 40), b"").unwrap();
    let packets = rig.packets();
    assert_eq!(packets[0].1.len(), 40);
    assert_eq!(packets[1].0.op, op::CREDIT_REQUEST);
    // It has taken more than it was sent: nonsense, which is worth nothing.
    rig.send_raw(answer(op::CREDIT_UPDATE, 100, 5000), b"").unwrap();
    assert!(rig.packets().iter().all(|(header, _)| header.op != op::RW));
    rig.send_raw(answer(op::CREDIT_UPDATE, ROOM, 140), b"").unwrap();
    assert_eq!(rig.packets()[0].1.len(), 160);
}

#[test]
fn connections_take_turns() {
    let mut rig = Rig::new(4);
    let (mut a, _) = rig.accepted(1);
    let (mut b, _) = rig.accepted(2);
    a.write_all(&[1; 60_000]).unwrap();
    b.write_all(&[2; 60_000]).unwrap();
    let mut order = Vec::new();
    while order.len() < 8 {
        order.extend(rig.packets().iter().map(|(header, _)| header.dst_port));
    }
    let pairs = order.windows(2).skip(1).filter(|w| w[0] == w[1]).count();
    assert!(pairs <= 1, "{order:?}");
}

#[test]
fn packets_that_belong_to_nobody_are_answered_by_rst_or_not_at_all() {
    let mut rig = Rig::new(32);
    let _listener = rig.listen(80);
    for op in [0, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 8, 0xffff] {
        rig.send(1, 80, op, b"");
        assert_eq!(rig.ops(), [op::RST], "{op}");
    }
    rig.send(1, 80, op::RST, b"");
    let odd = Rig::header(1, 80, op::REQUEST);
    rig.send_raw(Header { src_cid: 4, ..odd }, b"").unwrap();
    rig.send_raw(Header { dst_cid: 1, ..odd }, b"").unwrap();
    assert!(rig.packets().is_empty());
    rig.send_raw(Header { kind: 2, ..odd }, b"").unwrap();
    assert_eq!(rig.ops(), [op::RST]);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn a_guest_that_has_said_its_last_word_may_not_go_on() {
    let mut rig = Rig::new(32);
    let (mut stream, host) = rig.accepted(5);
    rig.send_with(5, host, op::SHUTDOWN, SHUT_RECEIVE, b"");
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let (stream, host) = rig.accepted(6);
    rig.send_with(6, host, op::SHUTDOWN, SHUT_SEND, b"");
    assert!(ends(&stream));
    rig.send(6, host, op::RW, b"x");
    assert!(rig.ops().contains(&op::RST));
}

#[test]
fn floods_are_bounded() {
    let mut rig = Rig::new(1);
    let listener = rig.listen(80);
    listener.set_nonblocking(true).unwrap();
    // Requests and their ends, while no answer is taken.
    for round in 0..3000 {
        rig.send(round, 80, op::REQUEST, b"");
        rig.send(round, 81, op::REQUEST, b"");
        rig.send(round, 80, op::RST, b"");
        while listener.accept().is_ok() {}
        if rig.driver.used(1).is_empty() {
            // The device looks at no more packets before the guest takes its answers.
            assert!((200..300).contains(&round), "{round}");
            return;
        }
    }
    panic!("it went on");
}

#[test]
fn connections_are_bounded() {
    let mut rig = Rig::new(64);
    let listener = rig.listen(80);
    let mut streams = Vec::new();
    for port in 0..CONNECTIONS as u32 + 5 {
        rig.send(port, 80, op::REQUEST, b"");
        let packets = rig.packets();
        let refused = packets.iter().any(|(header, _)| header.op == op::RST);
        // Whatever the limit of descriptors is here, it is not passed.
        if refused {
            assert!(port as usize == CONNECTIONS || streams.len() < CONNECTIONS);
            let stream = UnixStream::connect(rig.dir.path().join("v"));
            pump(&mut rig.device, 5).unwrap();
            assert!(port as usize != CONNECTIONS || ends(&stream.unwrap()));
            return;
        }
        streams.push(listener.accept());
    }
    panic!("it went on");
}

#[test]
fn broken_queues_cost_the_device() {
    let activate = |driver: Driver| {
        let mut rig = Rig::new(0);
        let _stream = rig.connect(b"CONNECT 1\n");
        rig.device.reset();
        rig.device.activate(driver.activation(RING_FEATURES))?;
        pump(&mut rig.device, 5)
    };
    Driver::hostile(3, 1, false, activate);
    Driver::hostile(3, 0, true, activate);
    for (queue, chain) in [
        // No room for a header, or none behind it; none that may be written; packets that are cut off; readable after writable.
        (0, vec![(BUFFERS, 43, WRITE)]),
        (0, vec![(BUFFERS, 44, WRITE)]),
        (0, vec![(BUFFERS, 4096, 0)]),
        (1, vec![(BUFFERS, 43, 0)]),
        (1, vec![(BUFFERS, 4096, WRITE)]),
        (1, vec![(BUFFERS, 4096, WRITE), (BUFFERS, 4096, 0)]),
    ] {
        let mut driver = Driver::new(3);
        driver.chain(queue, 0, &chain);
        assert!(matches!(activate(driver), Err(DeviceError::Driver(_))), "{chain:?}");
    }
    let mut rig = Rig::new(4);
    let header = Header { len: u32::MAX, ..Rig::header(1, 80, op::RW) };
    assert!(matches!(rig.send_raw(header, b"x"), Err(DeviceError::Driver(_))));
}

#[test]
fn a_reset_ends_the_streams_and_a_new_driver_begins_anew() {
    let mut rig = Rig::new(8);
    let (stream, _) = rig.accepted(5);
    rig.device.reset();
    assert!(ends(&stream));
    assert!(rig.device.interests().is_empty());
    rig.driver = Driver::new(2);
    rig.free = (0..8).collect();
    rig.refill();
    rig.device.activate(rig.driver.activation(0)).unwrap();
    rig.accepted(5);
    let mut cid = [0xff; 12];
    rig.device.read_config(0, &mut cid);
    assert_eq!(cid, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    rig.device.read_config(u64::MAX, &mut cid);
    assert_eq!(cid, [0; 12]);
}
