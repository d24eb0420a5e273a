//! How a connection is had back from ureq between the head of an answer and its body.
//!
//! ureq would copy every piece of the body once more, and look at each line of 16 bytes, for a log
//! that is off. So where the head leaves no question how long the body is, and that another request
//! can follow, ureq is made to let go of the connection, and the rest is read by us.

use std::cell::Cell;

use ureq::Body;

use crate::http::client::peer_connection::Exchange;

/// The exchange of an answer whose body is not empty and was not read; `None` if it cannot be had.
pub(crate) fn take_back(body: Body) -> Option<Exchange> {
    // A thread that is past its destructors has no place for it.
    LEFT.try_with(|left| left.set(Left::Wanted)).ok()?;
    // With it goes ureq's handle of the connection, on this thread: see `leave`.
    drop(body);
    match LEFT.try_with(Cell::take).ok()? {
        Left::Here(exchange) => Some(exchange),
        Left::Nothing | Left::Wanted => None,
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
