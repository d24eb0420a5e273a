//! The watch on real threads, and its interleavings under loom.

use super::*;
use crate::http::client::health::breaker::ExchangeEnd;
use crate::sync::thread;

/// A peer that answers probes while it is up. Its atomics are std's, because loom need not explore them.
struct Fake {
    is_up: std::sync::atomic::AtomicBool,
    probes: std::sync::atomic::AtomicUsize,
    /// The probes that a caller's thread ran.
    by_callers: std::sync::atomic::AtomicUsize,
}

impl Probe for Fake {
    fn probe(&self, _: ProbeOf) -> Result<ProbeAnswer, Error> {
        self.probes.fetch_add(1, Ordering::SeqCst);
        if std::thread::current().name() != Some("larder-probe") {
            self.by_callers.fetch_add(1, Ordering::SeqCst);
        }
        match self.is_up.load(Ordering::SeqCst) {
            true => Ok(ProbeAnswer::Present),
            false => Err(ErrorKind::Peer.into()),
        }
    }

    fn name(&self) -> String {
        "fake".into()
    }
}

/// A watch and the peers in its list.
struct Setting {
    watch: Arc<Watch>,
    peers: Vec<(Arc<PeerHealth>, Arc<Fake>)>,
}

impl Setting {
    fn new(count: usize, absent_after: Duration) -> Self {
        let watch = Watch::new(absent_after, Duration::from_millis(20));
        let peer = || {
            let fake = Fake {
                is_up: false.into(),
                probes: 0.into(),
                by_callers: 0.into(),
            };
            (
                Arc::new(PeerHealth::new(Duration::from_secs(1))),
                Arc::new(fake),
            )
        };
        let peers: Vec<_> = (0..count).map(|_| peer()).collect();
        let watched = peers.iter().map(|(health, fake)| {
            let peer: Arc<dyn Probe> = fake.clone();
            WatchedPeer {
                health: health.clone(),
                peer: Arc::downgrade(&peer),
            }
        });
        drop(watch.set_peers(watched.collect()));
        Setting { watch, peers }
    }

    /// Opens the breaker of a peer.
    fn kill(&self, at: usize) {
        let now = Instant::now();
        let error = ErrorKind::Peer.into();
        if self.peers[at]
            .0
            .on_failure(now, now, ExchangeEnd::Unreachable, &error)
        {
            self.watch.wake();
        }
    }
}

#[cfg(not(larder_loom))]
mod threads {
    use super::*;
    use crate::http::PeerState;

