//! The file that keeps the entries of a group over a restart.
//!
//! ```text
//!   header    at offset 0: what the entries are, and when they were written
//!   block     at each next multiple of 4 KiB: up to 64 KiB of entries, or one larger entry
//!   …
//! ```
//!
//! - `header`, `entries`: the header and the entries, as bytes. `bytes`: their fields.
//! - `blocks`: writes the blocks, and finds the intact ones of a file, whatever lies between them.
//! - `uptime`: the time since the boot, which shows how long ago a dump was written.
//! - `file`: writes a file so that a crash leaves the old one or the new one.
//!
//! All numbers are little-endian, and no type depends on the size of a word, so a file can be read on
//! another machine. A reader believes no number before a checksum has confirmed it.

mod blocks;
mod bytes;
mod entries;
mod file;
mod header;
#[cfg(test)]
mod tests;
mod uptime;

pub(crate) use blocks::{BlockReader, BlockWriter};
pub(crate) use entries::DumpedEntry;
pub(crate) use file::{SyncedWriter, write_atomically};
pub(crate) use header::DumpHeader;
pub(crate) use uptime::Uptime;

/// A dump for the fuzz targets, with an entry for each value.
#[cfg(larder_fuzz)]
pub(crate) fn of_values(values: &[&[u8]]) -> Vec<u8> {
    let header = DumpHeader {
        group: "group".into(),
        schema: 0,
        boot_id: String::new(),
        since_boot: 0,
        unix_nanos: 0,
        removals: Vec::new(),
    };
    let mut writer = BlockWriter::new(Vec::new(), &header).expect("memory");
    for value in values {
        let entry = DumpedEntry {
            key: "key",
            value,
            age: None,
            ttl: None,
        };
        writer.push(&entry).expect("memory");
    }
    writer.finish().expect("memory").0
}
