use super::*;
use crate::config::RateLimit;
use crate::devices::testing::{BUFFERS, Driver, MEMORY, SIZE, WRITE, pump};
use crate::gpt::Layout;
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;

const REQUEST: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x1000;
const DATA: u64 = 2 * BUFFERS;

/// A disk and its driver.
struct Rig {
    driver: Driver,
    block: Block,
}

impl Rig {
    fn new(storage: Storage, read_only: bool) -> Self {
        let driver = Driver::new(1);
        let mut block = Block::new(storage, read_only, 0);
        block.activate(driver.activation(0)).unwrap();
        Self { driver, block }
    }

    fn raw(size: u64) -> (Self, File) {
        let (storage, file) = raw(size);
        (Self::new(storage, false), file)
    }

    /// Hands these buffers over as one chain and lets the device work.
    fn submit(&mut self, buffers: &[(u64, u32, u16)]) -> Result<(), DeviceError> {
        self.driver.chain(0, 0, buffers);
        self.block.ready(0, 1)
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.driver.write(REQUEST, &header);
        self.driver.write(STATUS, &[0xff]);
    }

    /// A well-formed request; its status.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> u8 {
        self.header(kind, sector);
        let device_writes = kind == VIRTIO_BLK_T_IN || kind == VIRTIO_BLK_T_GET_ID;
        let mut chain = vec![(REQUEST, 16, 0)];
        chain.extend(
            data.iter().map(|(address, length)| (*address, *length, if device_writes { WRITE } else { 0 })),
        );
        chain.push((STATUS, 1, WRITE));
        self.submit(&chain).unwrap();
        self.driver.read(STATUS, 1)[0]
    }
}

#[test]
fn requests_beyond_a_limit_wait_for_their_time() {
    let driver = Driver::new(1);
    let slow = RateLimit { bytes_per_second: 1 << 20, ops_per_second: 0 };
    let rate = DiskRate { read: slow, write: RateLimit::default() };
    let mut block = Block::new(raw(1 << 20).0, false, 0).limited(&rate).unwrap();
    block.activate(driver.activation(0)).unwrap();
    let mut rig = Rig { driver, block };
    // A bucket is overdrawn by one request at most: the first two pass, for the bucket holds 100 ms.
    let begin = std::time::Instant::now();
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 64 << 10)]), 0);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 64 << 10)]), 0);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 64 << 10)]), 0xff, "it waits");
    let interests = rig.block.interests();
    let timer = interests.iter().find(|i| i.token == READ_TIMER).unwrap();
    assert_eq!((interests.len(), timer.events), (2, 1));
    // The timer's time.
    while rig.driver.read(STATUS, 1)[0] == 0xff {
        assert!(begin.elapsed() < std::time::Duration::from_secs(10));
        std::thread::sleep(std::time::Duration::from_millis(1));
        rig.block.ready(READ_TIMER, 1).unwrap();
    }
    assert!(begin.elapsed() >= std::time::Duration::from_millis(15), "{:?}", begin.elapsed());
    assert_eq!(rig.block.interests().len(), 1);
    // The other direction is free, until a command limits it.
    for _ in 0..10 {
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 64 << 10)]), 0);
    }
    let once = RateLimit { bytes_per_second: 0, ops_per_second: 1 };
    let rate = DiskRate { read: RateLimit::default(), write: once };
    assert!(rig.block.command(Command::LimitDisk(rate)).unwrap());
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]), 0);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]), 0xff);
    rig.block.command(Command::LimitDisk(DiskRate::default())).unwrap();
    assert_eq!(rig.driver.read(STATUS, 1), [0]);
}

#[test]
fn what_makes_the_host_work_without_data_is_limited_too() {
    let limited = |bytes_per_second, ops_per_second| {
        let driver = Driver::new(1);
        let rate =
            DiskRate { read: RateLimit::default(), write: RateLimit { bytes_per_second, ops_per_second } };
        let mut block = Block::new(raw(64 << 20).0, false, 0).limited(&rate).unwrap();
        block.activate(driver.activation(0)).unwrap();
        Rig { driver, block }
    };
    const WAITS: u8 = 0xff;
    let mut rig = limited(0, 1);
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), WAITS);
    let mut rig = limited(0, 1);
    let range = |count: u32| [&[0; 8][..], &count.to_le_bytes(), &[0; 4]].concat();
    rig.driver.write(DATA, &range(8));
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16)]), OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16)]), WAITS);
    // By what is zeroed, not by the request's own few bytes; and not more at once than the host may have to write.
    let mut rig = limited(1 << 20, 0);
    rig.driver.write(DATA, &range(MAX_ZEROES));
    assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16)]), OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]), WAITS);
    let mut rig = limited(1 << 20, 0);
    rig.driver.write(DATA, &range(MAX_ZEROES + 1));
    assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16)]), IOERR);
    // Room that is given back costs no throughput.
    rig.driver.write(DATA, &range(64 << 11));
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16)]), OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]), OK);
}

