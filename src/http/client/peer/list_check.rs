//! Reacts if a response shows that the peer has another list of peers, or is this process. Reads the
//! lists of peers, and announces to them that this process leaves.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::clock::saturating_nanos;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::peer::HttpPeer;
use crate::http::client::transport::{TransportRequest, TransportResponse};
use crate::http::membership::MarkOf;
use crate::sync::spawn;
use crate::wire::{LEAVE_PATH, PEERS_PAGE};

impl HttpPeer {
    /// Whether this peer has turned out to be this process, listed under another name than its own. That
    /// holds for [`HERE`]: the address of another node may have led here only for a while.
    pub(crate) fn is_this_process(&self) -> bool {
        let until = self.here_until.load(Ordering::Relaxed);
        until != 0 && self.nanos(Instant::now()) < until
    }

    /// Handles the mark of a response. Most responses have none.
    pub(super) fn note_mark(&self, response: &TransportResponse) {
        let Some(mark) = response.peers_mark() else {
            return self.health.note_list(false);
        };
        let compared = self.membership.compare(mark);
        self.health.note_list(compared == MarkOf::Other);
        match compared {
            MarkOf::Same => {}
            MarkOf::ThisProcess => self.note_this_process(),
            MarkOf::Other if self.membership.should_log(mark) => self.log_difference(),
            MarkOf::Other => {}
        }
    }

    fn note_this_process(&self) {
        let until = self.nanos(Instant::now() + HERE);
        if self.here_until.swap(until, Ordering::Relaxed) == 0 {
            log::error!(
                "the peer {} in the list is this process, whose own URL is written differently: write \
                 both alike, or give the peer an id; until then, this process loads the keys of that \
                 peer, and others may disagree about their owner",
                self.url,
            );
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        saturating_nanos(at.saturating_duration_since(self.made))
    }

    /// Logs both lists, on a thread that asks the peer for its own. A caller waits for neither.
    fn log_difference(&self) {
        let own = self.membership.own();
        let (url, read_page) = (self.url.clone(), self.page_reader());
        let log = move || {
            let others = read_page().unwrap_or_else(|error| format!("({error})"));
            let lines = |list: &str| list.lines().collect::<Vec<_>>().join(", ");
            log::warn!(
                "peer {url} has another list of peers, so keys can be loaded twice; here: {}; there: {}",
                lines(&own.text),
                lines(&others),
            );
        };
        // Without a thread the difference is only counted.
        let _ = spawn("larder-peers", Some(STACK), log);
    }

    /// Reads the peer's page with its list of peers, within the time of a probe. It fails if there is none.
    pub(crate) fn page_reader(&self) -> impl Fn() -> Result<String> + use<> {
        let (transport, timeout) = (self.transport.clone(), self.config.probe_timeout());
        let path = format!("{}{PEERS_PAGE}", self.base);
        move || {
            let deadline = Instant::now() + timeout;
            let ctx = Context::background().with_deadline(deadline);
            let request = TransportRequest::get(path.clone(), deadline);
            let response = transport.round_trip(&ctx, request)?;
            match response.status() {
                200 => Ok(text_of(response)),
                status => Err(Error::new(ErrorKind::Peer, format!("status {status}"))),
            }
        }
    }

    /// Announces that this process, which has this id in the list, leaves.
    pub(crate) fn announce_leave(&self, id: &str) -> Result<()> {
        let deadline = Instant::now() + self.config.exchange_timeout;
        let ctx = Context::background().with_deadline(deadline);
        let path = format!("{}{LEAVE_PATH}", self.base);
        let request = TransportRequest::change("POST", path, id.as_bytes(), deadline);
        let response = self.transport.round_trip(&ctx, request)?;
        match response.status() {
            200 => Ok(()),
            status => Err(self.failure(format_args!("status {status}"))),
        }
    }
}

fn text_of(response: TransportResponse) -> String {
    let mut text = Vec::new();
    // The part of the text that arrived is still useful.
    let _ = response.into_body().take(MAX_TEXT).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The most bytes of another process's lists that are read and logged: those of thousands of peers.
const MAX_TEXT: u64 = 1 << 20;

/// How long a peer is taken for this process.
const HERE: Duration = Duration::from_secs(30);

/// The stack of a thread that reads and logs a list, in bytes.
const STACK: usize = 256 << 10;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::http::client::health::watch::Watch;
    use crate::http::client::transport::default::default_transport;
    use crate::http::client::transport::target::Target;
    use crate::http::client::transport::url::PeerUrl;
    use crate::http::config::Config;
    use crate::http::membership::Membership;
    use crate::sync::Arc;

    #[test]
    fn peer_whose_address_led_here_once_is_asked_again_later() {
        let url = PeerUrl::parse("http://127.0.0.1:1").expect("a URL");
        let target = Target::new(&url, &Arc::new(Config::for_test()));
        let by = default_transport(target.clone());
        let watch = Watch::new(HERE, HERE);
        let mut peer = HttpPeer::new(target, "id", Arc::new(Membership::new()), by, watch);
        for _ in 0..2 {
            assert!(!peer.is_this_process());
            peer.note_this_process();
            assert!(peer.is_this_process());
            peer.made -= HERE;
        }
    }
}
