use super::*;
use crate::devices::balloon::Balloon;
use crate::devices::testing::{Registers as _, page};
use proptest::prelude::*;
use std::sync::Mutex;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// A device that notes what is done to it.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    activations: Vec<(u64, Vec<bool>)>,
    resets: usize,
    fail: bool,
    held: Option<Activation>,
}

const FEATURE: u64 = 1 << 5;

impl Device for Recorder {
    fn kind(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn features(&self) -> u64 {
        FEATURE
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(if offset < 4 { 7 } else { 0 });
    }
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let mut log = self.0.lock().unwrap();
        log.activations.push((activation.features, activation.queues.iter().map(QueueT::ready).collect()));
        log.held = Some(activation);
        Ok(())
    }
    fn reset(&mut self) {
        let mut log = self.0.lock().unwrap();
        log.resets += 1;
        log.held = None;
    }
    fn interests(&self) -> Vec<Interest> {
        vec![Interest { fd: 0, events: 1, token: 3 }]
    }
    fn command(&mut self, command: Command) -> Result<bool, DeviceError> {
        Ok(command == Command::TakeSize)
    }
    fn ready(&mut self, _token: u64, _events: u32) -> Result<(), DeviceError> {
        match self.0.lock().unwrap().fail {
            true => Err(DeviceError::Driver("told to fail".into())),
            false => Ok(()),
        }
    }
}

fn transport() -> (Transport, Recorder) {
    let memory = Memory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let recorder = Recorder::default();
    (Transport::new(Box::new(recorder.clone()), memory, page()).unwrap(), recorder)
}

fn negotiate(transport: &mut Transport, features: u64) {
    transport.set(0x70, 0);
    transport.set(0x70, 1);
    transport.set(0x70, 3);
    for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
        transport.set(0x24, select);
        transport.set(0x20, half);
    }
    transport.set(0x70, 11);
}

fn set_up_queue(transport: &mut Transport, index: u32, at: u32) {
    transport.set(0x30, index);
    transport.set(0x38, 8);
    for (register, address) in [(0x80, at), (0x90, at + 0x100), (0xa0, at + 0x200)] {
        transport.set(register, address);
        transport.set(register + 4, 0);
    }
    transport.set(0x44, 1);
}

#[test]
fn a_driver_finds_negotiates_and_starts_the_device() {
    let (mut transport, recorder) = transport();
    assert_eq!(transport.get(0), 0x7472_6976);
    assert_eq!((transport.get(4), transport.get(8)), (2, 42));
    transport.set(0x14, 1);
    assert_eq!(transport.get(0x10), 1, "VERSION_1");
    negotiate(&mut transport, VERSION_1 | FEATURE);
    assert_eq!(transport.get(0x70), 11);
    set_up_queue(&mut transport, 1, 0x4000);
    assert_eq!((transport.get(0x34), transport.get(0x44)), (8, 1));
    assert!(transport.interests().is_empty(), "not before DRIVER_OK");
    transport.set(0x70, 15);
    assert_eq!(transport.get(0x70), 15);
    assert_eq!(recorder.0.lock().unwrap().activations, [(VERSION_1 | FEATURE, vec![false, true])]);
    assert_eq!(transport.interests().len(), 1);
    assert_eq!(transport.get(0x100), 0x0707_0707);
}

#[test]
fn features_that_are_not_offered_are_not_accepted() {
    for features in [FEATURE, VERSION_1 | 1 << 6, 0, u64::MAX] {
        let (mut transport, recorder) = transport();
        negotiate(&mut transport, features);
        assert_eq!(transport.get(0x70), 3, "{features:#x}");
        transport.set(0x70, 7);
        assert!(recorder.0.lock().unwrap().activations.is_empty());
    }
}

#[test]
fn a_queue_outside_memory_needs_a_reset() {
    let (mut transport, recorder) = transport();
    negotiate(&mut transport, VERSION_1);
    set_up_queue(&mut transport, 0, (1 << 20) - 0x200);
    transport.set(0x70, 15);
    assert_eq!(transport.get(0x70), 15 | 0x40);
    assert_eq!(transport.get(0x60), 2, "told by an interrupt");
    assert!(recorder.0.lock().unwrap().activations.is_empty());
    transport.set(0x70, 0);
    assert_eq!((transport.get(0x70), transport.get(0x60)), (0, 0));
}

