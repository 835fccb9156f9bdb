use super::*;
use crate::gpt::Layout;
use crate::virtio::{Interrupt, Memory};
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 8 << 20;
const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STATUS: u64 = 0x1f_0000;
const WRITE: u16 = 2;
const NEXT: u16 = 1;
/// The available ring, behind the descriptors.
const AVAILABLE: u64 = 16 * QUEUE as u64;

#[derive(Default)]
struct Count(AtomicU32);

impl Interrupt for Count {
    fn queue(&self, _index: u16) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn config(&self) {}
}

/// A driver's side of a disk: memory, and the device on a queue in it.
struct Driver {
    memory: Memory,
    block: Block,
    interrupts: Arc<Count>,
}

impl Driver {
    fn new(storage: Storage, read_only: bool) -> Self {
        let memory = Memory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let guard = memory.memory();
        let queue = MockSplitQueue::new(&*guard, QUEUE).create_queue().unwrap();
        let interrupts = Arc::new(Count::default());
        let mut block = Block::new(storage, read_only, 0);
        block
            .activate(Activation {
                memory: memory.clone(),
                queues: vec![queue],
                kicks: vec![EventFd::new(EFD_NONBLOCK).unwrap()],
                interrupt: interrupts.clone(),
                features: 0,
            })
            .unwrap();
        Self { memory, block, interrupts }
    }

    fn raw(size: u64) -> (Self, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        (Self::new(Storage::Raw { file: file.try_clone().unwrap(), size }, false), file)
    }

    /// Hands these descriptors over as one chain and lets the device work.
    fn submit(&mut self, descriptors: &[(u64, u32, u16)]) -> Result<(), DeviceError> {
        for (number, (address, length, flags)) in descriptors.iter().enumerate() {
            let next = if number + 1 < descriptors.len() { NEXT } else { 0 };
            let words = [(flags | next).to_le_bytes(), (number as u16 + 1).to_le_bytes()].concat();
            self.write(
                16 * number as u64,
                &[&address.to_le_bytes()[..], &length.to_le_bytes(), &words].concat(),
            );
        }
        let index = u16::from_le_bytes(self.read(AVAILABLE + 2, 2).try_into().unwrap());
        self.write(AVAILABLE + 4 + 2 * u64::from(index % QUEUE), &[0, 0]);
        self.write(AVAILABLE + 2, &(index + 1).to_le_bytes());
        self.block.ready(0, 1)
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.write(HEADER, &header);
        self.write(STATUS, &[0xff]);
    }

    /// A well-formed request; its status.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> u8 {
        self.header(kind, sector);
        let device_writes = kind == VIRTIO_BLK_T_IN || kind == VIRTIO_BLK_T_GET_ID;
        let mut chain = vec![(HEADER, 16, 0)];
        chain.extend(
            data.iter().map(|(address, length)| (*address, *length, if device_writes { WRITE } else { 0 })),
        );
        chain.push((STATUS, 1, WRITE));
        self.submit(&chain).unwrap();
        self.read(STATUS, 1)[0]
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.memory().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

#[test]
fn what_is_written_is_read_back_in_pieces() {
    let (mut driver, file) = Driver::raw(1 << 20);
    let bytes: Vec<u8> = (0..4096u32).map(|n| (n * 7) as u8).collect();
    driver.write(DATA, &bytes);
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 8, &[(DATA, 1000), (DATA + 1000, 3096)]), OK);
    let mut host = vec![0; 4096];
    file.read_exact_at(&mut host, 4096).unwrap();
    assert_eq!(host, bytes);
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 8, &[(DATA + 0x10000, 1), (DATA + 0x20000, 4095)]), OK);
    assert_eq!(driver.read(DATA + 0x10000, 1), &bytes[..1]);
    assert_eq!(driver.read(DATA + 0x20000, 4095), &bytes[1..]);
    assert_eq!(driver.request(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    assert_eq!(driver.interrupts.0.load(Ordering::SeqCst), 3);
}

#[test]
fn what_is_discarded_goes_back_to_the_host() {
    let (mut driver, file) = Driver::raw(4 << 20);
    driver.write(DATA, &[5; 1 << 20]);
    for part in 0..4 {
        assert_eq!(driver.request(VIRTIO_BLK_T_OUT, part << 11, &[(DATA, 1 << 20)]), OK);
    }
    let before = file.metadata().unwrap().blocks();
    let range = |sector: u64, count: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    driver.write(DATA, &range(0, 4096, 0));
    assert_eq!(driver.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16)]), OK);
    let after = file.metadata().unwrap().blocks();
    assert!(after <= before - 4096, "{before} blocks before, {after} after");

    for (sector, unmap) in [(4096, 0), (6144, 1)] {
        driver.write(DATA, &range(sector, 2048, unmap));
        assert_eq!(driver.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16)]), OK);
    }
    let mut host = vec![1; 4 << 20];
    file.read_exact_at(&mut host, 0).unwrap();
    assert!(host.iter().all(|byte| *byte == 0));

    driver.write(DATA, &range(8191, 2, 0));
    assert_eq!(driver.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16)]), IOERR, "beyond the end");
    driver.write(DATA, &range(0, 1, 1));
    assert_eq!(driver.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16)]), UNSUPP, "a flag that discard has not");
    assert_eq!(driver.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 15)]), IOERR, "half a range");
}

