//! Disk images in the format qcow2, as far as volumes need it: written without compression or backing file, and read
//! ([`read`]) with every number in it distrusted.
//!
//! Source: docs/interop/qcow2.txt of QEMU. All numbers are big-endian.

mod read;

pub(super) use read::{Image, MAGIC};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// Bits and bytes of a cluster that is written.
const BITS: u32 = 16;
const CLUSTER: u64 = 1 << BITS;
/// Entries of a table of clusters, of eight bytes each; counts of references have two.
const ENTRIES: u64 = CLUSTER / 8;
const COUNTS: u64 = CLUSTER / 2;
/// In an entry: the cluster is this image's alone.
const COPIED: u64 = 1 << 63;

/// Writes the clusters of `disk` that hold something, in one pass.
pub(super) fn write(disk: &File, size: u64, out: &mut dyn Write) -> io::Result<()> {
    let used = used_clusters(disk, size)?;
    // Tables for which there is nothing are left out.
    let tables = used_tables(&used);
    let plan = Plan::of(size, tables.len() as u64, used.iter().map(|(_, count)| count).sum());
    out.write_all(&plan.header(size))?;
    // Where the blocks of counts are, and the counts: one for each cluster of the image.
    table(out, plan.blocks, plan.table, |n| (plan.first_block() + n) * CLUSTER)?;
    for n in 0..plan.blocks * COUNTS {
        out.write_all(&u16::from(n < plan.total).to_be_bytes())?;
    }
    table(out, plan.l1_entries, plan.l1, |n| match tables.binary_search(&n) {
        Ok(at) => COPIED | ((plan.first_table() + at as u64) * CLUSTER),
        Err(_) => 0,
    })?;
    let mut next = plan.first_table() + tables.len() as u64;
    for number in &tables {
        let mut entries = vec![0u8; CLUSTER as usize];
        for (first, count) in &used {
            for cluster in (*first).max(number * ENTRIES)..(first + count).min((number + 1) * ENTRIES) {
                let at = ((cluster % ENTRIES) * 8) as usize;
                if let Some(entry) = entries.get_mut(at..at + 8) {
                    entry.copy_from_slice(&(COPIED | (next * CLUSTER)).to_be_bytes());
                }
                next += 1;
            }
        }
        out.write_all(&entries)?;
    }
    let mut buffer = vec![0; CLUSTER as usize];
    for (first, count) in &used {
        for cluster in *first..first + count {
            let at = cluster * CLUSTER;
            let length = (size - at).min(CLUSTER) as usize;
            let (piece, rest) = buffer.split_at_mut(length);
            disk.read_exact_at(piece, at)?;
            rest.fill(0);
            out.write_all(&buffer)?;
        }
    }
    out.flush()
}

/// Runs of clusters that hold data: first, count.
fn used_clusters(disk: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    super::transfer::data_ranges(disk, size, |start, end| {
        let (first, end) = (start / CLUSTER, end.div_ceil(CLUSTER));
        match runs.last_mut() {
            Some((last, count)) if *last + *count >= first => *count = (*count).max(end - *last),
            _ => runs.push((first, end - first)),
        }
        Ok(())
    })?;
    Ok(runs)
}

/// The numbers of the tables that have an entry.
fn used_tables(used: &[(u64, u64)]) -> Vec<u64> {
    let mut tables: Vec<u64> =
        used.iter().flat_map(|(first, count)| first / ENTRIES..=(first + count - 1) / ENTRIES).collect();
    tables.dedup();
    tables
}

/// Where what lies, in clusters: header, table of counts, blocks of counts, first table, second tables, data.
struct Plan {
    table: u64,
    blocks: u64,
    l1: u64,
    l1_entries: u64,
    total: u64,
}

impl Plan {
    fn of(size: u64, tables: u64, data: u64) -> Self {
        let l1_entries = size.div_ceil(CLUSTER * ENTRIES);
        let l1 = l1_entries.div_ceil(ENTRIES).max(1);
        let mut plan = Self { table: 1, blocks: 1, l1, l1_entries, total: 0 };
        // Counts are needed of the counts, too.
        loop {
            plan.total = 1 + plan.table + plan.blocks + l1 + tables + data;
            let blocks = plan.total.div_ceil(COUNTS);
            let table = blocks.div_ceil(ENTRIES);
            if blocks <= plan.blocks && table <= plan.table {
                return plan;
            }
            (plan.blocks, plan.table) = (plan.blocks.max(blocks), plan.table.max(table));
        }
    }

    fn first_block(&self) -> u64 {
        1 + self.table
    }

    fn first_table(&self) -> u64 {
        self.first_block() + self.blocks + self.l1
    }

