//! Helpers of these tests: gates, calls with a time limit, counting getters, and peers in this process.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use larder::pb::GetRequest;
use larder::{
    AtomicInt, Context, Error, ErrorKind, Getter, Group, GroupBuilder, PeerPicker, PeerResponse,
    ProtoGetter, Registry, Result, Sink,
};

/// The time limit of each wait. A wait that takes longer fails the test.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Closed until `open` is called, then open for ever. Clones share the state.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn new() -> Gate {
        Gate::default()
    }

    pub fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Waits until the gate is open.
    pub fn pass(&self) {
        assert!(
            self.opens_within(PATIENCE),
            "the gate was not opened in time"
        );
    }

    pub fn opens_within(&self, limit: Duration) -> bool {
        let open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (open, _) = self
            .0
            .1
            .wait_timeout_while(open, limit, |open| !*open)
            .unwrap_or_else(PoisonError::into_inner);
        *open
    }
}

/// A call on a thread of its own. A test waits for its result, up to a time limit.
pub struct Call<T>(mpsc::Receiver<thread::Result<T>>);

/// Starts a call on a thread of its own.
pub fn start<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Call<T> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        // Sending fails if the test has dropped the call.
        let _ = send.send(result);
    });
    Call(receive)
}

impl<T> Call<T> {
    /// The call's result. A panic of the call is resumed here.
    pub fn end(self) -> T {
        match self.outcome() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The call's result, or the payload of its panic.
    pub fn outcome(self) -> thread::Result<T> {
        match self.0.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => panic!("the call hangs"),
            Err(RecvTimeoutError::Disconnected) => panic!("the call's thread is gone"),
        }
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::yield_now();
    }
}

/// The time that `f` took, and its result.
pub fn timed<T>(f: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let value = f();
    (start.elapsed(), value)
}

pub fn background() -> Context {
    Context::background()
}

pub fn within(limit: Duration) -> Context {
    background().with_timeout(limit)
}

/// With the first context, the getter runs on the caller's own thread; with the second, on a loader thread.
pub fn contexts() -> [Context; 2] {
    [background(), within(PATIENCE)]
}

pub fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[track_caller]
pub fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("an error").kind()
}

/// A number that getters and tests share.
pub type Count = Arc<AtomicInt>;

/// A getter whose value is `ECHO:key`, and the number of its calls.
pub fn echo() -> (impl Getter + 'static, Count) {
    let loads = Count::default();
    let counted = loads.clone();
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| {
        counted.add(1);
        Ok(dest.set_str(&format!("ECHO:{key}"))?)
    };
    (getter, loads)
}

/// A builder for a group in a registry of its own.
pub fn alone(name: &str) -> GroupBuilder {
    Group::builder(name).registry(&Registry::new())
}

/// A builder for a group in a registry of its own, with `picker`.
pub fn among(name: &str, picker: Arc<dyn PeerPicker>) -> GroupBuilder {
    let registry = Registry::new();
    registry
        .register_peer_picker(picker)
        .expect("the registry is new");
    Group::builder(name).registry(&registry)
}

/// A picker that is a function of the key and the attempt.
pub struct FakePicker<F>(F);

pub fn picker<F>(pick: F) -> Arc<dyn PeerPicker>
where
    F: Fn(&str, usize) -> Option<Arc<dyn ProtoGetter>> + Send + Sync + 'static,
{
    Arc::new(FakePicker(pick))
}

/// The first peer owns every key. The others are asked in turn if the peers before them fail.
pub fn all_keys_at<P: ProtoGetter + 'static>(peers: &[&Arc<P>]) -> Arc<dyn PeerPicker> {
    let peers: Vec<Arc<P>> = peers.iter().map(|&peer| peer.clone()).collect();
    picker(move |_, attempt| {
        let peer = peers.get(attempt)?.clone();
        Some(peer)
    })
}

impl<F> PeerPicker for FakePicker<F>
where
    F: Fn(&str, usize) -> Option<Arc<dyn ProtoGetter>> + Send + Sync,
{
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        (self.0)(key, 0)
    }

    fn pick_replica(&self, key: &str, attempt: usize) -> Option<Arc<dyn ProtoGetter>> {
        (self.0)(key, attempt)
    }
}

type Answer = dyn Fn(&Context, &str) -> Result<PeerResponse> + Send + Sync;

/// A peer that answers with the result of a function, and counts its requests.
pub struct FakePeer {
    answer: Box<Answer>,
    honors_deadline: bool,
    calls: AtomicInt,
}

impl FakePeer {
    pub fn new(
        answer: impl Fn(&Context, &str) -> Result<PeerResponse> + Send + Sync + 'static,
    ) -> Arc<FakePeer> {
        Arc::new(FakePeer {
            answer: Box::new(answer),
            honors_deadline: false,
            calls: AtomicInt::new(),
        })
    }

    /// A peer that promises to return by the caller's deadline.
    pub fn punctual(
        answer: impl Fn(&Context, &str) -> Result<PeerResponse> + Send + Sync + 'static,
    ) -> Arc<FakePeer> {
        Arc::new(FakePeer {
            answer: Box::new(answer),
            honors_deadline: true,
            calls: AtomicInt::new(),
        })
    }

    /// A peer whose value is `ECHO:key`.
    pub fn echo() -> Arc<FakePeer> {
        FakePeer::new(|_, key| Ok(PeerResponse::new(format!("ECHO:{key}"))))
    }

    /// A peer that answers with an error.
    pub fn failing(kind: ErrorKind, message: &'static str) -> Arc<FakePeer> {
        FakePeer::new(move |_, _| Err(Error::new(kind, message)))
    }

    pub fn calls(&self) -> i64 {
        self.calls.get()
    }
}

impl ProtoGetter for FakePeer {
    fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
        self.calls.add(1);
        (self.answer)(ctx, &request.key)
    }

    fn honors_deadline(&self) -> bool {
        self.honors_deadline
    }
}

/// Another node in this process. It answers on a thread of its own, like a remote peer. So it does
/// not see the state of the calling thread.
pub struct Node(pub Registry);

impl ProtoGetter for Node {
    fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
        let Some(group) = self.0.get_group(&request.group) else {
            return Err(ErrorKind::UnknownGroup.into());
        };
        let (send, receive) = mpsc::channel();
        let (theirs, key) = (ctx.clone(), request.key.to_string());
        thread::spawn(move || send.send(group.serve_peer(&theirs, &key)));
        let patience = ctx.remaining().unwrap_or(PATIENCE);
        receive
            .recv_timeout(patience)
            .unwrap_or_else(|_| Err(ErrorKind::Peer.into()))
    }

    fn honors_deadline(&self) -> bool {
        true
    }
}
