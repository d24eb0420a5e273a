//! The transport that a pool uses for its peers, and the client that it chooses for an exchange.

use std::io;
use std::time::Instant;

use crate::context::Context;
use crate::error::Result;
use crate::http::client::lean;
use crate::http::client::peer_connection::{Home, PeerConnection};
use crate::http::client::socket::Stale;
use crate::http::client::transport::{Transport, TransportRequest, TransportResponse};
use crate::http::client::ureq_client::UreqClient;
use crate::http::config::HttpClient;
use crate::sync::Arc;

/// Sends requests to one peer over HTTP/1.1.
pub(crate) struct PeerTransport {
    home: Arc<Home>,
    client: HttpClient,
    ureq: UreqClient,
}

impl PeerTransport {
    pub(crate) fn new(home: Arc<Home>, client: HttpClient) -> Self {
        PeerTransport {
            home,
            client,
            ureq: UreqClient::new(),
        }
    }

    /// One attempt, on `connection` or a new one, which ends by `deadline`.
    fn attempt(
        &self,
        connection: Option<Box<PeerConnection>>,
        request: &TransportRequest<'_>,
        now: Instant,
        deadline: Instant,
    ) -> io::Result<TransportResponse> {
        let is_ours = || connection.as_ref().is_some_and(|one| one.is_ours);
        let is_lean = match self.client {
            HttpClient::Auto => request.is_batch() || is_ours(),
            HttpClient::Ureq => false,
            HttpClient::Direct => true,
        };
        match is_lean {
            true => lean::exchange(&self.home, connection, request, now, deadline),
            false => (self.ureq).exchange(&self.home, connection, request, deadline),
        }
    }
}

impl Transport for PeerTransport {
    /// A request that fails because its connection had been closed while it was idle is tried once
    /// more, on a new connection, within the same deadline.
    ///
    /// Only a connection that has carried an exchange before can be such a one, and only before the
    /// first byte of the answer. Neither a get nor a batch changes anything at the peer.
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let home = &self.home;
        let deadline = home.terms.deadline(ctx, &request)?;
        let begun = Instant::now();
        let mut answer = self.attempt(home.take(begun), &request, begun, deadline);
        if answer.as_ref().is_err_and(Stale::is) {
            home.end_generation();
            answer = self.attempt(None, &request, Instant::now(), deadline);
        }
        answer.map_err(|error| home.terms.explain(ctx, error))
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    /// The answers of one connection, and whether its next exchange goes without ureq after each.
    const ANSWERS: [(&str, bool); 9] = [
        ("Server: nginx\r\nContent-Length: 2\r\n\r\nok", false),
        (
            "Server: larder\r\nVia: 1.1 x\r\nContent-Length: 2\r\n\r\nok",
            false,
        ),
        ("Server: larder\r\nContent-Length: 2\r\n\r\nok", true),
        ("Content-Length: 2\r\nserver: larder\r\n\r\nok", true),
        // Another server at the same address.
        (
            "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            false,
        ),
        ("Server: larder/9\r\nContent-Length: 2\r\n\r\nok", false),
        ("Server: larder\r\nContent-Length: 2\r\n\r\nok", true),
        // A proxy in front of it.
        (
            "Via: 1.1 x\r\nServer: larder\r\nContent-Length: 2\r\n\r\nok",
            false,
        ),
        ("Server: larder\r\nContent-Length: 2\r\n\r\nok", true),
    ];

    #[test]
    fn ureq_is_asked_until_a_connection_leads_to_a_server_of_ours() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let home = Home::behind(&listener);
        let transport = PeerTransport::new(home.clone(), HttpClient::Auto);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                for (answer, _) in ANSWERS {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        stream.read_exact(&mut byte).unwrap();
                        head.push(byte[0]);
                    }
                    let answer = format!("HTTP/1.1 200 OK\r\n{answer}");
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            });
            let mut was_ours = false;
            for (answer, is_ours) in ANSWERS {
                let request =
                    TransportRequest::get("/x".into(), Instant::now() + Duration::from_secs(20));
                let response = transport.round_trip(&Context::background(), request);
                let mut body = String::new();
                let mut reader = response.unwrap().into_body();
                reader.read_to_string(&mut body).unwrap();
                assert_eq!(body, "ok", "{answer}");
                let connection = home.take(Instant::now()).expect(answer);
                assert_eq!(connection.is_ours, is_ours, "{answer}");
                assert!(
                    !(was_ours && is_ours) || connection.line.is_empty(),
                    "{answer}"
                );
                was_ours = is_ours;
                home.give(connection);
            }
        });
    }
}
