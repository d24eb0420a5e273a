
use std::borrow::Cow;
use quick_protobuf::{MessageInfo, MessageRead, MessageWrite, BytesReader, Writer, WriterBackend, Result};
use quick_protobuf::sizeofs::*;
use super::*;

#[allow(clippy::derive_partial_eq_without_eq)]
#[derive(Debug, Default, PartialEq, Clone)]
pub struct GetRequest<'a> {
    pub group: Cow<'a, str>,
    pub key: Cow<'a, str>,
}

impl<'a> MessageRead<'a> for GetRequest<'a> {
    fn from_reader(r: &mut BytesReader, bytes: &'a [u8]) -> Result<Self> {
        let mut msg = Self::default();
        while !r.is_eof() {
            match r.next_tag(bytes) {
                Ok(10) => msg.group = r.read_string(bytes).map(Cow::Borrowed)?,
                Ok(18) => msg.key = r.read_string(bytes).map(Cow::Borrowed)?,
                Ok(t) => { r.read_unknown(bytes, t)?; }
                Err(e) => return Err(e),
            }
        }
        Ok(msg)
    }
}

impl<'a> MessageWrite for GetRequest<'a> {
    fn get_size(&self) -> usize {
        0
        + 1 + sizeof_len((&self.group).len())
        + 1 + sizeof_len((&self.key).len())
    }

    fn write_message<W: WriterBackend>(&self, w: &mut Writer<W>) -> Result<()> {
        w.write_with_tag(10, |w| w.write_string(&**&self.group))?;
        w.write_with_tag(18, |w| w.write_string(&**&self.key))?;
        Ok(())
    }
}

#[allow(clippy::derive_partial_eq_without_eq)]
#[derive(Debug, Default, PartialEq, Clone)]
pub struct GetResponse<'a> {
    pub value: Option<Cow<'a, [u8]>>,
    pub minute_qps: Option<f64>,
    pub expire: Option<i64>,
    pub ttl_nanos: Option<u64>,
    pub key_hash: Option<u64>,
    pub age_ms: Option<u64>,
    pub stale_ms: Option<u64>,
    pub removals: Option<u64>,
    pub load_micros: Option<u64>,
}

impl<'a> MessageRead<'a> for GetResponse<'a> {
    fn from_reader(r: &mut BytesReader, bytes: &'a [u8]) -> Result<Self> {
        let mut msg = Self::default();
        while !r.is_eof() {
            match r.next_tag(bytes) {
                Ok(10) => msg.value = Some(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(17) => msg.minute_qps = Some(r.read_double(bytes)?),
                Ok(24) => msg.expire = Some(r.read_int64(bytes)?),
                Ok(800) => msg.ttl_nanos = Some(r.read_uint64(bytes)?),
                Ok(809) => msg.key_hash = Some(r.read_fixed64(bytes)?),
                Ok(816) => msg.age_ms = Some(r.read_uint64(bytes)?),
                Ok(832) => msg.stale_ms = Some(r.read_uint64(bytes)?),
                Ok(849) => msg.removals = Some(r.read_fixed64(bytes)?),
                Ok(880) => msg.load_micros = Some(r.read_uint64(bytes)?),
                Ok(t) => { r.read_unknown(bytes, t)?; }
                Err(e) => return Err(e),
            }
        }
        Ok(msg)
    }
}

impl<'a> MessageWrite for GetResponse<'a> {
    fn get_size(&self) -> usize {
        0
        + self.value.as_ref().map_or(0, |m| 1 + sizeof_len((m).len()))
        + self.minute_qps.as_ref().map_or(0, |_| 1 + 8)
        + self.expire.as_ref().map_or(0, |m| 1 + sizeof_varint(*(m) as u64))
        + self.ttl_nanos.as_ref().map_or(0, |m| 2 + sizeof_varint(*(m) as u64))
        + self.key_hash.as_ref().map_or(0, |_| 2 + 8)
        + self.age_ms.as_ref().map_or(0, |m| 2 + sizeof_varint(*(m) as u64))
        + self.stale_ms.as_ref().map_or(0, |m| 2 + sizeof_varint(*(m) as u64))
        + self.removals.as_ref().map_or(0, |_| 2 + 8)
        + self.load_micros.as_ref().map_or(0, |m| 2 + sizeof_varint(*(m) as u64))
    }

