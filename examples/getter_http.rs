//! Caches pages of an HTTP server. A page that has not changed is not sent again: the request has the `ETag`
//! of the old one in `If-None-Match`, and the server answers 304.
//!
//! ```text
//! cargo run --example getter_http
//! ```
//!
//! Starts a server of its own, gets two pages again and again, and changes one of them. Prints a line for
//! each get, then the bytes that the server sent.

use std::io::Cursor;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::{BoxError, Clock, Error, Group, Value};
use tiny_http::{Header, Response};

/// The time for which a page is fresh.
const FRESH: Duration = Duration::from_secs(60);

fn main() -> Result<(), BoxError> {
    let origin = Arc::new(Origin::default());
    let url = origin.clone().start()?;
    // The example moves the time itself. A program leaves this out.
    let clock = Clock::manual();
    let pages = Group::builder("pages")
        .clock(clock.clone())
        .time_to_live(FRESH)
        .time_to_live_jitter(0.0)
        .keep_for_revalidation(Duration::from_secs(3600))
        .build_with(fetch(ureq::Agent::new_with_defaults(), url))?;

    for round in 0..4 {
        if round == 2 {
            origin.version.fetch_add(1, Ordering::SeqCst);
            println!("the news change");
        }
        for page in ["news", "logo", "no-such-page"] {
            match pages.get(page) {
                Ok(value) => println!("{page}: {} bytes, {}", value.len(), origin.last()),
                Err(error) => println!("{page}: {error}, {}", origin.last()),
            }
        }
        clock.advance(FRESH);
    }
    println!(
        "{} gets, {} bytes of pages sent by the server",
        pages.stats().gets,
        origin.sent.load(Ordering::SeqCst)
    );
    Ok(())
}

/// The getter: one request, which is conditional if an old page is there.
fn fetch(
    agent: ureq::Agent,
    url: String,
) -> impl Fn(&larder::Context, &str) -> Result<Value, BoxError> {
    move |ctx, page| {
        let mut request = agent.get(format!("{url}/{page}"));
        if let Some(etag) = ctx.etag() {
            request = request.header("if-none-match", etag);
        }
        let mut response = match request.call() {
            Ok(response) => response,
            Err(ureq::Error::StatusCode(404)) => {
                return Err(Error::not_found(format!("there is no page {page}")).into());
            }
            Err(error) => return Err(error.into()),
        };
        if response.status() == 304 {
            return Ok(Value::not_modified());
        }
        let etag = response.headers().get("etag").cloned();
        let value = Value::new(response.body_mut().read_to_vec()?);
        Ok(match etag.as_ref().and_then(|etag| etag.to_str().ok()) {
            Some(etag) => value.etag(etag),
            None => value,
        })
    }
}

/// A server with two pages. One of them changes.
#[derive(Default)]
struct Origin {
    version: AtomicU64,
    sent: AtomicU64,
    last: Mutex<String>,
}

impl Origin {
    /// Serves on a thread until the program ends. Returns the URL.
    fn start(self: Arc<Self>) -> Result<String, BoxError> {
        let server = tiny_http::Server::http("127.0.0.1:0").map_err(|error| error.to_string())?;
        let url = format!("http://{}", server.server_addr());
        std::thread::spawn(move || {
            for request in server.incoming_requests() {
                let response = self.answer(&request);
                let status = response.status_code().0;
                *self.last.lock().expect("no panic") = format!("the server answered {status}");
                // The client may be gone.
                let _ = request.respond(response);
            }
        });
        Ok(url)
    }

    fn answer(&self, request: &tiny_http::Request) -> Response<Cursor<Vec<u8>>> {
        let version = match request.url() {
            "/news" => self.version.load(Ordering::SeqCst),
            "/logo" => 0,
            _ => return Response::from_string("not here").with_status_code(404),
        };
        let etag = format!("\"{version}\"");
        let known = |header: &&Header| header.field.equiv("if-none-match");
        let known = request.headers().iter().find(known);
        let header = Header::from_bytes("etag", etag.as_bytes()).expect("a valid header");
        if known.is_some_and(|known| known.value == etag.as_str()) {
            return Response::from_data([])
                .with_status_code(304)
                .with_header(header);
        }
        let page = vec![b'a' + version as u8; 100_000];
        self.sent.fetch_add(page.len() as u64, Ordering::SeqCst);
        Response::from_data(page).with_header(header)
    }

    /// The last answer since the last call.
    fn last(&self) -> String {
        let last = std::mem::take(&mut *self.last.lock().expect("no panic"));
        match last.is_empty() {
            true => "from the cache".to_owned(),
            false => last,
        }
    }
}
