//! The transport that a pool uses for a peer by default.

use crate::http::client::exchange::Terms;
use crate::http::client::peer_connection::Home;
use crate::http::client::peer_transport::PeerTransport;
use crate::http::client::transport::Transport;
use crate::http::client::url::PeerUrl;
use crate::http::config::Config;
use crate::sync::Arc;

/// The default transport of the peer at `url`.
pub(crate) fn transport_for(url: &PeerUrl, config: &Arc<Config>) -> Arc<dyn Transport> {
    let terms = Terms {
        url: Arc::new(url.clone()),
        connect_timeout: config.connect_timeout,
        exchange_timeout: config.exchange_timeout,
        max_idle: config.max_idle_per_peer,
        max_body: config.max_body().max(config.max_batch_body()),
    };
    Arc::new(PeerTransport::new(Home::new(terms), config.client))
}
