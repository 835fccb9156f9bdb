use super::*;
use crate::devices::testing::{BUFFERS, Driver, MEMORY, WRITE, pump};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// The device, and the server's end of its socket.
fn rig() -> (Fs, OwnedFd) {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.unwrap();
    (Fs::new(ours, "tag").unwrap(), theirs)
}

/// What a server reads: the number and the request; none if there is nothing.
fn asked(server: &OwnedFd) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut buffer = vec![0; 2 * LONGEST];
    let (length, _) = rustix::net::recv(server, &mut buffer[..], RecvFlags::DONTWAIT).ok()?;
    Some((buffer[..NUMBER].to_vec(), buffer[NUMBER..length].to_vec()))
}

fn answer(server: &OwnedFd, number: &[u8], text: &[u8]) {
    rustix::net::send(server, &[number, text].concat(), SendFlags::empty()).unwrap();
}

/// Where requests and answers lie in these tests.
const ANSWERS: u64 = BUFFERS + (1 << 20);

#[test]
fn requests_go_out_and_answers_come_back_in_any_order() {
    let (mut device, server) = rig();
    let mut driver = Driver::new(QUEUES);
    driver.write(BUFFERS, b"onetwosix");
    driver.chain(
        1,
        0,
        &[(BUFFERS, 1, 0), (BUFFERS + 1, 2, 0), (ANSWERS, 2, WRITE), (ANSWERS + 100, 90, WRITE)],
    );
    driver.chain(1, 4, &[(BUFFERS + 3, 3, 0), (ANSWERS + 200, 4, WRITE)]);
    // Nobody answers those that forget.
    driver.chain(0, 0, &[(BUFFERS + 6, 3, 0)]);
    device.activate(driver.activation(RING_FEATURES)).unwrap();
    pump(&mut device, 1).unwrap();
    let mut requests: Vec<_> = std::iter::from_fn(|| asked(&server)).collect();
    requests.sort_by_key(|(_, request)| request.clone());
    let [(one, first), (_, six), (two, second)] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!([&first[..], six, second], [b"one", b"six", b"two"]);
    assert_eq!(driver.used(0), [(0, 0)]);
    assert_eq!(driver.used(1), []);

    // Longer than its room, from a number that nobody gave, of no length.
    answer(&server, two, b"too long");
    answer(&server, &[9; NUMBER], b"x");
    rustix::net::send(&server, b"short", SendFlags::empty()).unwrap();
    answer(&server, one, b"an answer");
    answer(&server, one, b"again");
    pump(&mut device, 1).unwrap();
    assert_eq!(driver.used(1), [(4, 4), (0, 9)]);
    assert_eq!(driver.read(ANSWERS + 200, 5), b"too \0");
    assert_eq!(
        (driver.read(ANSWERS, 3), driver.read(ANSWERS + 100, 8)),
        (b"an\0".to_vec(), b" answer\0".to_vec())
    );
}

#[test]
fn a_slow_server_gets_all_requests_and_a_driver_that_began_anew_no_old_answers() {
    let (mut device, server) = rig();
    let mut driver = Driver::new(QUEUES);
    // More than the socket holds.
    for head in 0..100u16 {
        driver.chain(1, 2 * head, &[(BUFFERS, 100_000, 0), (ANSWERS, 64, WRITE)]);
    }
    device.activate(driver.activation(RING_FEATURES)).unwrap();
    pump(&mut device, 1).unwrap();
    let mut count = 0;
    let mut last = Vec::new();
    while let Some((number, request)) = asked(&server) {
        assert_eq!(request.len(), 100_000);
        (count, last) = (count + 1, number);
        pump(&mut device, 1).unwrap();
    }
    assert_eq!(count, 100);

    device.reset();
    assert!(device.interests().is_empty());
    let mut driver = Driver::new(QUEUES);
    driver.chain(1, 0, &[(BUFFERS, 4, 0), (ANSWERS, 64, WRITE)]);
    device.activate(driver.activation(0)).unwrap();
    answer(&server, &last, b"old");
    pump(&mut device, 1).unwrap();
    assert_eq!(driver.used(1), []);
    let (number, _) = asked(&server).unwrap();
    answer(&server, &number, b"new");
    pump(&mut device, 1).unwrap();
    assert_eq!(driver.used(1), [(0, 3)]);
}

