//! Protobuf messages as values, behind traits that are independent of the protobuf library.

use quick_protobuf::{BytesReader, MessageRead, MessageWrite, Writer};

use crate::error::BoxError;

/// A message that can be encoded, for [`Sink::set_proto`](crate::Sink::set_proto).
///
/// Every message that pb-rs generates implements it. Implement it by hand for messages of another
/// protobuf library.
pub trait ProtoMessage {
    /// The encoded message.
    ///
    /// # Errors
    ///
    /// If the message cannot be encoded.
    fn encode(&self) -> Result<Vec<u8>, BoxError>;
}

impl<M: MessageWrite> ProtoMessage for M {
    fn encode(&self) -> Result<Vec<u8>, BoxError> {
        let mut bytes = Vec::with_capacity(self.get_size());
        self.write_message(&mut Writer::new(&mut bytes))?;
        Ok(bytes)
    }
}

/// A message that a [`ProtoSink`](crate::ProtoSink) can decode a value into.
///
/// Every message that pb-rs generates without a lifetime implements it: messages of numbers, and
/// messages with strings or bytes generated with `--dont_use_cow`. For a message that borrows from
/// the encoded bytes, get a [`ByteView`](crate::ByteView) and decode from it.
///
/// quick-protobuf recurses into nested messages without a limit. Decode recursive message types only
/// from values that your own getter made.
pub trait ProtoDecode: Sized {
    /// Decodes all of `bytes` as one message.
    ///
    /// # Errors
    ///
    /// If `bytes` is not such a message.
    fn decode(bytes: &[u8]) -> Result<Self, BoxError>;
}

impl<M: for<'a> MessageRead<'a>> ProtoDecode for M {
    fn decode(bytes: &[u8]) -> Result<Self, BoxError> {
        let mut reader = BytesReader::from_bytes(bytes);
        Ok(M::from_reader(&mut reader, bytes)?)
    }
}
