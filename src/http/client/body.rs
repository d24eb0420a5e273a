//! The body of a peer's answer, read into the allocation that its value will live in.

use std::io::Read;

use crate::shared_bytes::SharedBytes;

/// A body, in the allocation that it arrived in.
pub(crate) enum Bytes {
    Shared(SharedBytes),
    Grown(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Shared(bytes) => bytes,
            Bytes::Grown(bytes) => bytes,
        }
    }
}

/// Reads a body to its end, which also gives its connection back.
///
/// A short body of known length is read right into the allocation that the value will live in.
/// Other bodies grow as they arrive: a peer cannot make us allocate by announcing.
pub(crate) fn read_body(
    mut body: impl Read,
    length: Option<u64>,
    max: u64,
) -> Result<Bytes, String> {
    if length.is_some_and(|length| length > max) {
        return Err(TOO_LONG.into());
    }
    let failed = |error: std::io::Error| format!("the answer broke off: {error}");
    let read = match length.and_then(|length| usize::try_from(length).ok()) {
        Some(length) if length <= MAX_TRUSTED => {
            let mut shared = SharedBytes::zeros(length);
            // Nobody else has it yet.
            let read = shared.fill(|room| body.read_exact(room));
            read.ok_or("the body is shared")?.map_err(failed)?;
            Bytes::Shared(shared)
        }
        _ => {
            let mut grown = Vec::new();
            let allowed = length.unwrap_or(max);
            body.by_ref()
                .take(allowed)
                .read_to_end(&mut grown)
                .map_err(failed)?;
            if length.is_some_and(|length| grown.len() as u64 != length) {
                return Err("the answer is shorter than it announced".into());
            }
            Bytes::Grown(grown)
        }
    };
    match body.read(&mut [0]).map_err(failed)? {
        0 => Ok(read),
        _ => Err(TOO_LONG.into()),
    }
}

/// The longest body that is given its memory before it arrives.
const MAX_TRUSTED: usize = 1024 * 1024;

pub(crate) const TOO_LONG: &str = "the answer is longer than max_value_size allows";