    fn write_message<W: WriterBackend>(&self, w: &mut Writer<W>) -> Result<()> {
        if let Some(ref s) = self.value { w.write_with_tag(10, |w| w.write_bytes(&**s))?; }
        if let Some(ref s) = self.minute_qps { w.write_with_tag(17, |w| w.write_double(*s))?; }
        if let Some(ref s) = self.expire { w.write_with_tag(24, |w| w.write_int64(*s))?; }
        if let Some(ref s) = self.ttl_nanos { w.write_with_tag(800, |w| w.write_uint64(*s))?; }
        if let Some(ref s) = self.key_hash { w.write_with_tag(809, |w| w.write_fixed64(*s))?; }
        if let Some(ref s) = self.age_ms { w.write_with_tag(816, |w| w.write_uint64(*s))?; }
        if let Some(ref s) = self.stale_ms { w.write_with_tag(832, |w| w.write_uint64(*s))?; }
        if let Some(ref s) = self.removals { w.write_with_tag(849, |w| w.write_fixed64(*s))?; }
        if let Some(ref s) = self.load_micros { w.write_with_tag(880, |w| w.write_uint64(*s))?; }
        Ok(())
    }
}

#[allow(clippy::derive_partial_eq_without_eq)]
#[derive(Debug, Default, PartialEq, Clone)]
pub struct GetManyRequest<'a> {
    pub keys: Vec<Cow<'a, str>>,
    pub max_bytes: Option<u64>,
    pub load: Option<bool>,
    pub known: Option<Cow<'a, [u8]>>,
}

impl<'a> MessageRead<'a> for GetManyRequest<'a> {
    fn from_reader(r: &mut BytesReader, bytes: &'a [u8]) -> Result<Self> {
        let mut msg = Self::default();
        while !r.is_eof() {
            match r.next_tag(bytes) {
                Ok(802) => msg.keys.push(r.read_string(bytes).map(Cow::Borrowed)?),
                Ok(808) => msg.max_bytes = Some(r.read_uint64(bytes)?),
                Ok(816) => msg.load = Some(r.read_bool(bytes)?),
                Ok(826) => msg.known = Some(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(t) => { r.read_unknown(bytes, t)?; }
                Err(e) => return Err(e),
            }
        }
        Ok(msg)
    }
}

impl<'a> MessageWrite for GetManyRequest<'a> {
    fn get_size(&self) -> usize {
        0
        + self.keys.iter().map(|s| 2 + sizeof_len((s).len())).sum::<usize>()
        + self.max_bytes.as_ref().map_or(0, |m| 2 + sizeof_varint(*(m) as u64))
        + self.load.as_ref().map_or(0, |m| 2 + sizeof_varint(*(m) as u64))
        + self.known.as_ref().map_or(0, |m| 2 + sizeof_len((m).len()))
    }

    fn write_message<W: WriterBackend>(&self, w: &mut Writer<W>) -> Result<()> {
        for s in &self.keys { w.write_with_tag(802, |w| w.write_string(&**s))?; }
        if let Some(ref s) = self.max_bytes { w.write_with_tag(808, |w| w.write_uint64(*s))?; }
        if let Some(ref s) = self.load { w.write_with_tag(816, |w| w.write_bool(*s))?; }
        if let Some(ref s) = self.known { w.write_with_tag(826, |w| w.write_bytes(&**s))?; }
        Ok(())
    }
}

