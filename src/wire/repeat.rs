//! Heads that repeat: on one connection most differ from the one before in one place only, and what
//! was read of that one holds for them too.
//!
//! A peer asks for one key after the other, with the same lines around each; answers differ in their
//! length. To compare a head with the one before costs less than to read it.

use std::ops::Range;

/// The last head that can come again, and what was read of it.
pub(crate) struct Repeat<T> {
    /// Without what was in the hole.
    head: Vec<u8>,
    /// Where the part begins that may differ.
    hole: usize,
    read: Option<T>,
}

impl<T> Repeat<T> {
    pub(crate) fn new() -> Self {
        Repeat {
            head: Vec::new(),
            hole: 0,
            read: None,
        }
    }

    /// Keeps `head` and what was read of it, which has to hold whatever is in the hole, as long as
    /// the `filling` of [`find`](Self::find) lets it pass.
    ///
    /// Of a long head nothing is kept, so that a connection at rest takes little memory.
    pub(crate) fn keep(&mut self, head: &[u8], hole: Range<usize>, read: T) {
        self.head.clear();
        self.read = None;
        if head.len() - hole.len() <= LONGEST {
            self.head.extend_from_slice(&head[..hole.start]);
            self.head.extend_from_slice(&head[hole.end..]);
            self.hole = hole.start;
            self.read = Some(read);
        }
    }

    /// What was read of the head that was kept.
    pub(crate) fn read(&self) -> Option<&T> {
        self.read.as_ref()
    }

    /// Whether `bytes` begin with the head that was kept, but for the hole: what was read of it,
    /// where the hole is in `bytes`, and how long the head is.
    ///
    /// `filling` gets the bytes from the hole on, and tells how many of them fill it.
    pub(crate) fn find(
        &self,
        bytes: &[u8],
        filling: impl FnOnce(&[u8]) -> Option<usize>,
    ) -> Option<(&T, Range<usize>, usize)> {
        let read = self.read()?;
        let (before, after) = self.head.split_at(self.hole);
        let rest = bytes.strip_prefix(before)?;
        let filled = filling(rest)?;
        rest[filled..].starts_with(after).then(|| {
            let hole = before.len()..before.len() + filled;
            (read, hole, filled + self.head.len())
        })
    }
}

/// Holds the heads of peers.
const LONGEST: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn digits(bytes: &[u8]) -> Option<usize> {
        bytes.iter().position(|byte| !byte.is_ascii_digit())
    }

    #[test]
    fn a_head_is_found_whatever_is_in_its_hole_and_whatever_follows_it() {
        let mut last = Repeat::new();
        assert!(last.find(b"length: 5;", digits).is_none());
        last.keep(b"length: 5;", 8..9, "read");
        for (bytes, found) in [
            ("length: 5;", Some((8..9, 10))),
            ("length: 123;length: 4;", Some((8..11, 12))),
            ("length: ;", Some((8..8, 9))),
            ("length: 123", None),
            ("length: 5 ;", None),
            ("length: x;", None),
            ("Length: 5;", None),
            ("", None),
        ] {
            let found = found.map(|(hole, len)| (&"read", hole, len));
            assert_eq!(last.find(bytes.as_bytes(), digits), found, "{bytes}");
        }
    }

    #[test]
    fn nothing_is_kept_of_a_long_head() {
        let mut last = Repeat::new();
        last.keep(b"length: 5;", 8..9, ());
        let long = [b'x'; LONGEST + 1];
        last.keep(&long, 0..0, ());
        assert!(last.find(&long, digits).is_none());
        assert!(last.find(b"length: 5;", digits).is_none());
    }
}
