//! Locks, the guest's and the host's.

use super::{Answer, Rig, request, u32_at, u64_at};
use crate::fs::Server;
use crate::fs::wire::{ROOT, op};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::sync::mpsc::channel;
use std::time::Duration;

/// FUSE_LK_FLOCK.
const FLOCK: u32 = 1;
const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;
const NONE: i32 = libc::F_UNLCK;
const ALL: (u64, u64) = (0, i64::MAX as u64);

fn wanted(handle: u64, owner: u64, (start, end): (u64, u64), kind: i32, flags: u32) -> Vec<u8> {
    body!(handle, owner, start, end, kind as u32, 0u32, flags, 0u32)
}

impl Rig {
    fn flock(&self, handle: u64, kind: i32) -> Answer {
        self.call(op::SETLK, ROOT, &wanted(handle, 7, ALL, kind, FLOCK))
    }

    fn record(&self, handle: u64, owner: u64, range: (u64, u64), kind: i32) -> Answer {
        self.call(op::SETLK, ROOT, &wanted(handle, owner, range, kind, 0))
    }

    fn close(&self, node: u64, handle: u64) {
        self.call(op::RELEASE, node, &body!(handle, 0u64, 0u64)).unwrap();
    }
}

/// All that does not wait.
pub fn shared(rig: &Rig) {
    fs::write(rig.path("locked"), "x").unwrap();
    let node = rig.lookup(ROOT, "locked").unwrap();
    let host = File::options().read(true).write(true).open(rig.path("locked")).unwrap();
    let (first, second) = (rig.open(node, 2).unwrap(), rig.open(node, 2).unwrap());
    rig.flock(first, WRITE).unwrap();
    assert!(host.try_lock().is_err());
    assert_eq!(rig.flock(second, READ), Err(Errno::AGAIN));
    // Of those that are open the first one is kept by its node.
    rig.close(node, first);
    host.try_lock().unwrap();
    assert_eq!(rig.flock(second, WRITE), Err(Errno::AGAIN));
    host.unlock().unwrap();
    rig.flock(second, READ).unwrap();
    host.try_lock_shared().unwrap();
    rig.flock(second, NONE).unwrap();
    host.try_lock().unwrap();
    host.unlock().unwrap();

    // Owners exclude each other by one file, and each has what it has till it closes any.
    rig.record(second, 1, (0, 9), WRITE).unwrap();
    assert_eq!(rig.record(second, 2, (5, 20), WRITE), Err(Errno::AGAIN));
    rig.record(second, 2, (10, 20), WRITE).unwrap();
    rig.record(second, 1, (0, 9), READ).unwrap();
    let told = rig.call(op::GETLK, ROOT, &wanted(second, 3, (4, 30), WRITE, 0)).unwrap();
    assert_eq!((u64_at(&told, 0), u64_at(&told, 8), u32_at(&told, 16)), (0, 9, READ as u32));
    let hosts = |operation| fcntl_lock(&host, operation);
    assert!(hosts(FlockOperation::NonBlockingLockExclusive).is_err());
    let third = rig.open(node, 0).unwrap();
    rig.call(op::FLUSH, node, &body!(third, 0u64, 1u64)).unwrap();
    rig.record(third, 3, (0, 9), WRITE).unwrap();
    rig.record(third, 3, (0, 4), NONE).unwrap();
    let told = rig.call(op::GETLK, ROOT, &wanted(second, 4, (0, 9), READ, 0)).unwrap();
    assert_eq!((u64_at(&told, 0), u64_at(&told, 8), u32_at(&told, 16)), (5, 9, WRITE as u32));
    let told = rig.call(op::GETLK, ROOT, &wanted(second, 4, (0, 4), READ, 0)).unwrap();
    assert_eq!(u32_at(&told, 16), NONE as u32);
    rig.close(node, third);
    rig.close(node, second);
    hosts(FlockOperation::NonBlockingLockExclusive).unwrap();
    let last = rig.open(node, 2).unwrap();
    hosts(FlockOperation::Unlock).unwrap();

    for (body, error) in [
        (wanted(last, 1, (1, 0), WRITE, 0), Errno::INVAL),
        (wanted(last, 1, (0, u64::MAX), WRITE, 0), Errno::INVAL),
        (wanted(last, 1, ALL, 9, 0), Errno::INVAL),
        (wanted(999, 1, ALL, WRITE, 0), Errno::BADF),
        (wanted(999, 1, ALL, WRITE, FLOCK), Errno::BADF),
    ] {
        for opcode in [op::SETLK, op::SETLKW, op::GETLK] {
            assert_eq!(rig.call(opcode, ROOT, &body), Err(error), "{opcode}");
        }
    }
    rig.record(last, 1, ALL, NONE).unwrap();
    rig.close(node, last);
    fs::remove_file(rig.path("locked")).unwrap();
}