#[test]
fn without_its_server_each_request_fails() {
    let (mut device, server) = rig();
    let mut driver = Driver::new(QUEUES);
    let request = [&48u32.to_le_bytes()[..], &3u32.to_le_bytes(), &77u64.to_le_bytes(), &[0; 32]].concat();
    driver.write(BUFFERS, &request);
    driver.chain(1, 0, &[(BUFFERS, 48, 0), (ANSWERS, 64, WRITE)]);
    device.activate(driver.activation(RING_FEATURES)).unwrap();
    pump(&mut device, 1).unwrap();
    drop(server);
    pump(&mut device, 1).unwrap();
    assert_eq!(driver.used(1), [(0, 16)]);
    let failed = |unique| refusal(unique, Errno::IO);
    assert_eq!(driver.read(ANSWERS, 16), failed(0));
    driver.chain(1, 2, &[(BUFFERS, 48, 0), (ANSWERS, 64, WRITE)]);
    device.serve(1).unwrap();
    assert_eq!(driver.used(1), [(2, 16)]);
    assert_eq!(driver.read(ANSWERS, 16), failed(77));
}

#[test]
fn a_server_that_dies_with_its_socket_full_fails_what_it_had_and_what_comes() {
    let (mut device, server) = rig();
    let mut driver = Driver::new(QUEUES);
    for head in 0..100u16 {
        driver.chain(1, 2 * head, &[(BUFFERS, 100_000, 0), (ANSWERS, 64, WRITE)]);
    }
    device.activate(driver.activation(RING_FEATURES)).unwrap();
    assert!(device.stuck.is_some());
    drop(server);
    // As epoll tells it: readable, writable, hung up.
    device.ready(SOCKET, IN | OUT | 0x10).unwrap();
    pump(&mut device, 1).unwrap();
    assert_eq!(driver.used(1).len(), 100);
    driver.chain(1, 0, &[(BUFFERS, 48, 0), (ANSWERS, 64, WRITE)]);
    device.ready(1, IN).unwrap();
    assert_eq!(driver.used(1), [(0, 16)]);
}

#[test]
fn hostile_queues_cost_the_device() {
    for queue in 0..QUEUES {
        Driver::hostile(QUEUES, queue, false, |driver| {
            let (mut device, _server) = rig();
            device.activate(driver.activation(RING_FEATURES))?;
            pump(&mut device, 1)
        });
    }
    let refused = |prepare: &dyn Fn(&mut Driver)| {
        let (mut device, server) = rig();
        let mut driver = Driver::new(QUEUES);
        prepare(&mut driver);
        let mut run = || {
            device.activate(driver.activation(RING_FEATURES))?;
            pump(&mut device, 1)?;
            while let Some((number, _)) = asked(&server) {
                answer(&server, &number, b"text");
                pump(&mut device, 1)?;
            }
            Ok(())
        };
        let result: Result<(), DeviceError> = run();
        assert!(matches!(result, Err(DeviceError::Driver(_))), "{result:?}");
    };
    refused(&|d| d.chain(1, 0, &[(ANSWERS, 64, WRITE), (BUFFERS, 64, 0)]));
    refused(&|d| d.chain(1, 0, &[(BUFFERS, LONGEST as u32, 0), (BUFFERS, 1, 0), (ANSWERS, 64, WRITE)]));
    refused(&|d| d.chain(1, 0, &[(BUFFERS, 64, 0), (MEMORY as u64 - 2, 64, WRITE)]));
    refused(&|d| d.chain(1, 0, &[(BUFFERS, 64, 0), (u64::MAX - 2, 64, WRITE)]));
}

#[test]
fn more_requests_than_places_cost_the_device() {
    let (mut device, server) = rig();
    let mut driver = Driver::new(QUEUES);
    device.activate(driver.activation(RING_FEATURES)).unwrap();
    let result = (0..3 * QUEUE).try_for_each(|_| {
        // Always the same, which the driver never got back.
        driver.chain(1, 0, &[(BUFFERS, 64, 0), (ANSWERS, 64, WRITE)]);
        device.serve(1)?;
        asked(&server).map(drop).ok_or(DeviceError::Driver("was not asked".into()))
    });
    let Err(DeviceError::Driver(why)) = result else { panic!("{result:?}") };
    assert!(why.contains("more requests than its queues have places"), "{why}");
}

#[test]
fn the_tag_is_told() {
    let (device, _server) = rig();
    let mut space = [9; 44];
    device.read_config(0, &mut space);
    assert_eq!(space[..4], *b"tag\0");
    assert_eq!(space[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
    let mut beyond = [9; 4];
    device.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}
