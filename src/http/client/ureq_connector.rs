//! A connection to a peer as ureq uses it: two system calls a request, and a deadline that holds
//! for all of them together.
//!
//! The deadline is not ureq's. For a time-out of its own it would work out at every step what is left,
//! and to be told of another than its agent's it has its whole configuration copied. So it has none,
//! and everything that waits does so here.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::time::Instant;

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::http::client::exchange::{MAX_LINE, Refusal};
use crate::http::client::peer_connection::{Exchange, PeerConnection};
use crate::http::client::take_back;

/// Gives ureq the connection that it is to use.
///
/// ureq's own pool is turned off: it hands out the connection that has rested longest, whoever asks,
/// and looks through all of them twice for each request.
#[derive(Debug)]
pub(crate) struct UreqConnector;

/// Runs `ask`, which asks ureq once, on this thread, and has it use the connection of `exchange`. That
/// keeps to its deadline also when the body of the answer is read later, on whatever thread.
///
/// ureq has no way to hand anything on from who asks to the connector, but calls it on this thread.
/// Before that it calls the program's logger, which may ask a peer itself: what is handed on then is
/// put aside, and back.
///
/// A thread that is past its destructors hands nothing on, and ureq finds no connection.
pub(crate) fn over<R>(exchange: Exchange, ask: impl FnOnce() -> R) -> R {
    let before = hand_on(Some(exchange));
    let _put_back = PutBack(before);
    ask()
}

/// Returns what was there, and is dropped by who does not want it.
fn hand_on(exchange: Option<Exchange>) -> Option<Exchange> {
    let handed = HANDED.try_with(|handed| handed.replace(exchange));
    handed.ok().flatten()
}

/// Also if the logger panics. What ureq did not take, because it refused the request, is dropped.
struct PutBack(Option<Exchange>);

impl Drop for PutBack {
    fn drop(&mut self) {
        drop(hand_on(self.0.take()));
    }
}

thread_local! {
    /// For the request that begins on this thread.
    static HANDED: Cell<Option<Exchange>> = const { Cell::new(None) };
}

impl Connector for UreqConnector {
    type Out = UreqConnection;

    /// `details` has no addresses: see `NoResolver`.
    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<UreqConnection>, ureq::Error> {
        let mut exchange = hand_on(None);
        if let Some(Exchange { connection, .. }) = &mut exchange {
            if connection.line.is_empty() {
                connection.line = vec![0; MAX_LINE].into();
            }
        }
        Ok(exchange.map(|exchange| UreqConnection {
            exchange: Some(exchange),
            sending: false,
            progress: false,
        }))
    }
}

/// A connection in the hands of ureq, for one exchange.
pub(crate) struct UreqConnection {
    /// `None` once its connection has gone back to those at rest.
    exchange: Option<Exchange>,
    /// Whether the last thing done was to write. A write after a read begins a request.
    sending: bool,
    /// Whether ureq used any of the input when it last looked. If not, what is there is too little
    /// for it to go on with, and more must be read.
    progress: bool,
}

impl UreqConnection {
    fn exchange(&mut self) -> io::Result<&mut Exchange> {
        let exchange = self.exchange.as_mut();
        exchange.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Transport for UreqConnection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let begins = !std::mem::replace(&mut self.sending, true);
        let Exchange {
            connection,
            deadline,
            ..
        } = self.exchange()?;
        if begins {
            connection.socket.begin();
        }
        // ureq writes the head, then the body, and waits for the answer when there is no more.
        let PeerConnection { line, output, .. } = &mut **connection;
        output.extend_from_slice(&line[..amount]);
        if output.len() >= OUTPUT_LARGE {
            connection.flush(Instant::now(), *deadline)?;
        }
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        self.sending = false;
        let Exchange {
            connection,
            deadline,
            ..
        } = self.exchange()?;
        if !connection.output.is_empty() {
            connection.flush(Instant::now(), *deadline)?;
        }
        let PeerConnection { socket, input, .. } = &mut **connection;
        let spare = input.spare();
        if spare.is_empty() {
            return Err(LONG.error().into());
        }
        let read = socket.read(spare, *deadline)?;
        input.appended(read);
        Ok(read > 0)
    }

    /// ureq asks this when it has read an answer to its end and nothing is left in the buffers,
    /// before it would put the connection into its pool. It goes home instead, and ureq is told to
    /// let go of it.
    fn is_open(&mut self) -> bool {
        if let Some(exchange) = self.exchange.take() {
            exchange.home.give(exchange.connection);
        }
        false
    }
}

/// The input is the connection's, and what is written goes into a line of its own first. A
/// connection that is gone has neither.
impl Buffers for UreqConnection {
    fn output(&mut self) -> &mut [u8] {
        self.tmp_and_output().1
    }

    fn input(&self) -> &[u8] {
        let exchange = self.exchange.as_ref();
        exchange.map_or(&[], |exchange| exchange.connection.input.unused())
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.tmp_and_output().0
    }

    fn input_appended(&mut self, amount: usize) {
        if let Some(exchange) = &mut self.exchange {
            exchange.connection.input.appended(amount);
        }
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        if let Some(exchange) = &mut self.exchange {
            exchange.connection.input.consume(amount);
        }
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        let Some(exchange) = &mut self.exchange else {
            return (&mut [], &mut []);
        };
        let PeerConnection { input, line, .. } = &mut *exchange.connection;
        // ureq reads the body of a request into the first and encodes it into the second.
        (input.spare(), line)
    }

    fn can_use_input(&self) -> bool {
        self.progress && !self.input().is_empty()
    }
}

impl Drop for UreqConnection {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            take_back::leave(exchange);
        }
    }
}

impl fmt::Debug for UreqConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exchange = self.exchange.as_ref();
        exchange.map(|exchange| &exchange.connection).fmt(f)
    }
}

const LONG: Refusal = Refusal("a line of the answer is too long");

/// What is sent without waiting for more.
const OUTPUT_LARGE: usize = 16 * 1024;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::http::client::peer_connection::Home;
    use std::net::TcpListener;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    /// As ureq does, if it is not prevented.
    fn connect() -> Option<Box<PeerConnection>> {
        hand_on(None).map(|exchange| exchange.connection)
    }

    #[test]
    fn each_request_gets_the_connection_that_was_meant_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let limit = Duration::from_secs(20);
        let home = Home::behind(&listener);
        let deadline = Instant::now() + limit;
        let exchange = |mark: &[u8]| {
            let mut connection = home.connect(deadline).unwrap();
            connection.output.extend_from_slice(mark);
            let home = home.clone();
            Exchange {
                connection,
                deadline,
                home,
            }
        };
        let mark = |connection: Option<Box<PeerConnection>>| connection.unwrap().output;
        over(exchange(b"outer"), || {
            // The logger asks.
            assert_eq!(mark(over(exchange(b"inner"), connect)), b"inner");
            // It asks in vain, and panics.
            over(exchange(b"refused"), || ());
            let panicking = || over(exchange(b"panicking"), || panic!("in the logger"));
            assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
            assert_eq!(mark(connect()), b"outer");
        });
        assert!(connect().is_none());
    }
}
