//! Models of the comparison of removals: answers of a peer that come while tables are exchanged.

use super::*;
use crate::loom_models::groups::{bounded_model, changing_group};
use crate::pb::RemoveKeysRequest;
use crate::peers::PickerSlot;
use crate::sync::atomic::AtomicUsize;
use crate::sync::thread;

/// A node, and a peer that does not send its removals to the node. So the node finds them by digests only.
#[derive(Clone)]
struct Pair {
    node: Group,
    peer: Group,
    client: Arc<dyn ProtoGetter>,
}

impl Pair {
    fn new() -> Pair {
        let source = Arc::new(AtomicUsize::new(0));
        let [node, peer] = [(); 2].map(|()| changing_group(&source, PickerSlot::default()));
        let client = Arc::new(RemovalsPeer(peer.clone()));
        Pair { node, peer, client }
    }

    fn remove(&self, count: u64) {
        self.peer.serve_remove(&RemoveKeysRequest {
            group: "model".into(),
            keys: vec!["key".into()],
            removal_id: Some(7 << 32 | count),
            unless_applied: None,
        });
    }

    /// The peer answers a request, and the node looks at the digest in the answer.
    fn ask(&self) {
        let digest = self.peer.inner.removals_for("key");
        let (inner, ctx) = (&self.node.inner, Context::background());
        inner.compare(&self.client, &ctx, inner.store.clock().now(), digest);
    }

    /// The peer has a first removal, which an answer shows. On another thread, an answer shows a second one
    /// before, while or after the tables are exchanged. In the end, the node has applied both.
    fn explore(&self) {
        self.remove(1);
        let other = {
            let pair = self.clone();
            thread::spawn(move || {
                pair.remove(2);
                pair.ask();
            })
        };
        self.ask();
        other.join().unwrap();
        let inner = &self.node.inner;
        let is_scheduled = |comparison: &mut Comparison| comparison.is_scheduled;
        while inner.comparisons.with(&self.client, is_scheduled) {
            thread::yield_now();
        }
        let known = self.peer.inner.removals.known().expect("all of them");
        assert!(inner.removals.has_applied(&known));
    }
}

#[test]
fn loom_removal_that_an_answer_shows_during_an_exchange_is_repaired() {
    bounded_model(|| Pair::new().explore());
}

/// The two nodes were equal a moment before. So a loader thread exchanges the tables later.
#[test]
fn loom_removal_that_an_answer_shows_is_repaired_later() {
    bounded_model(|| {
        let pair = Pair::new();
        let ctx = Context::background();
        let exchanged = pair.node.inner.exchange(&pair.client, &ctx);
        exchanged.expect("the peer answers");
        pair.explore();
    });
}
