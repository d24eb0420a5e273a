//! STUB: replaced soon. Signatures are final.
use crate::clock::Clock;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::getter::Getter;
use crate::peers::PeerResponse;
use crate::{ByteView, Sink};
use std::sync::Arc;

/// A named cache.
#[derive(Clone)]
pub struct Group(Arc<Stub>);
struct Stub {
    name: String,
    clock: Clock,
    getter: Box<dyn Getter>,
}

impl Group {
    pub(crate) fn stub(name: &str, getter: impl Getter + 'static) -> Group {
        Group(Arc::new(Stub {
            name: name.into(),
            clock: Clock::system(),
            getter: Box::new(getter),
        }))
    }
    /// The name.
    pub fn name(&self) -> &str {
        &self.0.name
    }
    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }
    /// Gets.
    pub fn get(&self, key: &str) -> Result<ByteView> {
        self.serve_peer(&Context::background(), key)
            .map(|r| r.value)
    }
    /// Gets with a context.
    pub fn get_with(&self, ctx: &Context, key: &str) -> Result<ByteView> {
        self.serve_peer(ctx, key).map(|r| r.value)
    }
    /// Gets into a sink.
    pub fn get_into(&self, ctx: &Context, key: &str, mut dest: impl Sink) -> Result<()> {
        dest.set_view(&self.get_with(ctx, key)?)
    }
    /// Answers a peer: from the store or the getter, never by asking on.
    pub fn serve_peer(&self, ctx: &Context, key: &str) -> Result<PeerResponse> {
        let mut bytes = Vec::new();
        self.0
            .getter
            .get(ctx, key, &mut bytes)
            .map_err(|e| match e.downcast::<Error>() {
                Ok(e) => *e,
                Err(e) => Error::with_source(ErrorKind::Loader, "", e),
            })?;
        Ok(PeerResponse::new(bytes))
    }
}
