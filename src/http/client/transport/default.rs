//! Makes the transport of a peer: the direct one, ureq, or by default one that chooses between the two.

use crate::http::client::transport::DefaultTransport;
#[cfg(feature = "ureq")]
use crate::http::client::transport::auto::AutoTransport;
use crate::http::client::transport::direct::DirectTransport;
#[cfg(not(feature = "ureq"))]
use crate::http::client::transport::larder_only::LarderOnlyTransport;
use crate::http::client::transport::target::Target;
#[cfg(feature = "ureq")]
use crate::http::client::transport::ureq::UreqTransport;
use crate::http::config::HttpClient;
use crate::sync::Arc;

/// Makes the default transport of the peer `target`.
pub(crate) fn default_transport(target: Arc<Target>) -> DefaultTransport {
    match target.config.client {
        #[cfg(feature = "ureq")]
        HttpClient::Auto => DefaultTransport::of(AutoTransport::new(target)),
        #[cfg(not(feature = "ureq"))]
        HttpClient::Auto => DefaultTransport::of(LarderOnlyTransport::new(target)),
        #[cfg(feature = "ureq")]
        HttpClient::Ureq => DefaultTransport::of(UreqTransport::new(target)),
        HttpClient::Direct => DefaultTransport::of(DirectTransport::new(target)),
    }
}