fn raw(size: u64) -> (Storage, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    (Storage::Raw { file: file.try_clone().unwrap(), size }, file)
}

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

#[test]
fn what_is_written_is_read_back_in_pieces() {
    let (mut rig, file) = Rig::raw(1 << 20);
    let bytes: Vec<u8> = (0..4096u32).map(|n| (n * 7) as u8).collect();
    rig.driver.write(DATA, &bytes);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 8, &[(DATA, 1000), (DATA + 1000, 3096)]), OK);
    let mut host = vec![0; 4096];
    file.read_exact_at(&mut host, 4096).unwrap();
    assert_eq!(host, bytes);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 8, &[(DATA + 0x10000, 1), (DATA + 0x20000, 4095)]), OK);
    assert_eq!(rig.driver.read(DATA + 0x10000, 1), &bytes[..1]);
    assert_eq!(rig.driver.read(DATA + 0x20000, 4095), &bytes[1..]);
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    assert_eq!(rig.driver.fired.queues[0].load(Ordering::SeqCst), 3);
}

#[test]
fn what_is_discarded_goes_back_to_the_host() {
    let (mut rig, file) = Rig::raw(4 << 20);
    rig.driver.write(DATA, &[5; 1 << 20]);
    for part in 0..4 {
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, part << 11, &[(DATA, 1 << 20)]), OK);
    }
    let before = file.metadata().unwrap().blocks();
    let range = |sector: u64, count: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    rig.driver.write(DATA, &range(0, 4096, 0));
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16)]), OK);
    let after = file.metadata().unwrap().blocks();
    assert!(after <= before - 4096, "{before} blocks before, {after} after");

    for (sector, unmap) in [(4096, 0), (6144, 1)] {
        rig.driver.write(DATA, &range(sector, 2048, unmap));
        assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16)]), OK);
    }
    let mut host = vec![1; 4 << 20];
    file.read_exact_at(&mut host, 0).unwrap();
    assert!(host.iter().all(|byte| *byte == 0));

    rig.driver.write(DATA, &range(8191, 2, 0));
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16)]), IOERR, "beyond the end");
    rig.driver.write(DATA, &range(0, 1, 1));
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16)]), UNSUPP, "a flag that discard has not");
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 15)]), IOERR, "half a range");
}

#[test]
fn a_read_only_disk_is_not_written() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let mut rig = Rig::new(Storage::Raw { file: file.try_clone().unwrap(), size: 4096 }, true);
    assert_ne!(rig.block.features() & 1 << VIRTIO_BLK_F_RO, 0);
    rig.driver.write(DATA, &[1; 512]);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]), IOERR);
    let mut host = [9; 512];
    file.read_exact_at(&mut host, 0).unwrap();
    assert_eq!(host, [0; 512]);
}

#[test]
fn partitions_read_as_one_disk() {
    let contents = [vec![1; 700], vec![2; (2 << 20) + 5], vec![3; 512]];
    let files: Vec<File> = contents
        .iter()
        .map(|bytes| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            file
        })
        .collect();
    let layout = Layout::of(&contents.iter().map(|bytes| bytes.len() as u64).collect::<Vec<_>>()).unwrap();
    let mut expected = vec![0; layout.size as usize];
    expected[..layout.head.len()].copy_from_slice(&layout.head);
    for (partition, bytes) in layout.partitions.iter().zip(&contents) {
        expected[partition.offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    let tail = layout.tail_offset() as usize;
    expected[tail..].copy_from_slice(&layout.tail);

    let sectors = layout.size / SECTOR;
    let mut rig = Rig::new(Storage::Partitions { layout, files }, false);
    let mut read = Vec::new();
    let step = 3333;
    for sector in (0..sectors).step_by(step) {
        let length = (sectors - sector).min(step as u64) * SECTOR;
        let first = 700;
        let data = [(DATA, first), (DATA + 0x1000, length as u32 - first)];
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, sector, &data), OK);
        read.extend(rig.driver.read(DATA, first as usize));
        read.extend(rig.driver.read(DATA + 0x1000, length as usize - first as usize));
    }
    assert!(read == expected);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 2048, &[(DATA, 512)]), IOERR);
}

#[test]
fn a_request_outside_disk_or_memory_fails_alone() {
    let (mut rig, _file) = Rig::raw(1 << 20);
    for (sector, length) in [(2048, 512), (2047, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 100)] {
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, sector, &[(DATA, length)]), IOERR, "{sector} {length}");
    }
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[(MEMORY as u64 - 256, 512)]), IOERR);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(1 << 40, 512)]), IOERR);
    assert_eq!(rig.request(77, 0, &[]), UNSUPP);
    assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)]), OK);
    assert_eq!(rig.driver.read(DATA, 20), b"dhow-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_file_that_shrank_gives_an_error_not_old_data() {
    let (mut rig, file) = Rig::raw(1 << 20);
    file.set_len(4096).unwrap();
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 8192)]), IOERR);
}

