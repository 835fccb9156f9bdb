//! ACPI tables of a hardware-reduced machine: vCPUs, the I/O APIC, COM1, virtio-mmio devices, power off and reset.
//!
//! Source: ACPI 6.5, chapters 4.1 and 5.2; the id LNRO0005 is the one of Linux' virtio_mmio driver.

use super::{layout, ports};
use acpi_tables::aml::{self, Name, Path, ResourceTemplate};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::{Aml, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};

const OEM: [u8; 6] = *b"DHOW  ";
const TABLE: [u8; 8] = *b"DHOWVM  ";

/// FADT's IAPC_BOOT_ARCH: no VGA, no CMOS clock.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// All tables, to be written at [`layout::ACPI`]; the RSDP comes first.
pub fn tables(vcpus: u8, devices: usize) -> Vec<u8> {
    let mut rest = Vec::new();
    let first = layout::ACPI + (Rsdp::len() as u64).next_multiple_of(16);
    let mut place = |table: &[u8]| {
        let address = first + rest.len() as u64;
        rest.extend(table);
        rest.resize(rest.len().next_multiple_of(16), 0);
        address
    };
    let dsdt = place(dsdt(devices).as_slice());
    let fadt = place(&bytes(&fadt(dsdt)));
    let madt = place(&bytes(&madt(vcpus)));
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&bytes(&xsdt));

    let mut all = bytes(&Rsdp::new(OEM, xsdt));
    all.resize(all.len().next_multiple_of(16), 0);
    all.extend(rest);
    all
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.sleep_control_reg = port(ports::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(ports::SLEEP_STATUS);
    fadt.reset_reg = port(ports::RESET);
    fadt.reset_value = ports::RESET_VALUE;
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(layout::LAPIC));
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt
}

fn dsdt(devices: usize) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, 1);
    let mut body = Vec::new();
    com1(&mut body);
    for index in 0..devices {
        virtio(index, &mut body);
    }
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&ports::S5, &aml::ZERO])).to_aml_bytes(&mut body);
    dsdt.append_slice(&body);
    dsdt
}

fn com1(body: &mut Vec<u8>) {
    let ports = aml::IO::new(ports::COM1, ports::COM1, 1, 8);
    let line = aml::Interrupt::new(true, true, false, false, layout::COM1_GSI);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &line]));
    let id = Name::new("_HID".into(), &aml::EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &0u32);
    aml::Device::new(Path::new("\\_SB_.COM1"), vec![&id, &uid, &resources]).to_aml_bytes(body);
}

fn virtio(index: usize, body: &mut Vec<u8>) {
    let (window, line) = layout::device(index);
    let window = aml::Memory32Fixed::new(true, window as u32, layout::MMIO_WINDOW as u32);
    let line = aml::Interrupt::new(true, true, false, false, line);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&window, &line]));
    let id = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &(index as u32));
    let coherent = Name::new("_CCA".into(), &aml::ONE);
    let path = Path::new(&format!("\\_SB_.V{index:03}"));
    aml::Device::new(path, vec![&id, &uid, &coherent, &resources]).to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at this guest address, checked.
    fn table(all: &[u8], address: u64) -> &[u8] {
        let bytes = &all[(address - layout::ACPI) as usize..];
        let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        assert_eq!(sum(&bytes[..length]), 0, "checksum of {:?}", &bytes[..4]);
        &bytes[..length]
    }

    #[test]
    fn every_table_is_reachable_and_its_checksum_right() {
        for (vcpus, devices) in [(1, 0), (2, 3), (layout::MAX_VCPUS, layout::MAX_DEVICES)] {
            let all = tables(vcpus, devices);
            assert_eq!(&all[..8], b"RSD PTR ");
            assert_eq!((sum(&all[..20]), sum(&all[..36])), (0, 0));
            assert!(layout::ACPI + (all.len() as u64) < layout::RESET_VECTOR);

            let xsdt = table(&all, u64_at(&all, 24));
            let fadt = table(&all, u64_at(xsdt, 36));
            let madt = table(&all, u64_at(xsdt, 44));
            let dsdt = table(&all, u64_at(fadt, 140));
            assert_eq!((&xsdt[..4], &fadt[..4]), (&b"XSDT"[..], &b"FACP"[..]));
            assert_eq!((&madt[..4], &dsdt[..4]), (&b"APIC"[..], &b"DSDT"[..]));
            assert_eq!(madt.len(), 44 + 12 + 8 * vcpus as usize);
            assert_eq!(dsdt.windows(8).filter(|w| w == b"LNRO0005").count(), devices);
        }
    }
}
