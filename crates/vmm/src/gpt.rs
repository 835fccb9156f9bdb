//! Layout of a disk that holds files as the partitions of a GUID partition table, without writing such a disk.
//!
//! ```text
//! 0        protective MBR, header, entries      head
//! 1 MiB    file 1, zeros up to the next MiB     partition 1
//! …
//! end      entries, backup header               tail
//! ```
//!
//! Only `head` and `tail` are bytes; who serves the disk reads the rest from the files. Nothing here does I/O.
//!
//! Source: UEFI Specification 2.10, chapter 5.

/// Bytes per sector of the disk.
pub const SECTOR: u64 = 512;

/// Partitions begin at multiples of this.
pub const ALIGNMENT: u64 = 1 << 20;

/// Linux gives a disk 255 partitions at most (DISK_MAX_PARTS).
pub const MAX_PARTITIONS: usize = 255;

/// Bytes of an entry of the table.
const ENTRY: usize = 128;

/// "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4.
const LINUX_DATA: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

/// Why files cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No file at all.
    #[error("a disk of partitions needs at least one file")]
    None,
    /// More than [`MAX_PARTITIONS`].
    #[error("a disk can have {MAX_PARTITIONS} partitions, not {0}")]
    TooMany(usize),
    /// A file without bytes cannot be a partition.
    #[error("the file of partition {0} is empty")]
    Empty(usize),
    /// The sum of the sizes is beyond what can be addressed.
    #[error("the files of the partitions are too large for one disk")]
    TooLarge,
}

/// Where a file lies on the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// First byte, a multiple of [`ALIGNMENT`].
    pub offset: u64,
    /// Bytes of the file. The partition ends at the next multiple of [`SECTOR`].
    pub size: u64,
}

/// The disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The disk's first bytes.
    pub head: Vec<u8>,
    /// The files, in the order in which they were given. What lies between them is zeros.
    pub partitions: Vec<Partition>,
    /// The disk's last bytes.
    pub tail: Vec<u8>,
    /// Size of the whole disk, a multiple of [`ALIGNMENT`].
    pub size: u64,
}

impl Layout {
    /// Lays out files of these sizes (bytes). The same sizes always give the same bytes.
    pub fn of(sizes: &[u64]) -> Result<Self, LayoutError> {
        match sizes.len() {
            0 => return Err(LayoutError::None),
            n if n > MAX_PARTITIONS => return Err(LayoutError::TooMany(n)),
            _ => {}
        }
        let mut partitions = Vec::with_capacity(sizes.len());
        let mut end = ALIGNMENT;
        for (index, &size) in sizes.iter().enumerate() {
            if size == 0 {
                return Err(LayoutError::Empty(index + 1));
            }
            partitions.push(Partition { offset: end, size });
            end = end
                .checked_add(size)
                .and_then(|end| end.checked_next_multiple_of(ALIGNMENT))
                .filter(|&end| end <= i64::MAX as u64 - ALIGNMENT)
                .ok_or(LayoutError::TooLarge)?;
        }
        let size = end + ALIGNMENT;
        let entries = entries(&partitions);
        let table = Table { sectors: size / SECTOR, entries: &entries };

        let mut room = entries.clone();
        room.resize(table.room(), 0);
        let mut head = protective_mbr(table.sectors);
        head.extend(table.header(Copy::Primary));
        head.extend(&room);
        let mut tail = room;
        tail.extend(table.header(Copy::Backup));
        Ok(Self { head, partitions, tail, size })
    }

    /// First byte of [`Self::tail`] on the disk.
    pub fn tail_offset(&self) -> u64 {
        self.size - self.tail.len() as u64
    }
}

/// Bytes that the specification has reserved for entries, at least.
const ROOM: usize = 128 * ENTRY;

/// The array of entries, padded to whole sectors. No more of them: a kernel reads and checks all, page by page, of both copies.
fn entries(partitions: &[Partition]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, partition) in partitions.iter().enumerate() {
        let first = partition.offset / SECTOR;
        let last = first + partition.size.div_ceil(SECTOR) - 1;
        bytes.extend(LINUX_DATA);
        bytes.extend(guid(index as u16 + 1));
        bytes.extend(first.to_le_bytes());
        bytes.extend(last.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.resize((index + 1) * ENTRY, 0); // no name
    }
    let count = partitions.len().next_multiple_of(SECTOR as usize / ENTRY);
    bytes.resize(count * ENTRY, 0);
    bytes
}

/// A GUID of version 8 (RFC 9562): ours, and the same each time. 0 is the disk's own.
fn guid(number: u16) -> [u8; 16] {
    let mut guid = *b"dhowdis\x80\x80partsn\0";
    guid[14..].copy_from_slice(&number.to_be_bytes());
    guid
}