#[test]
fn a_read_only_disk_is_not_written() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let mut driver = Driver::new(Storage::Raw { file: file.try_clone().unwrap(), size: 4096 }, true);
    assert_ne!(driver.block.features() & 1 << VIRTIO_BLK_F_RO, 0);
    driver.write(DATA, &[1; 512]);
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]), IOERR);
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
    let mut driver = Driver::new(Storage::Partitions { layout, files }, false);
    let mut read = Vec::new();
    let step = 3333;
    for sector in (0..sectors).step_by(step) {
        let length = (sectors - sector).min(step as u64) * SECTOR;
        let first = 700;
        let data = [(DATA, first), (DATA + 0x1000, length as u32 - first)];
        assert_eq!(driver.request(VIRTIO_BLK_T_IN, sector, &data), OK);
        read.extend(driver.read(DATA, first as usize));
        read.extend(driver.read(DATA + 0x1000, length as usize - first as usize));
    }
    assert!(read == expected);
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 2048, &[(DATA, 512)]), IOERR);
}

#[test]
fn a_request_outside_disk_or_memory_fails_alone() {
    let (mut driver, _file) = Driver::raw(1 << 20);
    for (sector, length) in [(2048, 512), (2047, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 100)] {
        assert_eq!(driver.request(VIRTIO_BLK_T_IN, sector, &[(DATA, length)]), IOERR, "{sector} {length}");
    }
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 0, &[(MEMORY as u64 - 256, 512)]), IOERR);
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 0, &[(1 << 40, 512)]), IOERR);
    assert_eq!(driver.request(77, 0, &[]), UNSUPP);
    assert_eq!(driver.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)]), OK);
    assert_eq!(driver.read(DATA, 20), b"dhow-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_file_that_shrank_gives_an_error_not_old_data() {
    let (mut driver, file) = Driver::raw(1 << 20);
    file.set_len(4096).unwrap();
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 8192)]), IOERR);
}

#[test]
fn a_full_disk_of_the_host_is_an_io_error_of_the_guest() {
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let mut driver = Driver::new(Storage::Raw { file: full, size: 1 << 20 }, false);
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]), IOERR);
    assert!(driver.block.complained);
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), OK, "and the disk goes on");
}

#[test]
fn broken_chains_end_the_device() {
    let cases: [&[(u64, u32, u16)]; 5] = [
        &[(HEADER, 16, 0)],
        &[(STATUS, 1, WRITE), (HEADER, 16, 0)],
        &[(HEADER, 16, 0), (MEMORY as u64, 1, WRITE)],
        &[(u64::MAX - 3, 16, 0), (STATUS, 1, WRITE)],
        &[(HEADER, 0, 0)],
    ];
    for chain in cases {
        let (mut driver, _file) = Driver::raw(1 << 20);
        driver.header(VIRTIO_BLK_T_IN, 0);
        assert!(matches!(driver.submit(chain), Err(DeviceError::Driver(_))), "{chain:?}");
    }
    let (mut driver, _file) = Driver::raw(1 << 20);
    driver.header(VIRTIO_BLK_T_IN, 0);
    driver.submit(&[(HEADER, 8, 0), (STATUS, 1, WRITE)]).unwrap();
    assert_eq!(driver.read(STATUS, 1), [IOERR], "a short header");
}

#[test]
fn an_available_index_that_jumps_ends_the_device() {
    let (mut driver, _file) = Driver::raw(1 << 20);
    // the index of the available ring, behind 256 descriptors and the flags
    driver.write(AVAILABLE + 2, &0x8000u16.to_le_bytes());
    assert!(matches!(driver.block.ready(0, 1), Err(DeviceError::Driver(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever the rings and descriptors hold: an error or an answer, in finite time.
    #[test]
    fn random_rings_do_no_harm(
        rings in prop::collection::vec(any::<u8>(), 8192),
        index in 0u16..=256,
        kind in 0u32..16,
        sector in prop_oneof![0u64..4096, any::<u64>()],
        descriptors in prop::collection::vec((prop_oneof![Just(HEADER), Just(DATA), any::<u64>()], 0u32..8192, 0u16..8, 0u16..8), 0..8),
    ) {
        let (mut driver, file) = Driver::raw(1 << 20);
        driver.write(0, &rings);
        for (number, (address, length, flags, next)) in descriptors.iter().enumerate() {
            let descriptor = [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
            driver.write(16 * number as u64, &descriptor);
            driver.write(AVAILABLE + 4 + 2 * number as u64, &(number as u16).to_le_bytes());
        }
        driver.write(AVAILABLE + 2, &index.to_le_bytes());
        driver.header(kind, sector);
        let _ = driver.block.ready(0, 1);
        prop_assert!(file.metadata().unwrap().len() <= 1 << 20, "the file grew");
    }

    #[test]
    fn configuration_space_has_an_end(offset in any::<u64>(), length in 0usize..64) {
        let (driver, _file) = Driver::raw(1 << 20);
        let mut data = vec![0xaa; length];
        driver.block.read_config(offset, &mut data);
        prop_assert!(offset < 60 || data.iter().all(|byte| *byte == 0));
    }
}