#[test]
fn a_disk_grows_with_its_file_and_never_shrinks() {
    let (mut rig, file) = Rig::raw(1 << 20);
    let capacity = |rig: &Rig| {
        let mut sectors = [0; 8];
        rig.block.read_config(0, &mut sectors);
        u64::from_le_bytes(sectors) * SECTOR
    };
    file.set_len((2 << 20) + 100).unwrap();
    assert_eq!((capacity(&rig), rig.request(VIRTIO_BLK_T_OUT, 2048, &[(DATA, 512)])), (1 << 20, IOERR));
    assert!(rig.block.command(Command::TakeSize).unwrap());
    assert_eq!((capacity(&rig), rig.request(VIRTIO_BLK_T_OUT, 2048, &[(DATA, 512)])), (2 << 20, OK));
    file.set_len(4096).unwrap();
    assert!(rig.block.command(Command::TakeSize).unwrap());
    assert_eq!(capacity(&rig), 2 << 20);
    let layout = Layout::of(&[4096]).unwrap();
    let files = vec![raw(4096).1];
    assert!(!Rig::new(Storage::Partitions { layout, files }, true).block.command(Command::TakeSize).unwrap());
}

#[test]
fn a_full_disk_of_the_host_is_an_io_error_of_the_guest() {
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let mut rig = Rig::new(Storage::Raw { file: full, size: 1 << 20 }, false);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]), IOERR);
    assert!(rig.block.complained);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), OK, "and the disk goes on");
}

#[test]
fn broken_chains_end_the_device() {
    let cases: [&[(u64, u32, u16)]; 5] = [
        &[(REQUEST, 16, 0)],
        &[(STATUS, 1, WRITE), (REQUEST, 16, 0)],
        &[(REQUEST, 16, 0), (MEMORY as u64, 1, WRITE)],
        &[(u64::MAX - 3, 16, 0), (STATUS, 1, WRITE)],
        &[(REQUEST, 0, 0)],
    ];
    for chain in cases {
        let (mut rig, _file) = Rig::raw(1 << 20);
        rig.header(VIRTIO_BLK_T_IN, 0);
        assert!(matches!(rig.submit(chain), Err(DeviceError::Driver(_))), "{chain:?}");
    }
    let (mut rig, _file) = Rig::raw(1 << 20);
    rig.header(VIRTIO_BLK_T_IN, 0);
    rig.submit(&[(REQUEST, 8, 0), (STATUS, 1, WRITE)]).unwrap();
    assert_eq!(rig.driver.read(STATUS, 1), [IOERR], "a short header");
}

#[test]
fn broken_queues_cost_the_device() {
    let serve = |driver: Driver| {
        let mut block = Block::new(raw(1 << 20).0, false, 0);
        block.activate(driver.activation(RING_FEATURES))?;
        pump(&mut block, 5)
    };
    Driver::hostile(1, 0, false, serve);
    Driver::hostile(1, 0, true, serve);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever the rings and descriptors hold: an error or an answer, in finite time.
    #[test]
    fn random_rings_do_no_harm(
        rings in prop::collection::vec(any::<u8>(), 8192),
        index in 0u16..=SIZE,
        kind in 0u32..16,
        sector in prop_oneof![0u64..4096, any::<u64>()],
        descriptors in prop::collection::vec((prop_oneof![Just(REQUEST), Just(DATA), any::<u64>()], 0u32..8192, 0u16..8, 0u16..8), 0..8),
    ) {
        let (mut rig, file) = Rig::raw(1 << 20);
        rig.driver.write(0x1000, &rings);
        rig.driver.set_available(0, 0);
        for (number, (address, length, flags, next)) in (0..).zip(&descriptors) {
            rig.driver.descriptor(0, number, *address, *length, *flags, *next);
            rig.driver.offer(0, number);
        }
        rig.driver.set_available(0, index);
        rig.header(kind, sector);
        let _ = rig.block.ready(0, 1);
        prop_assert!(file.metadata().unwrap().len() <= 1 << 20, "the file grew");
    }

    #[test]
    fn configuration_space_has_an_end(offset in any::<u64>(), length in 0usize..64) {
        let (rig, _file) = Rig::raw(1 << 20);
        let mut data = vec![0xaa; length];
        rig.block.read_config(offset, &mut data);
        prop_assert!(offset < 60 || data.iter().all(|byte| *byte == 0));
    }
}