    const LONG: Duration = Duration::from_secs(20);

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < LONG, "never: {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_running(watch: &Watch) -> bool {
        watch.watched.lock().is_running
    }

    /// The cause of an error. Its drop asks for the last failure of the peer, as that of a program's
    /// transport may.
    #[derive(Debug)]
    struct Asking(Arc<Asked>);

    struct Asked {
        health: PeerHealth,
        ended: std::sync::mpsc::Sender<String>,
    }

    impl std::fmt::Debug for Asked {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Asked")
        }
    }

    impl std::fmt::Display for Asking {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the cause")
        }
    }

    impl std::error::Error for Asking {}

    impl Drop for Asking {
        fn drop(&mut self) {
            let failure = self.0.health.last_failure().expect("the second error");
            let message = failure.error.to_string();
            self.0.ended.send(message).expect("the test waits");
        }
    }

    #[test]
    fn error_whose_drop_asks_for_the_last_failure_gets_it() {
        let (ended, ends) = std::sync::mpsc::channel();
        let health = PeerHealth::new(Duration::from_secs(1));
        let asked = Arc::new(Asked { health, ended });
        let replacing = {
            let asked = asked.clone();
            move || {
                let now = Instant::now();
                let cause = Asking(asked.clone());
                let first = Error::with_source(ErrorKind::Peer, "the first", cause);
                let _ = asked
                    .health
                    .on_failure(now, now, ExchangeEnd::Unreachable, &first);
                drop(first);
                // Replaces the last reference to the first one.
                let second = Error::new(ErrorKind::Peer, "the second");
                let _ = asked
                    .health
                    .on_failure(now, now, ExchangeEnd::Unreachable, &second);
            }
        };
        let thread = std::thread::spawn(replacing);
        let message = ends.recv_timeout(Duration::from_secs(20));
        assert!(message.expect("no deadlock").contains("the second"));
        thread.join().expect("no panic");
    }

    #[test]
    fn peer_that_answers_a_probe_is_closed_and_the_thread_ends() {
        let setting = Setting::new(3, LONG);
        assert!(!is_running(&setting.watch), "no thread while all is well");
        setting.kill(1);
        let (health, fake) = &setting.peers[1];
        assert_eq!(health.standing(), Standing::Open);
        assert!(setting.watch.is_any_away() && !setting.watch.is_cut_off());
        fake.is_up.store(true, Ordering::SeqCst);
        wait_until("closed", || health.is_closed());
        wait_until("the thread ends", || !is_running(&setting.watch));
        assert!(!setting.watch.is_any_away());
        assert_eq!(fake.probes.load(Ordering::SeqCst), 1);
        setting.kill(1);
        assert!(is_running(&setting.watch), "it starts again");
        setting.watch.close();
        wait_until("the thread ends", || !is_running(&setting.watch));
    }

    #[test]
    fn peer_that_is_never_absent_is_open() {
        let setting = Setting::new(3, Duration::MAX);
        setting.kill(1);
        assert_eq!(setting.peers[1].0.standing(), Standing::Open);
        setting.watch.close();
    }

    #[test]
    fn peer_that_is_down_for_long_is_absent_and_does_not_count_as_cut_off() {
        let setting = Setting::new(3, Duration::from_millis(300));
        setting.kill(0);
        setting.kill(1);
        assert!(setting.watch.is_cut_off(), "two of three");
        wait_until("absent", || {
            setting.peers[0].0.standing() == Standing::Absent
        });
        wait_until("all absent", || {
            setting.peers[1].0.standing() == Standing::Absent
        });
        wait_until("one healthy of one", || !setting.watch.is_cut_off());
        assert!(setting.watch.is_any_away());
        setting.watch.close();
    }

    #[test]
    fn panic_of_a_probe_is_a_failure() {
        struct Panics(std::sync::atomic::AtomicUsize);
        impl Probe for Panics {
            fn probe(&self, _: ProbeOf) -> Result<ProbeAnswer, Error> {
                self.0.fetch_add(1, Ordering::SeqCst);
                std::panic::resume_unwind(Box::new("in the transport"))
            }

            fn name(&self) -> String {
                "panics".into()
            }
        }
        let setting = Setting::new(1, LONG);
        let peer = Arc::new(Panics(0.into()));
        let probe: Arc<dyn Probe> = peer.clone();
        let watched = WatchedPeer {
            health: setting.peers[0].0.clone(),
            peer: Arc::downgrade(&probe),
        };
        drop(setting.watch.set_peers(vec![watched]));
        setting.kill(0);
        wait_until("two probes", || peer.0.load(Ordering::SeqCst) == 2);
        assert!(!setting.peers[0].0.is_closed());
        setting.watch.close();
    }

    /// The probe is the last use of the peer, whose drop panics.
    #[test]
    fn peer_whose_drop_panics_after_its_probe_does_not_end_the_thread() {
        struct DropPanics(Mutex<Option<Arc<DropPanics>>>);
        impl Probe for DropPanics {
            fn probe(&self, _: ProbeOf) -> Result<ProbeAnswer, Error> {
                drop(self.0.lock().take());
                Ok(ProbeAnswer::Present)
            }

            fn name(&self) -> String {
                String::new()
            }
        }
        impl Drop for DropPanics {
            fn drop(&mut self) {
                std::panic::resume_unwind(Box::new("in the drop of a transport"));
            }
        }
        let setting = Setting::new(1, LONG);
        let peer = Arc::new(DropPanics(Mutex::new(None)));
        *peer.0.lock() = Some(peer.clone());
        let probe: Arc<dyn Probe> = peer;
        let watched = WatchedPeer {
            health: setting.peers[0].0.clone(),
            peer: Arc::downgrade(&probe),
        };
        drop(probe);
        drop(setting.watch.set_peers(vec![watched]));
        setting.kill(0);
        // A peer that does not exist any more needs no answer to the next probe.
        wait_until("closed", || setting.peers[0].0.is_closed());
        wait_until("the thread ends", || !is_running(&setting.watch));
    }

    /// Panics at warnings of these tests.
    struct PanickingLogger;

    impl log::Log for PanickingLogger {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            if record.args().to_string().contains(PANICS) {
                std::panic::resume_unwind(Box::new("in the logger"));
            }
        }

        fn flush(&self) {}
    }

    const PANICS: &str = "panicking-logger";

    #[test]
    fn logger_that_panics_keeps_no_peer_from_being_passed_over_and_probed() {
        log::set_logger(&PanickingLogger).expect("the only logger of these tests");
        log::set_max_level(log::LevelFilter::Warn);
        let setting = Setting::new(3, LONG);
        let now = Instant::now();
        let error = Error::new(ErrorKind::Peer, PANICS);
        let health = &setting.peers[0].0;
        assert!(health.on_failure(now, now, ExchangeEnd::Unreachable, &error));

        struct Named;
        impl Probe for Named {
            fn probe(&self, _: ProbeOf) -> Result<ProbeAnswer, Error> {
                Ok(ProbeAnswer::Present)
            }

            fn name(&self) -> String {
                PANICS.into()
            }
        }
        let setting = Setting::new(3, LONG);
        let named: Arc<dyn Probe> = Arc::new(Named);
        let mut watched = setting.watch.watched.lock();
        watched.peers[1].peer = Arc::downgrade(&named);
        drop(watched);
        for _ in 0..10 {
            for (at, (health, _)) in setting.peers.iter().enumerate() {
                let took = Duration::from_millis(if at == 1 { 500 } else { 1 });
                (0..10).for_each(|_| health.latencies.add(took));
            }
            let due = setting.watch.turn_at.load(Ordering::SeqCst);
            setting.watch.turn(due, due);
        }
        assert_eq!(setting.peers[1].0.standing(), Standing::Slow);
        setting.watch.close();
    }

    /// Turns of the last seconds, in which some peers answered late.
    fn make_slow(setting: &Setting, slow: &[usize]) {
        let now = Instant::now();
        for turn in (0..=8).rev() {
            for (at, (health, _)) in setting.peers.iter().enumerate() {
                let millis = if slow.contains(&at) { 500 } else { 1 };
                (0..10).for_each(|_| health.latencies.add(Duration::from_millis(millis)));
            }
            drop(setting.watch.find_slow(now - TURN * turn, 1));
        }
        setting.watch.wake();
    }

    #[test]
    fn slow_peer_is_passed_over_and_probed() {
        let setting = Setting::new(3, LONG);
        let (health, fake) = &setting.peers[1];
        fake.is_up.store(true, Ordering::SeqCst);
        make_slow(&setting, &[1]);
        assert_eq!(health.standing(), Standing::Slow);
        assert_eq!(health.state().0, PeerState::Slow);
        assert!(setting.watch.is_any_away() && !setting.watch.is_cut_off());
        assert!(setting.peers[0].0.is_closed());
        wait_until("probed twice", || fake.probes.load(Ordering::SeqCst) == 2);
        drop(setting.watch.set_peers(Vec::new()));
        wait_until("the thread ends", || !is_running(&setting.watch));
    }

    #[test]
    fn peer_that_is_slow_for_long_is_absent_but_its_state_is_slow() {
        let setting = Setting::new(3, Duration::from_millis(100));
        make_slow(&setting, &[1]);
        let health = &setting.peers[1].0;
        wait_until("absent", || health.standing() == Standing::Absent);
        assert_eq!(health.state().0, PeerState::Slow);
        setting.watch.close();
    }

    /// A hung peer would keep a caller for the time-out of the probe.
    #[test]
    fn no_caller_runs_a_probe() {
        let setting = Setting::new(4, LONG);
        make_slow(&setting, &[3]);
        setting.kill(0);
        for (_, fake) in [&setting.peers[0], &setting.peers[3]] {
            wait_until("two probes", || {
                setting.watch.wake();
                setting.watch.tick(Instant::now());
                fake.probes.load(Ordering::SeqCst) >= 2
            });
            assert_eq!(fake.by_callers.load(Ordering::SeqCst), 0);
        }
        setting.watch.close();
    }

    #[test]
    fn no_peer_is_passed_over_if_more_than_a_third_are_slow() {
        let setting = Setting::new(4, LONG);
        make_slow(&setting, &[0, 1]);
        for (at, (health, _)) in setting.peers.iter().enumerate() {
            assert!(health.is_closed());
            assert_eq!(health.state().0 == PeerState::Slow, at < 2, "{at}");
        }
        assert!(!setting.watch.is_any_away());
        assert!(is_running(&setting.watch), "they are probed all the same");
        setting.watch.close();
    }

    #[test]
    fn peer_that_leaves_is_absent_at_once() {
        let setting = Setting::new(2, LONG);
        let (health, fake) = &setting.peers[0];
        health.leave();
        setting.watch.wake();
        assert_eq!(health.standing(), Standing::Absent);
        assert_eq!(health.state().0, PeerState::Absent);
        assert!(health.may_hand_over() && !setting.watch.is_cut_off());
        wait_until("it has gone", || !health.may_hand_over());
        assert_eq!(health.standing(), Standing::Absent);
        fake.is_up.store(true, Ordering::SeqCst);
        wait_until("it is back", || health.is_closed());
        assert!(health.may_hand_over());
    }

    #[test]
    fn peer_that_left_the_list_ends_the_thread() {
        let setting = Setting::new(2, LONG);
        setting.kill(0);
        assert!(is_running(&setting.watch));
        drop(setting.watch.set_peers(Vec::new()));
        wait_until("the thread ends", || !is_running(&setting.watch));
        assert!(!setting.watch.is_any_away());
    }
}