#[test]
fn an_error_stops_the_device_until_its_reset() {
    let (mut transport, recorder) = transport();
    negotiate(&mut transport, VERSION_1);
    transport.set(0x70, 15);
    recorder.0.lock().unwrap().fail = true;
    transport.ready(3, 1);
    assert_eq!(transport.get(0x70), 15 | 0x40);
    assert!(transport.interests().is_empty());
    transport.set(0x70, 0);
    recorder.0.lock().unwrap().fail = false;
    assert_eq!(recorder.0.lock().unwrap().resets, 1);
    negotiate(&mut transport, VERSION_1);
    transport.set(0x70, 15);
    assert_eq!(recorder.0.lock().unwrap().activations.len(), 2);
    assert_eq!(transport.get(0x70), 15);
}

#[test]
fn interrupts_are_raised_and_acknowledged() {
    let (mut transport, recorder) = transport();
    negotiate(&mut transport, VERSION_1);
    transport.set(0x70, 15);
    let interrupt = recorder.0.lock().unwrap().held.as_ref().unwrap().interrupt.clone();
    interrupt.queue(0);
    interrupt.config();
    assert_eq!(transport.line().read().unwrap(), 2);
    assert_eq!((transport.get(0x60), transport.get(0xfc)), (3, 1));
    transport.set(0x64, 1);
    assert_eq!(transport.get(0x60), 2);
    // A disk that has grown is a change of its configuration, and what it does not know is none.
    transport.set(0x64, 2);
    assert!(!transport.command(Command::Balloon(1)));
    assert_eq!(transport.get(0x60), 0);
    assert!(transport.command(Command::TakeSize));
    assert_eq!((transport.get(0x60), transport.get(0xfc)), (2, 2));
}

#[test]
fn a_configuration_is_shown_when_it_is_told_of() {
    let memory = Memory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let mut transport = Transport::new(Box::<Balloon>::default(), memory, page()).unwrap();
    assert!(transport.command(Command::Balloon(1)));
    assert_eq!((transport.get(0x60), transport.get(0xfc), transport.get(0x100)), (2, 1, 256));
    transport.set(0x104, 7);
    assert_eq!(transport.get(0x104), 7);
}

#[test]
fn only_the_beginning_and_the_end_are_the_devices() {
    let (mut transport, recorder) = transport();
    let mut write = |value: u32| {
        let deferred = transport.write(0x70, &value.to_le_bytes());
        let status = transport.get(0x70);
        (deferred.map(|deferred| transport.carry_out(deferred)).is_some(), status)
    };
    assert_eq!([0, 1, 3].map(&mut write), [(false, 0), (false, 1), (false, 3)]);
    assert_eq!(write(7), (true, 3), "without features it does not begin");
    assert_eq!(write(0), (false, 0));
    negotiate(&mut transport, VERSION_1);
    let mut write = |value: u32| {
        let deferred = transport.write(0x70, &value.to_le_bytes());
        deferred.map(|deferred| transport.carry_out(deferred)).is_some()
    };
    assert_eq!([15, 15 | 0x80, 0, 0].map(&mut write), [true, true, true, false]);
    assert_eq!(recorder.0.lock().unwrap().resets, 1);
}

#[test]
fn queues_do_not_change_under_a_running_device() {
    let (mut transport, _) = transport();
    negotiate(&mut transport, VERSION_1);
    set_up_queue(&mut transport, 0, 0x4000);
    transport.set(0x70, 15);
    transport.set(0x30, 0);
    transport.set(0x44, 0);
    assert_eq!(transport.get(0x44), 1);
}

proptest! {
    /// Whatever a guest does to the registers, the device is active only after a negotiation, and nothing panics.
    #[test]
    fn random_accesses_do_no_harm(
        accesses in prop::collection::vec(
            (prop_oneof![0u64..0x200, any::<u64>()], any::<bool>(), prop_oneof![0u32..16, any::<u32>()], 0usize..9), 0..300)
    ) {
        let (mut transport, recorder) = transport();
        for (offset, writes, value, width) in accesses {
            let mut data = [value.to_le_bytes(), value.to_le_bytes(), [0; 4]].concat()[..width].to_vec();
            match writes {
                true => {
                    if let Some(deferred) = transport.write(offset, &data) {
                        transport.carry_out(deferred);
                    }
                }
                false => transport.page().read(offset, &mut data),
            }
        }
        for (features, _) in &recorder.0.lock().unwrap().activations {
            prop_assert_eq!(features & !(VERSION_1 | FEATURE), 0);
            prop_assert!(features & VERSION_1 != 0);
        }
    }
}
