//! One connection: requests in, answers out, one at a time, on the connection's own thread.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Instant;

use super::answer::{Answer, Endpoint, Rest};
use super::connections::{Connections, Link};
use super::handler::{Handler, Request};
use super::head::{self, Arrived, BODY_TOO_LARGE, LastHead};
use super::input::{End, Input};
use super::limits::Limits;
use super::listener::tune_accepted;
use super::output::Output;
use super::response::{Framing, Response};
use crate::panics::caught;
use crate::sync::Arc;

/// What all connections of a server share.
pub(crate) struct Service {
    pub endpoint: Option<Endpoint>,
    pub fallback: Option<Arc<dyn Handler>>,
    pub limits: Limits,
    pub connections: Arc<Connections>,
}

/// Serves a connection until the client, a limit or a shutdown ends it.
///
/// Requests that the client sent ahead wait in the buffer, and in the kernel when that is full.
/// They are answered in turn, each with a write of its own, so a client that sends on without
/// reading is stopped by TCP.
pub(crate) fn serve(service: &Service, link: &Link) {
    let limits = &service.limits;
    if tune_accepted(&link.stream, limits.write_timeout).is_err() {
        return;
    }
    let mut input = Input::new(&link.stream, limits);
    let mut output = Output::new(&link.stream, limits.write_timeout);
    let mut last = LastHead::new();
    // A client that connects has something to ask: the first head has to be there in time.
    let mut deadline = Some(Instant::now() + limits.head_timeout);
    loop {
        link.set_busy(false);
        if service.connections.is_stopping() {
            return;
        }
        let step = input.head(deadline.take(), &last).and_then(|head| {
            link.set_busy(true);
            let buffers = (&mut input, &mut output);
            exchange(service, buffers, head, &mut last, link.addr)
        });
        match step {
            Ok(Next::Request) => {}
            Ok(Next::Close) => return input.linger(),
            Err(End::Closed) => return,
            Err(End::Reject(reject)) => {
                let framing = Framing {
                    keep_alive: false,
                    http_10: false,
                    head_only: false,
                };
                let response = Response::from(reject);
                let body = response.encode(framing, &mut output.head);
                if output.send(Rest::One(body)).is_ok() {
                    input.linger();
                }
                return;
            }
        }
    }
}

/// What comes after an answer.
enum Next {
    Request,
    Close,
}

/// Answers the request whose head is at the beginning of `input`.
fn exchange(
    service: &Service,
    (input, output): (&mut Input<'_>, &mut Output<'_>),
    Arrived { len, target }: Arrived,
    last: &mut LastHead,
    addr: SocketAddr,
) -> Result<Next, End> {
    let (bytes, arrived, reader) = input.split(len);
    let (mut few, mut fields) = (head::NO_FEW_FIELDS, head::NO_FIELDS);
    let repeated = target.and_then(|target| last.read(bytes, target, &mut few));
    let head = match repeated {
        Some(head) => head,
        None => {
            let head = head::parse(bytes, &mut fields).map_err(End::Reject)?;
            last.keep(bytes, &head);
            head
        }
    };
    // Before a byte of the body is read or a byte of memory is taken for it.
    let body_len = match usize::try_from(head.content_length) {
        Ok(len) if len <= service.limits.max_body_size => len,
        _ => return Err(End::Reject(BODY_TOO_LARGE)),
    };
    let arrived = &arrived[..body_len.min(arrived.len())];
    let body = if arrived.len() == body_len {
        Cow::Borrowed(arrived)
    } else {
        if head.expects_continue {
            output.send(Rest::One(CONTINUE)).map_err(|_| End::Closed)?;
        }
        Cow::Owned(reader.body(arrived, body_len, service.limits.body_timeout)?)
    };
    let answer = service.answer(&Request::new(&head, &body, Some(addr)));
    let framing = Framing {
        keep_alive: head.keep_alive && !service.connections.is_stopping(),
        http_10: head.http_10,
        head_only: head.method == "HEAD",
    };
    let rest = answer.encode(framing, &mut output.head);
    output.send(rest).map_err(|_| End::Closed)?;
    let consumed = len + arrived.len();
    input.consume(consumed);
    Ok(if framing.keep_alive {
        Next::Request
    } else {
        Next::Close
    })
}

impl Service {
    /// Does not unwind.
    fn answer(&self, request: &Request<'_>) -> Answer {
        let peers = self.endpoint.as_ref().and_then(|e| e.answer(request));
        if let Some(answer) = peers {
            return answer;
        }
        Answer::Other(match &self.fallback {
            Some(handler) => caught(|| handler.handle(request))
                .unwrap_or_else(|| Response::text(500, "the handler panicked")),
            None => Response::text(404, "there is nothing here"),
        })
    }
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
