//! What is read from and written to a connection, in memory that grows with the answers.

use std::fmt;

use ureq::unversioned::transport::Buffers;

/// The two buffers of one connection.
///
/// ureq's own are allocated at their full size, zeroed, for each connection: with 64 connections
/// to each of 10 peers that is 40 MiB and more. Here the output holds one request head, and the
/// input begins small and grows to [`INPUT_LARGE`] when an answer first fills it, so that peers
/// with small values cost little and those with large ones are read in few system calls.
#[derive(Default)]
pub(crate) struct ConnectionBuffers {
    output: Box<[u8]>,
    /// Its length is the size of the buffer; `consumed..filled` is what was read and not used.
    input: Vec<u8>,
    consumed: usize,
    filled: usize,
    /// Whether the last call of `input_consume` used anything. If not, what is there is too little
    /// for ureq to go on with, and it must read more.
    progress: bool,
    /// Whether the last read filled the buffer, so that more is probably waiting.
    was_filled: bool,
}

impl ConnectionBuffers {
    pub(crate) fn new() -> Self {
        ConnectionBuffers {
            output: vec![0; OUTPUT].into(),
            input: vec![0; INPUT_SMALL],
            consumed: 0,
            filled: 0,
            progress: false,
            was_filled: false,
        }
    }
}

impl Buffers for ConnectionBuffers {
    fn output(&mut self) -> &mut [u8] {
        &mut self.output
    }

    fn input(&self) -> &[u8] {
        &self.input[self.consumed..self.filled]
    }

    /// Where to read to. Empty only if [`INPUT_LARGE`] bytes are there that ureq cannot use yet.
    fn input_append_buf(&mut self) -> &mut [u8] {
        if self.consumed > 0 {
            self.input.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
        if self.was_filled || self.filled == self.input.len() {
            self.input.resize(INPUT_LARGE, 0);
            self.was_filled = false;
        }
        &mut self.input[self.filled..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.filled += amount;
        self.was_filled = self.filled == self.input.len();
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.consumed += amount;
        debug_assert!(self.consumed <= self.filled);
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        // ureq reads the body of a request into the first and encodes it into the second.
        self.input_append_buf();
        (&mut self.input[self.filled..], &mut self.output)
    }

    fn can_use_input(&self) -> bool {
        self.progress && self.consumed < self.filled
    }
}

impl fmt::Debug for ConnectionBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionBuffers")
            .field("input", &self.input.len())
            .finish_non_exhaustive()
    }
}

/// The size of the output, and with it of the longest line of a request: ureq writes a line as a
/// whole or not at all. A server of ours takes no head above 8 KiB.
pub(crate) const OUTPUT: usize = 8 * 1024;

const INPUT_SMALL: usize = 8 * 1024;

/// The most that is read at once.
pub(crate) const INPUT_LARGE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(buffers: &mut ConnectionBuffers, bytes: &[u8]) {
        buffers.input_append_buf()[..bytes.len()].copy_from_slice(bytes);
        buffers.input_appended(bytes.len());
    }

    #[test]
    fn what_is_not_consumed_stays() {
        let mut buffers = ConnectionBuffers::new();
        read(&mut buffers, b"head body");
        buffers.input_consume(5);
        assert_eq!(buffers.input(), b"body");
        assert!(buffers.can_use_input());
        buffers.input_consume(0);
        assert!(!buffers.can_use_input(), "too little to go on with");
        read(&mut buffers, b" more");
        assert_eq!(buffers.input(), b"body more");
    }

    #[test]
    fn a_filled_input_grows_to_the_largest_size_and_no_further() {
        let mut buffers = ConnectionBuffers::new();
        let mut taken = 0;
        loop {
            let room = buffers.input_append_buf().len();
            if room == 0 {
                break;
            }
            buffers.input_appended(room);
            taken += room;
        }
        assert_eq!(taken, INPUT_LARGE);
        buffers.input_consume(taken);
        assert_eq!(buffers.input_append_buf().len(), INPUT_LARGE);
    }

    #[test]
    fn small_answers_leave_the_input_small() {
        let mut buffers = ConnectionBuffers::new();
        for _ in 0..100 {
            read(&mut buffers, &[b'x'; 1000]);
            buffers.input_consume(1000);
        }
        assert_eq!(buffers.input_append_buf().len(), INPUT_SMALL);
    }
}
