//! Destinations of values: a getter fills one, and `Group::get_into` fills the caller's.

pub(crate) mod message;

use std::time::Duration;

use crate::byteview::ByteView;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::message::{ProtoDecode, ProtoMessage};

/// Receives a value.
///
/// A getter receives a sink to fill. `Group::get_into` fills the caller's sink. An implementation
/// needs only [`set_bytes`](Self::set_bytes). If it panics, the panic propagates to the caller of
/// `get_into`, and the value stays cached.
///
/// A getter sets exactly one value. Its sink refuses a second one with [`ErrorKind::SetTwice`].
pub trait Sink {
    /// Takes a copy of `value`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Sink`] if the destination cannot hold such a value;
    /// [`ErrorKind::ValueTooLarge`] if it is over the group's limit.
    fn set_bytes(&mut self, value: &[u8]) -> Result<()>;

    /// Takes a copy of `value`.
    ///
    /// # Errors
    ///
    /// As for [`set_bytes`](Self::set_bytes).
    fn set_str(&mut self, value: &str) -> Result<()> {
        self.set_bytes(value.as_bytes())
    }

    /// Takes the encoded `message`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Sink`] if the message cannot be encoded; else as
    /// [`set_bytes`](Self::set_bytes).
    fn set_proto(&mut self, message: &dyn ProtoMessage) -> Result<()> {
        let encoded = message
            .encode()
            .map_err(|e| Error::with_source(ErrorKind::Sink, "the message cannot be encoded", e))?;
        self.set_bytes(&encoded)
    }

    /// Takes a view, sharing its bytes where the destination can hold a view.
    ///
    /// # Errors
    ///
    /// As for [`set_bytes`](Self::set_bytes).
    fn set_view(&mut self, value: &ByteView) -> Result<()> {
        self.set_bytes(value)
    }

    /// Takes a view that the caller does not need any more, without a change of its reference count where
    /// the destination can hold a view. By default this calls [`set_view`](Self::set_view).
    ///
    /// # Errors
    ///
    /// As for [`set_bytes`](Self::set_bytes).
    fn take_view(&mut self, value: ByteView) -> Result<()> {
        self.set_view(&value)
    }

    /// Sets how long the value may be cached, counted from the start of the load. A group's
    /// `time_to_live` can only shorten it. Getters may call this before or after they set the value.
    /// Destinations of callers ignore it. `Duration::MAX` means no limit.
    fn expire_in(&mut self, ttl: Duration) {
        let _ = ttl;
    }

    /// Sets the etag of the value: a text by which the getter recognises it in a later load, by
    /// [`Context::etag`](crate::Context::etag), such as an `ETag` of HTTP or the version of a row. It is
    /// kept beside the value and counts against the capacity. Best set before the value, which saves a
    /// copy. Longer ones than 1,024 bytes are not kept. Destinations of callers ignore it.
    fn set_etag(&mut self, etag: &str) {
        let _ = etag;
    }

    /// Sets the value that [`Context::stale`](crate::Context::stale) returns, which has not changed. No
    /// byte is copied. Its time to live starts again, at the start of this load. It is as long as before,
    /// unless [`expire_in`](Self::expire_in) sets another one. The etag stays, unless another one is set.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NothingSet`] if there is no such value; [`ErrorKind::Sink`] for destinations of
    /// callers.
    fn not_modified(&mut self) -> Result<()> {
        Err(Error::new(
            ErrorKind::Sink,
            "this destination has no old value",
        ))
    }
}

/// The methods of a sink that forwards values to another sink.
macro_rules! forward {
    ($self:ident => $to:expr) => {
        fn set_bytes(&mut $self, value: &[u8]) -> Result<()> {
            $to.set_bytes(value)
        }

        fn set_str(&mut $self, value: &str) -> Result<()> {
            $to.set_str(value)
        }

        fn set_proto(&mut $self, message: &dyn ProtoMessage) -> Result<()> {
            $to.set_proto(message)
        }

        fn set_view(&mut $self, value: &ByteView) -> Result<()> {
            $to.set_view(value)
        }

        fn take_view(&mut $self, value: ByteView) -> Result<()> {
            $to.take_view(value)
        }

        fn expire_in(&mut $self, ttl: Duration) {
            $to.expire_in(ttl);
        }

        fn set_etag(&mut $self, etag: &str) {
            $to.set_etag(etag);
        }

        fn not_modified(&mut $self) -> Result<()> {
            $to.not_modified()
        }
    };
}

impl<S: Sink + ?Sized> Sink for &mut S {
    forward!(self => (**self));
}

/// Replaces the vector's contents and reuses its allocation.
impl Sink for Vec<u8> {
    fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
        self.clear();
        self.extend_from_slice(value);
        Ok(())
    }
}

/// Replaces the text; refuses bytes that are not UTF-8.
impl Sink for String {
    fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(value)
            .map_err(|e| Error::with_source(ErrorKind::Sink, "the value is not UTF-8", e))?;
        self.set_str(text)
    }

    fn set_str(&mut self, value: &str) -> Result<()> {
        self.clear();
        self.push_str(value);
        Ok(())
    }
}

/// Becomes a view of the cached bytes. [`set_view`](Sink::set_view) copies nothing.
impl Sink for ByteView {
    fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
        *self = ByteView::from(value);
        Ok(())
    }

    fn set_view(&mut self, value: &ByteView) -> Result<()> {
        self.take_view(value.clone())
    }

    fn take_view(&mut self, value: ByteView) -> Result<()> {
        *self = value;
        Ok(())
    }
}