#[allow(clippy::derive_partial_eq_without_eq)]
#[derive(Debug, Default, PartialEq, Clone)]
pub struct GetManyResponse<'a> {
    pub keyed_values: Vec<Cow<'a, [u8]>>,
    pub found: Option<Cow<'a, [u8]>>,
    pub ttl_nanos: Vec<u64>,
    pub age_ms: Vec<u64>,
    pub errors: Vec<Cow<'a, [u8]>>,
    pub removals: Option<Cow<'a, [u8]>>,
    pub minute_qps: Option<Cow<'a, [u8]>>,
    pub stale_ms: Option<Cow<'a, [u8]>>,
}

impl<'a> MessageRead<'a> for GetManyResponse<'a> {
    fn from_reader(r: &mut BytesReader, bytes: &'a [u8]) -> Result<Self> {
        let mut msg = Self::default();
        while !r.is_eof() {
            match r.next_tag(bytes) {
                Ok(826) => msg.keyed_values.push(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(810) => msg.found = Some(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(816) => msg.ttl_nanos.push(r.read_uint64(bytes)?),
                Ok(832) => msg.age_ms.push(r.read_uint64(bytes)?),
                Ok(842) => msg.errors.push(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(850) => msg.removals = Some(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(858) => msg.minute_qps = Some(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(866) => msg.stale_ms = Some(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(t) => { r.read_unknown(bytes, t)?; }
                Err(e) => return Err(e),
            }
        }
        Ok(msg)
    }
}

impl<'a> MessageWrite for GetManyResponse<'a> {
    fn get_size(&self) -> usize {
        0
        + self.keyed_values.iter().map(|s| 2 + sizeof_len((s).len())).sum::<usize>()
        + self.found.as_ref().map_or(0, |m| 2 + sizeof_len((m).len()))
        + self.ttl_nanos.iter().map(|s| 2 + sizeof_varint(*(s) as u64)).sum::<usize>()
        + self.age_ms.iter().map(|s| 2 + sizeof_varint(*(s) as u64)).sum::<usize>()
        + self.errors.iter().map(|s| 2 + sizeof_len((s).len())).sum::<usize>()
        + self.removals.as_ref().map_or(0, |m| 2 + sizeof_len((m).len()))
        + self.minute_qps.as_ref().map_or(0, |m| 2 + sizeof_len((m).len()))
        + self.stale_ms.as_ref().map_or(0, |m| 2 + sizeof_len((m).len()))
    }

    fn write_message<W: WriterBackend>(&self, w: &mut Writer<W>) -> Result<()> {
        for s in &self.keyed_values { w.write_with_tag(826, |w| w.write_bytes(&**s))?; }
        if let Some(ref s) = self.found { w.write_with_tag(810, |w| w.write_bytes(&**s))?; }
        for s in &self.ttl_nanos { w.write_with_tag(816, |w| w.write_uint64(*s))?; }
        for s in &self.age_ms { w.write_with_tag(832, |w| w.write_uint64(*s))?; }
        for s in &self.errors { w.write_with_tag(842, |w| w.write_bytes(&**s))?; }
        if let Some(ref s) = self.removals { w.write_with_tag(850, |w| w.write_bytes(&**s))?; }
        if let Some(ref s) = self.minute_qps { w.write_with_tag(858, |w| w.write_bytes(&**s))?; }
        if let Some(ref s) = self.stale_ms { w.write_with_tag(866, |w| w.write_bytes(&**s))?; }
        Ok(())
    }
}

#[allow(clippy::derive_partial_eq_without_eq)]
#[derive(Debug, Default, PartialEq, Clone)]
pub struct SetRequest<'a> {
    pub group: Cow<'a, str>,
    pub key: Cow<'a, str>,
    pub value: Option<Cow<'a, [u8]>>,
    pub expire: Option<i64>,
    pub ttl_nanos: Option<u64>,
    pub removal_id: Option<u64>,
    pub removals: Option<u64>,
}

impl<'a> MessageRead<'a> for SetRequest<'a> {
    fn from_reader(r: &mut BytesReader, bytes: &'a [u8]) -> Result<Self> {
        let mut msg = Self::default();
        while !r.is_eof() {
            match r.next_tag(bytes) {
                Ok(10) => msg.group = r.read_string(bytes).map(Cow::Borrowed)?,
                Ok(18) => msg.key = r.read_string(bytes).map(Cow::Borrowed)?,
                Ok(26) => msg.value = Some(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(32) => msg.expire = Some(r.read_int64(bytes)?),
                Ok(800) => msg.ttl_nanos = Some(r.read_uint64(bytes)?),
                Ok(809) => msg.removal_id = Some(r.read_fixed64(bytes)?),
                Ok(817) => msg.removals = Some(r.read_fixed64(bytes)?),
                Ok(t) => { r.read_unknown(bytes, t)?; }
                Err(e) => return Err(e),
            }
        }
        Ok(msg)
    }
}

impl<'a> MessageWrite for SetRequest<'a> {
    fn get_size(&self) -> usize {
        0
        + 1 + sizeof_len((&self.group).len())
        + 1 + sizeof_len((&self.key).len())
        + self.value.as_ref().map_or(0, |m| 1 + sizeof_len((m).len()))
        + self.expire.as_ref().map_or(0, |m| 1 + sizeof_varint(*(m) as u64))
        + self.ttl_nanos.as_ref().map_or(0, |m| 2 + sizeof_varint(*(m) as u64))
        + self.removal_id.as_ref().map_or(0, |_| 2 + 8)
        + self.removals.as_ref().map_or(0, |_| 2 + 8)
    }

    fn write_message<W: WriterBackend>(&self, w: &mut Writer<W>) -> Result<()> {
        w.write_with_tag(10, |w| w.write_string(&**&self.group))?;
        w.write_with_tag(18, |w| w.write_string(&**&self.key))?;
        if let Some(ref s) = self.value { w.write_with_tag(26, |w| w.write_bytes(&**s))?; }
        if let Some(ref s) = self.expire { w.write_with_tag(32, |w| w.write_int64(*s))?; }
        if let Some(ref s) = self.ttl_nanos { w.write_with_tag(800, |w| w.write_uint64(*s))?; }
        if let Some(ref s) = self.removal_id { w.write_with_tag(809, |w| w.write_fixed64(*s))?; }
        if let Some(ref s) = self.removals { w.write_with_tag(817, |w| w.write_fixed64(*s))?; }
        Ok(())
    }
}

#[allow(clippy::derive_partial_eq_without_eq)]
#[derive(Debug, Default, PartialEq, Clone)]
pub struct RemoveKeysRequest<'a> {
    pub group: Cow<'a, str>,
    pub keys: Vec<Cow<'a, str>>,
    pub removal_id: Option<u64>,
    pub unless_applied: Option<Cow<'a, [u8]>>,
}

impl<'a> MessageRead<'a> for RemoveKeysRequest<'a> {
    fn from_reader(r: &mut BytesReader, bytes: &'a [u8]) -> Result<Self> {
        let mut msg = Self::default();
        while !r.is_eof() {
            match r.next_tag(bytes) {
                Ok(10) => msg.group = r.read_string(bytes).map(Cow::Borrowed)?,
                Ok(18) => msg.keys.push(r.read_string(bytes).map(Cow::Borrowed)?),
                Ok(801) => msg.removal_id = Some(r.read_fixed64(bytes)?),
                Ok(810) => msg.unless_applied = Some(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(t) => { r.read_unknown(bytes, t)?; }
                Err(e) => return Err(e),
            }
        }
        Ok(msg)
    }
}

impl<'a> MessageWrite for RemoveKeysRequest<'a> {
    fn get_size(&self) -> usize {
        0
        + 1 + sizeof_len((&self.group).len())
        + self.keys.iter().map(|s| 1 + sizeof_len((s).len())).sum::<usize>()
        + self.removal_id.as_ref().map_or(0, |_| 2 + 8)
        + self.unless_applied.as_ref().map_or(0, |m| 2 + sizeof_len((m).len()))
    }

    fn write_message<W: WriterBackend>(&self, w: &mut Writer<W>) -> Result<()> {
        w.write_with_tag(10, |w| w.write_string(&**&self.group))?;
        for s in &self.keys { w.write_with_tag(18, |w| w.write_string(&**s))?; }
        if let Some(ref s) = self.removal_id { w.write_with_tag(801, |w| w.write_fixed64(*s))?; }
        if let Some(ref s) = self.unless_applied { w.write_with_tag(810, |w| w.write_bytes(&**s))?; }
        Ok(())
    }
}

#[allow(clippy::derive_partial_eq_without_eq)]
#[derive(Debug, Default, PartialEq, Clone)]
pub struct ClearRequest<'a> {
    pub group: Cow<'a, str>,
    pub removal_id: Option<u64>,
}

impl<'a> MessageRead<'a> for ClearRequest<'a> {
    fn from_reader(r: &mut BytesReader, bytes: &'a [u8]) -> Result<Self> {
        let mut msg = Self::default();
        while !r.is_eof() {
            match r.next_tag(bytes) {
                Ok(10) => msg.group = r.read_string(bytes).map(Cow::Borrowed)?,
                Ok(801) => msg.removal_id = Some(r.read_fixed64(bytes)?),
                Ok(t) => { r.read_unknown(bytes, t)?; }
                Err(e) => return Err(e),
            }
        }
        Ok(msg)
    }
}

impl<'a> MessageWrite for ClearRequest<'a> {
    fn get_size(&self) -> usize {
        0
        + 1 + sizeof_len((&self.group).len())
        + self.removal_id.as_ref().map_or(0, |_| 2 + 8)
    }

    fn write_message<W: WriterBackend>(&self, w: &mut Writer<W>) -> Result<()> {
        w.write_with_tag(10, |w| w.write_string(&**&self.group))?;
        if let Some(ref s) = self.removal_id { w.write_with_tag(801, |w| w.write_fixed64(*s))?; }
        Ok(())
    }
}

#[allow(clippy::derive_partial_eq_without_eq)]
#[derive(Debug, Default, PartialEq, Clone)]
pub struct RemovalTable<'a> {
    pub group: Cow<'a, str>,
    pub clocks: Option<Cow<'a, [u8]>>,
    pub applied: Option<Cow<'a, [u8]>>,
}

