//! The header of a dump.

use super::bytes::{FieldReader, push_long};
use crate::checksum::checksum;
use crate::error::{Error, ErrorKind, Result};

/// The origin of the entries of a dump, and the time at which they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DumpHeader {
    /// The name of the group.
    pub(crate) group: String,
    /// The program's own number of the form of its values.
    pub(crate) schema: u64,
    /// Which boot of which machine wrote the dump; empty if it is not known.
    pub(crate) boot_id: String,
    /// The time since that boot, in nanoseconds.
    pub(crate) since_boot: u64,
    /// The wall clock, in nanoseconds since 1970.
    pub(crate) unix_nanos: u64,
    /// The removals that the process had applied, as the group encodes them.
    pub(crate) removals: Vec<u8>,
}

impl DumpHeader {
    /// The bytes of the header.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        push_long(&mut fields, self.group.as_bytes());
        fields.extend_from_slice(&self.schema.to_le_bytes());
        push_long(&mut fields, self.boot_id.as_bytes());
        fields.extend_from_slice(&self.since_boot.to_le_bytes());
        fields.extend_from_slice(&self.unix_nanos.to_le_bytes());
        push_long(&mut fields, &self.removals);
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&(fields.len() as u32).to_le_bytes());
        header.extend_from_slice(&checksum(SEED, &fields).to_le_bytes());
        header.extend_from_slice(&fields);
        header
    }

    /// Reads the header at the start of `bytes`, which are [`MAX_HEADER`] bytes of the file, or all.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidDump`] if there is none, or it was changed.
    pub(crate) fn decode(bytes: &[u8]) -> Result<DumpHeader> {
        let refuse = |why: &str| Error::new(ErrorKind::InvalidDump, format!("not a dump: {why}"));
        let mut fields = FieldReader(bytes);
        match fields.bytes(MAGIC.len()) {
            Some(magic) if magic == MAGIC => {}
            Some(magic) if magic.starts_with(&MAGIC[..7]) => {
                return Err(refuse("another version of the format"));
            }
            _ => return Err(refuse("the file does not begin like one")),
        }
        let damaged = || refuse("its header is damaged");
        let len = fields.u32().ok_or_else(damaged)?;
        let sum = fields.u64().ok_or_else(damaged)?;
        let body = usize::try_from(len).ok().and_then(|len| fields.bytes(len));
        let body = body.filter(|body| checksum(SEED, body) == sum);
        DumpHeader::decode_fields(FieldReader(body.ok_or_else(damaged)?)).ok_or_else(damaged)
    }

    fn decode_fields(mut fields: FieldReader<'_>) -> Option<DumpHeader> {
        Some(DumpHeader {
            group: fields.text()?.to_owned(),
            schema: fields.u64()?,
            boot_id: fields.text()?.to_owned(),
            since_boot: fields.u64()?,
            unix_nanos: fields.u64()?,
            removals: fields.long()?.to_vec(),
        })
    }
}

/// The last byte is the version.
const MAGIC: &[u8; 8] = b"larder\0\x02";

/// The longest header: the removals take up to 106 KiB.
pub(super) const MAX_HEADER: usize = 128 << 10;

const SEED: u64 = u64::MAX;
