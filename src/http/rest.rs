//! The body of an answer whose head ureq has read, taken from the connection to where it stays.
//!
//! ureq would copy every piece of it once more, and look at each line of 16 bytes, for a log that is
//! off. So where the head leaves no question how long the body is, and that another request can
//! follow, ureq is made to let go of the connection, and the rest is read here.

use std::cell::Cell;
use std::io::{self, Read};

use ureq::Body;

use crate::http::exchange::{DIRECT, broke_off};
use crate::http::tcp::Exchange;

/// A body of known length. Dropped before its end, it closes the connection.
pub(crate) struct Rest {
    /// `None` once the body is over, or has failed.
    exchange: Option<Exchange>,
    left: u64,
}

impl Rest {
    /// The body with this length, which is not 0; `None` if the connection cannot be had.
    pub(crate) fn of(body: Body, length: u64) -> Option<Rest> {
        LEFT.with(|left| left.set(Left::Wanted));
        // With it goes ureq's handle of the connection, on this thread: see `leave`.
        drop(body);
        match LEFT.with(|left| left.replace(Left::Nothing)) {
            Left::Here(exchange) => Some(Rest {
                exchange: Some(exchange),
                left: length,
            }),
            Left::Nothing | Left::Wanted => None,
        }
    }
}

/// Ureq has let go of an exchange that is not over.
pub(crate) fn leave(exchange: Exchange) {
    // While the thread ends nobody wants it, and there is no place for it.
    let _ = LEFT.try_with(|left| match left.take() {
        Left::Wanted => left.set(Left::Here(exchange)),
        other => left.set(other),
    });
}

#[derive(Default)]
enum Left {
    #[default]
    Nothing,
    Wanted,
    Here(Exchange),
}

thread_local! {
    static LEFT: Cell<Left> = const { Cell::new(Left::Nothing) };
}

impl Read for Rest {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        if room == 0 {
            return Ok(0);
        }
        let exchange = self.exchange.as_mut().ok_or_else(broke_off)?;
        // For short pieces a read each would cost more than the copy.
        let to_its_place = room as u64 == self.left || room >= DIRECT;
        match exchange.read(&mut into[..room], to_its_place) {
            Ok(0) => {
                self.exchange = None;
                Err(broke_off())
            }
            Ok(taken) => {
                self.left -= taken as u64;
                if let Some(over) = self.exchange.take_if(|_| self.left == 0) {
                    over.end();
                }
                Ok(taken)
            }
            Err(error) => {
                self.exchange = None;
                Err(error)
            }
        }
    }
}
