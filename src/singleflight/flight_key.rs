//! The key of a flight.

/// A key whose bytes lie here if it is short.
pub(super) struct FlightKey {
    /// The length of a short key.
    len: u8,
    short: [u8; MAX_SHORT],
    /// A key that is not short.
    long: Option<Box<str>>,
}

/// The longest short key, in bytes.
pub(super) const MAX_SHORT: usize = 64;

impl Default for FlightKey {
    fn default() -> FlightKey {
        FlightKey {
            len: 0,
            short: [0; MAX_SHORT],
            long: None,
        }
    }
}

impl FlightKey {
    /// Sets the key of a new flight. The last one has been [cleared](Self::clear).
    #[inline]
    pub(super) fn set(&mut self, key: &str) {
        match self.short.get_mut(..key.len()) {
            Some(short) => {
                short.copy_from_slice(key.as_bytes());
                self.len = key.len() as u8;
            }
            None => self.long = Some(key.into()),
        }
    }

    /// Frees the memory of a long key.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.long = None;
    }

    #[inline]
    pub(super) fn is(&self, key: &str) -> bool {
        match &self.long {
            Some(long) => **long == *key,
            None => self.short[..usize::from(self.len)] == *key.as_bytes(),
        }
    }

    /// Whether the key has memory of its own.
    #[cfg(all(test, not(larder_loom)))]
    pub(super) fn is_allocated(&self) -> bool {
        self.long.is_some()
    }
}