    fn header(&self, size: u64) -> Vec<u8> {
        let mut header = Vec::with_capacity(CLUSTER as usize);
        let long = |header: &mut Vec<u8>, n: u64| header.extend(n.to_be_bytes());
        let short = |header: &mut Vec<u8>, n: u64| header.extend((n as u32).to_be_bytes());
        header.extend(MAGIC);
        short(&mut header, 3);
        // No backing file.
        long(&mut header, 0);
        short(&mut header, 0);
        short(&mut header, BITS.into());
        long(&mut header, size);
        // Not encrypted.
        short(&mut header, 0);
        short(&mut header, self.l1_entries);
        long(&mut header, (self.first_block() + self.blocks) * CLUSTER);
        long(&mut header, CLUSTER);
        short(&mut header, self.table);
        // No snapshots; no features.
        short(&mut header, 0);
        for _ in 0..4 {
            long(&mut header, 0);
        }
        // Counts of 1 << 4 bits; the header's length.
        short(&mut header, 4);
        short(&mut header, 104);
        header.resize(CLUSTER as usize, 0);
        header
    }
}

/// A table of so many entries in so many clusters.
fn table(out: &mut dyn Write, entries: u64, clusters: u64, entry: impl Fn(u64) -> u64) -> io::Result<()> {
    for n in 0..clusters * ENTRIES {
        out.write_all(&if n < entries { entry(n) } else { 0 }.to_be_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::read::COMPRESSED;
    use super::*;
    use std::process::Command;

    fn image(size: u64, pieces: &[(u64, &[u8])]) -> (File, File) {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(size).unwrap();
        for (at, bytes) in pieces {
            disk.write_all_at(bytes, *at).unwrap();
        }
        let mut image = tempfile::tempfile().unwrap();
        write(&disk, size, &mut image).unwrap();
        (disk, image)
    }

    fn read_back(image: &File) -> io::Result<File> {
        let image = Image::open(image, 1 << 44)?;
        let back = tempfile::tempfile()?;
        back.set_len(image.size)?;
        image.read(|at, bytes| back.write_all_at(bytes, at))?;
        Ok(back)
    }

    fn same(a: &File, b: &File, at: u64) {
        let (mut x, mut y) = (vec![0; 200_000], vec![1; 200_000]);
        let n = a.read_at(&mut x, at).unwrap();
        assert_eq!(n, b.read_at(&mut y, at).unwrap());
        assert!(x[..n] == y[..n], "at {at}");
    }

    #[test]
    fn what_is_written_is_read_again_and_by_qemu() {
        let size = (3 << 30) + (1 << 20);
        let far = size - 5000;
        let (disk, image) =
            image(size, &[(0, b"first"), (70_000, &[7; 100_000]), (1 << 30, b"mid"), (far, b"last")]);
        assert!(image.metadata().unwrap().len() < 2 << 20);
        let back = read_back(&image).unwrap();
        for at in [0, 70_000, 1 << 30, far] {
            same(&disk, &back, at);
        }
        let checked = Command::new("qemu-img").arg("check").arg("/proc/self/fd/0").stdin(image).output();
        if let Ok(out) = checked {
            let said =
                String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success() || out.status.code() == Some(3), "{said}");
        }
    }

    #[test]
    fn images_that_lead_elsewhere_or_grow_without_bound_are_refused() {
        let (_, image) = image(1 << 30, &[(0, b"x"), (1 << 20, b"y")]);
        let refused = |at: u64, bytes: &[u8], said: &str| {
            let mut old = vec![0; bytes.len()];
            image.read_exact_at(&mut old, at).unwrap();
            image.write_all_at(bytes, at).unwrap();
            let e = read_back(&image).unwrap_err().to_string();
            assert!(e.contains(said), "{at}: {e}");
            image.write_all_at(&old, at).unwrap();
        };
        refused(8, &4096u64.to_be_bytes(), "backing file");
        refused(32, &1u32.to_be_bytes(), "encrypted");
        refused(72, &4u64.to_be_bytes(), "features");
        refused(20, &63u32.to_be_bytes(), "impossible size");
        refused(24, &u64::MAX.to_be_bytes(), "larger than");
        refused(36, &0u32.to_be_bytes(), "too short");
        refused(0, b"QFIx", "no qcow2");
        let plan = Plan::of(1 << 30, 1, 2);
        let (l1, l2) = ((plan.first_block() + plan.blocks) * CLUSTER, plan.first_table() * CLUSTER);
        refused(l1, &(1u64 << 40).to_be_bytes(), "outside");
        refused(l2, &(COMPRESSED | 512).to_be_bytes(), "compressed");
        // Every cluster of the disk is the same one of the image.
        let same: Vec<u8> = (0..ENTRIES).flat_map(|_| (COPIED | l2).to_be_bytes()).collect();
        refused(l2, &same, "more than once");
        read_back(&image).unwrap();
    }

    #[test]
    fn nonsense_does_no_harm() {
        let (_, image) = image(1 << 24, &[(0, b"x")]);
        let mut bytes = vec![0; 400 << 10];
        let length = image.read_at(&mut bytes, 0).unwrap();
        for seed in 0..400u64 {
            let mut bytes = bytes[..length].to_vec();
            for k in 0..4 {
                let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(13 * k) ^ seed;
                let at = if k < 2 { random as usize % 104 } else { random as usize % length };
                bytes[at] = (random >> 32) as u8;
            }
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            if let Ok(image) = Image::open(&file, 1 << 44) {
                let _ = image.read(|_, _| Ok(()));
            }
        }
    }
}
