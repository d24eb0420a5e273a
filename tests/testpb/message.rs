
use quick_protobuf::{MessageInfo, MessageRead, MessageWrite, BytesReader, Writer, WriterBackend, Result};
use quick_protobuf::sizeofs::*;
use super::*;

#[allow(clippy::derive_partial_eq_without_eq)]
#[derive(Debug, Default, PartialEq, Clone)]
pub struct Town {
    pub name: String,
    pub country: Option<String>,
    pub people: Option<u64>,
    pub twins: Vec<String>,
}

impl<'a> MessageRead<'a> for Town {
    fn from_reader(r: &mut BytesReader, bytes: &'a [u8]) -> Result<Self> {
        let mut msg = Self::default();
        while !r.is_eof() {
            match r.next_tag(bytes) {
                Ok(10) => msg.name = r.read_string(bytes)?.to_owned(),
                Ok(18) => msg.country = Some(r.read_string(bytes)?.to_owned()),
                Ok(24) => msg.people = Some(r.read_uint64(bytes)?),
                Ok(34) => msg.twins.push(r.read_string(bytes)?.to_owned()),
                Ok(t) => { r.read_unknown(bytes, t)?; }
                Err(e) => return Err(e),
            }
        }
        Ok(msg)
    }
}

impl MessageWrite for Town {
    fn get_size(&self) -> usize {
        0
        + 1 + sizeof_len((&self.name).len())
        + self.country.as_ref().map_or(0, |m| 1 + sizeof_len((m).len()))
        + self.people.as_ref().map_or(0, |m| 1 + sizeof_varint(*(m) as u64))
        + self.twins.iter().map(|s| 1 + sizeof_len((s).len())).sum::<usize>()
    }

    fn write_message<W: WriterBackend>(&self, w: &mut Writer<W>) -> Result<()> {
        w.write_with_tag(10, |w| w.write_string(&**&self.name))?;
        if let Some(ref s) = self.country { w.write_with_tag(18, |w| w.write_string(&**s))?; }
        if let Some(ref s) = self.people { w.write_with_tag(24, |w| w.write_uint64(*s))?; }
        for s in &self.twins { w.write_with_tag(34, |w| w.write_string(&**s))?; }
        Ok(())
    }
}