macro_rules! sink_around {
    ($(#[$doc:meta])* $name:ident($dest:ty)) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<'a>(&'a mut $dest);

        impl<'a> $name<'a> {
            /// A sink that fills `dest`.
            pub fn new(dest: &'a mut $dest) -> Self {
                $name(dest)
            }
        }

        impl Sink for $name<'_> {
            forward!(self => self.0);
        }
    };
}

sink_around!(
    /// Fills a `String`; refuses values that are not UTF-8 with [`ErrorKind::Sink`].
    StringSink(String)
);

sink_around!(
    /// Fills a [`ByteView`] with a view of the cached bytes.
    ByteViewSink(ByteView)
);

sink_around!(
    /// Fills a `Vec<u8>` with a copy of the value, which the caller may change.
    AllocatingByteSliceSink(Vec<u8>)
);

/// Copies as much of the value as fits into a slice, and shrinks the slice to what was copied.
///
/// ```
/// use larder::{Sink, TruncatingByteSliceSink};
///
/// let mut buffer = [0_u8; 8];
/// let mut slice = &mut buffer[..];
/// TruncatingByteSliceSink::new(&mut slice).set_str("short")?;
/// assert_eq!(slice, b"short");
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Debug)]
pub struct TruncatingByteSliceSink<'a, 'b>(&'a mut &'b mut [u8]);

impl<'a, 'b> TruncatingByteSliceSink<'a, 'b> {
    /// A sink that fills `dest` and shrinks it to fit.
    pub fn new(dest: &'a mut &'b mut [u8]) -> Self {
        TruncatingByteSliceSink(dest)
    }
}

impl Sink for TruncatingByteSliceSink<'_, '_> {
    fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
        let n = value.len().min(self.0.len());
        let whole = std::mem::take(self.0);
        let (filled, _) = whole.split_at_mut(n);
        filled.copy_from_slice(&value[..n]);
        *self.0 = filled;
        Ok(())
    }
}

/// Decodes the value as a protobuf message. If the value does not decode, the sink refuses it with
/// [`ErrorKind::Sink`], and the destination does not change.
#[derive(Debug)]
pub struct ProtoSink<'a, M>(&'a mut M);

impl<'a, M: ProtoDecode> ProtoSink<'a, M> {
    /// A sink that decodes into `dest`.
    pub fn new(dest: &'a mut M) -> Self {
        ProtoSink(dest)
    }
}

impl<M: ProtoDecode> Sink for ProtoSink<'_, M> {
    fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
        *self.0 = M::decode(value)
            .map_err(|e| Error::with_source(ErrorKind::Sink, "the value is not this message", e))?;
        Ok(())
    }
}

/// Decodes the value as a JSON document. If the value does not parse, the sink refuses it with
/// [`ErrorKind::Sink`], and the destination does not change.
#[cfg(feature = "json")]
#[derive(Debug)]
pub struct JsonSink<'a, T>(&'a mut T);

#[cfg(feature = "json")]
impl<'a, T: serde::de::DeserializeOwned> JsonSink<'a, T> {
    /// A sink that decodes into `dest`.
    pub fn new(dest: &'a mut T) -> Self {
        JsonSink(dest)
    }
}

#[cfg(feature = "json")]
impl<T: serde::de::DeserializeOwned> Sink for JsonSink<'_, T> {
    fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
        *self.0 = serde_json::from_slice(value)
            .map_err(|e| Error::with_source(ErrorKind::Sink, "the value is not this JSON", e))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setter_fills_the_destination() {
        let mut text = String::from("old");
        StringSink::new(&mut text).set_bytes(b"new").unwrap();
        assert_eq!(text, "new");

        let mut bytes = vec![1, 2, 3, 4];
        AllocatingByteSliceSink::new(&mut bytes)
            .set_str("ab")
            .unwrap();
        assert_eq!(bytes, b"ab");

        let mut view = ByteView::new();
        let value = ByteView::from("shared");
        ByteViewSink::new(&mut view).set_view(&value).unwrap();
        assert_eq!(
            view.as_ptr(),
            value.as_ptr(),
            "a view is shared, not copied"
        );
    }

    #[test]
    fn string_refuses_invalid_utf8_and_keeps_its_text() {
        let mut text = String::from("old");
        let error = text.set_bytes(&[0xff]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Sink);
        assert_eq!(text, "old");
    }

    #[test]
    fn truncating_sink_shrinks_to_a_shorter_value_and_cuts_a_longer_one() {
        for (value, want) in [("ab", "ab"), ("abcd", "abcd"), ("abcdef", "abcd"), ("", "")] {
            let mut buffer = [b'.'; 4];
            let mut slice = &mut buffer[..];
            TruncatingByteSliceSink::new(&mut slice)
                .set_str(value)
                .unwrap();
            assert_eq!(slice, want.as_bytes());
        }
    }

    #[test]
    fn sink_needs_only_set_bytes() {
        struct Count(usize);
        impl Sink for Count {
            fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
                self.0 += value.len();
                Ok(())
            }
        }
        let mut count = Count(0);
        let sink: &mut dyn Sink = &mut count;
        sink.set_str("abc").unwrap();
        sink.set_view(&ByteView::from("de")).unwrap();
        sink.take_view(ByteView::from("f")).unwrap();
        sink.expire_in(Duration::from_secs(1));
        assert_eq!(count.0, 6);
    }

    #[cfg(feature = "json")]
    #[test]
    fn json_sink_decodes_or_refuses() {
        let mut list: Vec<u32> = vec![9];
        JsonSink::new(&mut list).set_str("[1,2]").unwrap();
        assert_eq!(list, [1, 2]);
        let error = JsonSink::new(&mut list).set_str("{}").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Sink);
        assert_eq!(list, [1, 2]);
    }
}