/// One partition of type 0xee over the whole disk, so that old tools keep off.
fn protective_mbr(sectors: u64) -> Vec<u8> {
    let mut mbr = vec![0; SECTOR as usize];
    let length = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    mbr[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
    mbr[458..462].copy_from_slice(&length.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

enum Copy {
    Primary,
    Backup,
}

struct Table<'a> {
    sectors: u64,
    entries: &'a [u8],
}

impl Table<'_> {
    /// Bytes of the disk where the entries are.
    fn room(&self) -> usize {
        self.entries.len().max(ROOM)
    }

    /// The header's sector (UEFI 5.3.2).
    fn header(&self, copy: Copy) -> Vec<u8> {
        let last = self.sectors - 1;
        let table = self.room() as u64 / SECTOR;
        let (own, other, entries) = match copy {
            Copy::Primary => (1, last, 2),
            Copy::Backup => (last, 1, last - table),
        };
        let mut header = Vec::with_capacity(SECTOR as usize);
        header.extend(b"EFI PART");
        header.extend(0x0001_0000u32.to_le_bytes());
        header.extend(92u32.to_le_bytes());
        header.extend([0; 8]); // checksum, reserved
        header.extend(u64::to_le_bytes(own));
        header.extend(u64::to_le_bytes(other));
        header.extend((2 + table).to_le_bytes());
        header.extend((last - table - 1).to_le_bytes());
        header.extend(guid(0));
        header.extend(u64::to_le_bytes(entries));
        header.extend(((self.entries.len() / ENTRY) as u32).to_le_bytes());
        header.extend((ENTRY as u32).to_le_bytes());
        header.extend(crc32fast::hash(self.entries).to_le_bytes());
        let checksum = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        header.resize(SECTOR as usize, 0);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The disk's sector, from head, tail or zeros.
    fn sector(layout: &Layout, lba: u64) -> Vec<u8> {
        let at = lba * SECTOR;
        let part = |bytes: &[u8], from: u64| bytes[(at - from) as usize..][..SECTOR as usize].to_vec();
        if at < layout.head.len() as u64 {
            part(&layout.head, 0)
        } else if at >= layout.tail_offset() {
            part(&layout.tail, layout.tail_offset())
        } else {
            vec![0; SECTOR as usize]
        }
    }

    fn check_header(layout: &Layout, lba: u64) {
        let header = sector(layout, lba);
        assert_eq!(&header[..8], b"EFI PART");
        let mut zeroed = header[..92].to_vec();
        zeroed[16..20].fill(0);
        assert_eq!(u32_at(&header, 16), crc32fast::hash(&zeroed));
        assert_eq!(u64_at(&header, 24), lba);
        let count = u32_at(&header, 80) as u64;
        let table: Vec<u8> = (0..count * ENTRY as u64 / SECTOR)
            .flat_map(|n| sector(layout, u64_at(&header, 72) + n))
            .collect();
        assert_eq!(u32_at(&header, 88), crc32fast::hash(&table));
        let (first, last) = (u64_at(&header, 40), u64_at(&header, 48));
        for (index, partition) in layout.partitions.iter().enumerate() {
            let entry = &table[index * ENTRY..][..ENTRY];
            assert_eq!(u64_at(entry, 32) * SECTOR, partition.offset);
            assert!(u64_at(entry, 32) >= first && u64_at(entry, 40) <= last);
            assert_eq!(u64_at(entry, 40) + 1 - u64_at(entry, 32), partition.size.div_ceil(SECTOR));
        }
    }

    #[test]
    fn a_disk_of_one_byte_is_three_mebibytes() {
        let layout = Layout::of(&[1]).unwrap();
        assert_eq!(layout.partitions, [Partition { offset: ALIGNMENT, size: 1 }]);
        assert_eq!(layout.size, 3 * ALIGNMENT);
        assert_eq!(&layout.head[510..512], [0x55, 0xaa]);
        assert_eq!(layout.head[450], 0xee);
        check_header(&layout, 1);
        check_header(&layout, layout.size / SECTOR - 1);
    }

    #[test]
    fn what_cannot_be_laid_out_is_refused() {
        assert_eq!(Layout::of(&[]), Err(LayoutError::None));
        assert_eq!(Layout::of(&[5, 0]), Err(LayoutError::Empty(2)));
        assert_eq!(Layout::of(&[u64::MAX]), Err(LayoutError::TooLarge));
        assert_eq!(Layout::of(&[1 << 62, 1 << 62]), Err(LayoutError::TooLarge));
        assert_eq!(Layout::of(&[1; 256]), Err(LayoutError::TooMany(256)));
        assert!(Layout::of(&[1; 255]).is_ok());
    }

    proptest! {
        #[test]
        fn both_tables_hold_and_nothing_overlaps(sizes in prop::collection::vec(1u64..1 << 40, 1..=MAX_PARTITIONS)) {
            let layout = Layout::of(&sizes).unwrap();
            check_header(&layout, 1);
            check_header(&layout, layout.size / SECTOR - 1);
            let mut free = layout.head.len() as u64;
            for partition in &layout.partitions {
                prop_assert!(partition.offset >= free && partition.offset % ALIGNMENT == 0);
                free = partition.offset + partition.size;
            }
            prop_assert!(free <= layout.tail_offset());
        }
    }
}
