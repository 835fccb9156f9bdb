use super::*;
use crate::devices::testing::{BUFFERS, Driver, MEMORY, WRITE, pump};

fn active(driver: &Driver) -> Balloon {
    let mut device = Balloon::new();
    device.activate(driver.activation(device.features())).unwrap();
    device
}

/// Page numbers in memory.
fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|p| p.to_le_bytes()).collect()
}

/// Pages of the guest's memory that the host has given.
fn resident(driver: &Driver) -> usize {
    let memory = driver.memory.memory();
    let start = memory.get_host_address(GuestAddress(0)).unwrap();
    let mut pages = vec![0_u8; MEMORY / 4096];
    // SAFETY: the range is guest memory, and there is a byte for each page.
    assert_eq!(unsafe { libc::mincore(start.cast(), MEMORY, pages.as_mut_ptr()) }, 0);
    pages.iter().filter(|p| *p & 1 != 0).count()
}

#[test]
fn pages_in_the_balloon_go_back_to_the_host() {
    let mut driver = Driver::new(3);
    let mut device = active(&driver);
    let first = (8 << 20) / 4096;
    driver.write(8 << 20, &vec![5; 1 << 20]);
    let before = resident(&driver);
    // Up, down, single, and outside of memory.
    let pages: Vec<u32> = (0..100).chain((100..200).rev()).chain([250, 240]).map(|p| first + p).collect();
    driver.write(BUFFERS, &numbers(&[&pages[..], &[u32::MAX, 1 << 24]].concat()));
    driver.chain(0, 0, &[(BUFFERS, 204 * 4, 0)]);
    device.ready(0, IN).unwrap();
    assert_eq!(driver.used(0), [(0, 0)]);
    // Less what the queues themselves have touched.
    assert!(before - resident(&driver) >= 202 - 5);
    assert_eq!(driver.read(8 << 20, 4), [0; 4]);
    assert_eq!(driver.read((8 << 20) + 245 * 4096, 4), [5; 4]);
    // Deflated pages are the guest's to use again.
    driver.chain(1, 0, &[(BUFFERS, 400, 0)]);
    device.ready(1, IN).unwrap();
    assert_eq!(driver.used(1), [(0, 0)]);
}

#[test]
fn reported_pages_go_back_to_the_host() {
    let mut driver = Driver::new(3);
    let mut device = active(&driver);
    driver.write(8 << 20, &vec![5; 1 << 20]);
    let before = resident(&driver);
    // The second one has only one whole page.
    driver.chain(2, 0, &[(8 << 20, 64 << 10, WRITE), ((9 << 20) - 8192 + 100, 8092, WRITE)]);
    device.ready(2, IN).unwrap();
    assert_eq!(driver.used(2), [(0, 0)]);
    assert!(before - resident(&driver) >= 17 - 5);
    assert_eq!(driver.read(8 << 20, 64 << 10), vec![0; 64 << 10]);
    assert_eq!(driver.read((9 << 20) - 8192, 4096), vec![5; 4096]);
    assert_eq!(driver.read((9 << 20) - 4096, 4096), vec![0; 4096]);
}

#[test]
fn the_target_and_what_was_given_are_told() {
    let driver = Driver::new(2);
    let mut device = active(&driver);
    device.set_target(64);
    let mut space = [0xff; 12];
    device.read_config(0, &mut space);
    assert_eq!(space[..4], (64_u32 * 256).to_le_bytes());
    assert_eq!(space[4..], [0; 8]);
    device.write_config(4, &(32_u32 * 256).to_le_bytes());
    let given = |device: &Balloon| {
        let mut space = [0; 8];
        device.read_config(0, &mut space);
        u32::from_le_bytes([space[4], space[5], space[6], space[7]])
    };
    assert_eq!(given(&device), 32 * 256);
    // Only its own field, wherever it writes.
    device.write_config(0, &[9; 4]);
    device.write_config(6, &[0; 40]);
    device.write_config(u64::MAX, &[9; 4]);
    assert_eq!(given(&device), 32 * 256);
    device.set_target(u64::MAX);
    device.read_config(0, &mut space);
    assert_eq!(space[..4], [0xff; 4]);
    device.reset();
    assert!(device.interests().is_empty());
}

#[test]
fn broken_queues_cost_the_device() {
    let serve = |driver: Driver| {
        let mut device = Balloon::new();
        device.activate(driver.activation(device.features()))?;
        pump(&mut device, 5)
    };
    Driver::hostile(3, 0, false, serve);
    Driver::hostile(3, 1, false, serve);
    Driver::hostile(3, 2, true, serve);
    let mut driver = Driver::new(3);
    driver.chain(0, 0, &[(BUFFERS, 1 << 20, 0)]);
    assert!(matches!(serve(driver), Err(DeviceError::Driver(_))));
}

#[test]
fn a_huge_page_stays_small_until_all_of_it_is_given() {
    let memory = crate::memory::map(16).unwrap();
    let base = memory.iter().next().unwrap().as_ptr() as usize;
    let mut small = BTreeSet::new();
    let mut give = |from: usize, to: usize| {
        size_pages(&memory, &mut small, base + from, base + to);
        small.iter().map(|page| (page - base) / HUGE_PAGE).collect::<Vec<_>>()
    };
    assert_eq!(give(0x1000, 0x2000), [0]);
    assert_eq!(give(0x4000, 0x8000), [0]);
    assert_eq!(give(HUGE_PAGE / 2, 2 * HUGE_PAGE + 0x1000), [0, 2]);
    assert_eq!(give(0, HUGE_PAGE), [2]);
    assert!(give(0, 16 << 20).is_empty());
    assert!(give(16 << 20, 18 << 20).is_empty(), "that is outside");
}