#[cfg(larder_loom)]
mod loom_models {
    use super::*;

    /// Each breaker that opens is probed and closed, and then the thread ends. Explores
    /// the orders with one preemption, for 10 s at most, because more take minutes.
    #[test]
    fn loom_every_breaker_that_opens_is_probed() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(1);
        model.max_duration = Some(Duration::from_secs(10));
        model.check(|| {
            let setting = Arc::new(Setting::new(2, Duration::from_secs(60)));
            for (_, fake) in &setting.peers {
                fake.is_up.store(true, Ordering::SeqCst);
            }
            let other = setting.clone();
            let killer = thread::spawn(move || other.kill(0));
            setting.kill(1);
            killer.join().expect("no panic");
            wait_for_the_end(&setting);
        });
    }

    fn wait_for_the_end(setting: &Setting) {
        while setting.watch.watched.lock().is_running {
            thread::yield_now();
        }
        assert!(setting.peers.iter().all(|(health, _)| health.is_closed()));
        assert!(!setting.watch.is_any_away());
    }

    /// A turn finds a slow peer while the breaker of another one opens.
    #[test]
    fn loom_every_slow_peer_is_probed_until_it_is_fast() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(1);
        model.max_duration = Some(Duration::from_secs(10));
        model.check(|| {
            let setting = Arc::new(Setting::new(3, Duration::from_secs(60)));
            for (at, (health, fake)) in setting.peers.iter().enumerate() {
                fake.is_up.store(true, Ordering::SeqCst);
                let millis = if at == 1 { 500 } else { 1 };
                (0..10).for_each(|_| health.latencies.add(Duration::from_millis(millis)));
            }
            let other = setting.clone();
            let killer = thread::spawn(move || other.kill(0));
            setting.watch.tick(setting.watch.origin);
            killer.join().expect("no panic");
            wait_for_the_end(&setting);
            let probes = |at: usize| setting.peers[at].1.probes.load(Ordering::SeqCst);
            assert_eq!((probes(0), probes(2)), (1, 0));
            assert!(probes(1) >= 1, "it was slow");
        });
    }
}