impl<'a> MessageRead<'a> for RemovalTable<'a> {
    fn from_reader(r: &mut BytesReader, bytes: &'a [u8]) -> Result<Self> {
        let mut msg = Self::default();
        while !r.is_eof() {
            match r.next_tag(bytes) {
                Ok(10) => msg.group = r.read_string(bytes).map(Cow::Borrowed)?,
                Ok(802) => msg.clocks = Some(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(810) => msg.applied = Some(r.read_bytes(bytes).map(Cow::Borrowed)?),
                Ok(t) => { r.read_unknown(bytes, t)?; }
                Err(e) => return Err(e),
            }
        }
        Ok(msg)
    }
}

impl<'a> MessageWrite for RemovalTable<'a> {
    fn get_size(&self) -> usize {
        0
        + 1 + sizeof_len((&self.group).len())
        + self.clocks.as_ref().map_or(0, |m| 2 + sizeof_len((m).len()))
        + self.applied.as_ref().map_or(0, |m| 2 + sizeof_len((m).len()))
    }

    fn write_message<W: WriterBackend>(&self, w: &mut Writer<W>) -> Result<()> {
        w.write_with_tag(10, |w| w.write_string(&**&self.group))?;
        if let Some(ref s) = self.clocks { w.write_with_tag(802, |w| w.write_bytes(&**s))?; }
        if let Some(ref s) = self.applied { w.write_with_tag(810, |w| w.write_bytes(&**s))?; }
        Ok(())
    }
}