/// A lock that the host has is waited for.
pub fn waited_for(rig: &Rig) {
    fs::write(rig.path("waited"), "x").unwrap();
    let node = rig.lookup(ROOT, "waited").unwrap();
    let handle = rig.open(node, 2).unwrap();
    let host = File::open(rig.path("waited")).unwrap();
    host.lock().unwrap();
    let letting_go = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(host);
    });
    rig.call(op::SETLKW, ROOT, &wanted(handle, 1, ALL, WRITE, FLOCK)).unwrap();
    letting_go.join().unwrap();
    rig.close(node, handle);
}

#[test]
fn locks_are_shared_with_the_host() {
    shared(&Rig::new());
}

#[test]
fn who_waits_for_a_lock_holds_up_nobody_and_is_answered_when_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "x").unwrap();
    let server = Server::new(File::open(dir.path()).unwrap().into(), 100).unwrap();
    let ask = |number, opcode, node, body: &[u8]| {
        let answer = server.answer_numbered(number, &request(opcode, node, 0, body))?;
        assert_eq!(u32_at(&answer, 4), 0, "{opcode}");
        Some(answer[16..].to_vec())
    };
    ask(0, op::INIT, 0, &body!(7u32, 38u32, 0u32, u32::MAX)).unwrap();
    let node = u64_at(&ask(0, op::LOOKUP, ROOT, b"f\0").unwrap(), 0);
    let [has, waits] = [(); 2].map(|()| u64_at(&ask(0, op::OPEN, node, &body!(2u32, 0u32)).unwrap(), 0));
    ask(0, op::SETLK, ROOT, &wanted(has, 1, ALL, WRITE, FLOCK)).unwrap();
    assert!(ask(5, op::SETLKW, ROOT, &wanted(waits, 2, ALL, WRITE, FLOCK)).is_none());
    ask(0, op::GETATTR, node, &[]).unwrap();
    let (tell, told) = channel();
    std::thread::scope(|scope| {
        let server = &server;
        scope.spawn(move || server.wait_for_locks(|number, answer| tell.send((number, answer)).unwrap()));
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
        ask(0, op::SETLK, ROOT, &wanted(has, 1, ALL, NONE, FLOCK)).unwrap();
        let (number, answer) = told.recv().unwrap();
        assert_eq!((number, u32_at(&answer, 4)), (5, 0));
        // No more than some wait at a time, and one whose file is closed does not for ever.
        for number in 0..super::super::locks::MOST_WAITING as u64 {
            assert!(ask(number, op::SETLKW, ROOT, &wanted(has, 1, ALL, WRITE, FLOCK)).is_none());
        }
        ask(0, op::RELEASE, node, &body!(has, 0u64, 0u64)).unwrap();
        for _ in 0..super::super::locks::MOST_WAITING {
            let (_, answer) = told.recv().unwrap();
            assert_eq!(u32_at(&answer, 4) as i32, -Errno::BADF.raw_os_error());
        }
        server.locks.end();
    });
}
