//! Disturbs the requests of a node: delays those to some nodes, and fails those to nodes that are cut
//! off.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::http::{Transport, TransportRequest, TransportResponse};
use larder::{Context, Error, ErrorKind, Result};

use super::random::Random;

/// Shared by the transports of all peers of a node.
#[derive(Default)]
pub struct Network {
    /// The longest delay of a request, in milliseconds, by the URL of the peer.
    delays: Mutex<HashMap<String, u64>>,
    /// The URLs of peers that get no request from here.
    cut: Mutex<HashSet<String>>,
    /// The URLs of peers that have answered a get since the last call of [`answered`](Self::answered).
    answered: Mutex<HashSet<String>>,
}

impl Network {
    pub fn delay(&self, url: &str, millis: u64) {
        let mut delays = self.delays.lock().expect("no panic");
        delays.insert(url.to_owned(), millis);
    }

    pub fn cut(&self, urls: &[&str]) {
        let mut cut = self.cut.lock().expect("no panic");
        *cut = urls.iter().map(|&url| url.to_owned()).collect();
    }

    pub fn answered(&self) -> HashSet<String> {
        std::mem::take(&mut *self.answered.lock().expect("no panic"))
    }

    /// A transport for [`HttpPoolBuilder::transport`](larder::http::HttpPoolBuilder::transport).
    pub fn transport(self: &Arc<Self>, url: &str, to: Arc<dyn Transport>) -> Arc<dyn Transport> {
        Arc::new(Disturbed {
            network: self.clone(),
            url: url.to_owned(),
            to,
            random: Mutex::new(Random(1)),
        })
    }
}

struct Disturbed {
    network: Arc<Network>,
    url: String,
    to: Arc<dyn Transport>,
    random: Mutex<Random>,
}

impl Disturbed {
    fn check(&self) -> Result<()> {
        let cut = self.network.cut.lock().expect("no panic");
        match cut.contains(&self.url) {
            true => Err(Error::new(ErrorKind::Peer, "it is cut off")),
            false => Ok(()),
        }
    }
}

impl Transport for Disturbed {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let delays = self.network.delays.lock().expect("no panic");
        let longest = delays.get(&self.url).copied().unwrap_or(0);
        drop(delays);
        self.check()?;
        if longest > 0 {
            let mut random = self.random.lock().expect("no panic");
            // Half of the requests are fast, so that they overtake others.
            let millis = random.below(2) * random.below(longest + 1);
            drop(random);
            std::thread::sleep(Duration::from_millis(millis));
        }
        let is_get = request.method() == "GET" && request.path().contains("/promise/");
        let response = self.to.round_trip(ctx, request)?;
        // If the peer was cut off meanwhile, its answer is lost, too.
        self.check()?;
        if is_get && response.status() == 200 {
            let mut answered = self.network.answered.lock().expect("no panic");
            answered.insert(self.url.clone());
        }
        Ok(response)
    }
}
