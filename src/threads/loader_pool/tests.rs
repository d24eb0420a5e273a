//! Tests of the pool of loader threads.

use super::*;
use crate::sync::thread;
use std::sync::mpsc;

/// A share of a pool of its own.
fn share(max_threads: usize) -> LoaderShare {
    LoaderPool::default().share(max_threads, None)
}

fn live(share: &LoaderShare) -> usize {
    let state = share.set.0.pool.state.lock();
    state.sets.iter().map(|set| set.live).sum()
}

fn ending(share: &LoaderShare) -> usize {
    let state = share.set.0.pool.state.lock();
    state.sets.iter().map(|set| set.ending).sum()
}

fn waiting(share: &LoaderShare) -> usize {
    share.set.0.pool.state.lock().waiting.len()
}

const PATIENCE: Duration = Duration::from_secs(20);

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        thread::yield_now();
    }
}

/// A job that reports its start and ends on a signal.
fn held(pool: &LoaderShare, job_for: JobFor) -> (Result<()>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (began, has_begun) = mpsc::channel();
    let (end, end_signal) = mpsc::channel();
    let submitted = pool.submit(job_for, move |_busy| {
        let _ = began.send(());
        let _ = end_signal.recv_timeout(PATIENCE);
    });
    (submitted, has_begun, end)
}

#[test]
fn job_is_refused_at_once_when_all_threads_are_busy() {
    let pool = share(2);
    let jobs = [held(&pool, JobFor::Own), held(&pool, JobFor::Own)];
    jobs.iter()
        .for_each(|(_, begun, _)| begun.recv_timeout(PATIENCE).expect("it runs"));
    let (refused, ..) = held(&pool, JobFor::Own);
    assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Overloaded));
}

/// The job of a client that does not wait for a thread.
fn client() -> JobFor {
    JobFor::Client(None, Instant::now())
}

#[test]
fn job_of_a_client_waits_for_a_thread_until_its_time() {
    let pool = share(2);
    let (first, begun, end) = held(&pool, client());
    first.expect("a thread is idle");
    begun.recv_timeout(PATIENCE).expect("it runs");
    let soon = JobFor::Client(None, Instant::now() + Duration::from_millis(20));
    let (refused, ..) = held(&pool, soon);
    assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Overloaded));
    thread::scope(|scope| {
        let waiters = [0, 1].map(|_| {
            scope.spawn(|| {
                let until = Instant::now() + Duration::from_secs(20);
                let (submitted, begun, _end) = held(&pool, JobFor::Client(None, until));
                submitted.expect("a thread in time");
                begun.recv_timeout(PATIENCE).expect("it runs");
            })
        });
        wait_until("both wait", || waiting(&pool) == waiters.len());
        drop(end);
    });
    assert_eq!(waiting(&pool), 0);
}

#[test]
fn clients_leave_half_of_the_threads_to_own_callers() {
    let pool = share(3);
    let clients = [held(&pool, client()), held(&pool, client())];
    let (refused, ..) = held(&pool, client());
    assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Overloaded));
    let (own, begun, _end) = held(&pool, JobFor::Own);
    own.expect("a thread is left");
    begun.recv_timeout(PATIENCE).expect("it runs");
    let [(_, begun, end), _kept] = clients;
    begun.recv_timeout(PATIENCE).expect("it runs");
    drop(end);
    wait_until("a thread is left", || held(&pool, client()).0.is_ok());
}

/// Its drop waits for a signal, and signals its end.
struct WaitsInDrop(mpsc::Receiver<()>, mpsc::Sender<()>);

impl Drop for WaitsInDrop {
    fn drop(&mut self) {
        let signal = self.0.recv_timeout(Duration::from_secs(20));
        let _ = signal.is_ok().then(|| self.1.send(()));
    }
}

#[test]
fn job_does_not_wait_for_a_thread_that_drops() {
    let pool = share(1);
    let (signal, wait) = mpsc::channel();
    let (dropped, is_dropped) = mpsc::channel();
    let (rest, (begun, has_begun)) = (WaitsInDrop(wait, dropped), mpsc::channel());
    let submitted = pool.submit(JobFor::Own, move |busy| {
        drop(busy);
        let _ = begun.send(());
        rest
    });
    submitted.expect("a thread is idle");
    has_begun.recv_timeout(PATIENCE).expect("it runs");
    let submitted = pool.submit(JobFor::Own, move |_busy| {
        let _ = signal.send(());
    });
    submitted.expect("a thread is idle");
    is_dropped
        .recv_timeout(PATIENCE)
        .expect("the second job ran");
}

/// The second job is sent to the thread of the first one before that one begins to drop.
#[test]
fn job_of_a_thread_that_begins_to_drop_gets_another_thread() {
    for panics in [false, true] {
        let pool = Arc::new(share(1));
        let (signal, wait) = mpsc::channel();
        let (dropped, is_dropped) = mpsc::channel();
        let (rest, other) = (WaitsInDrop(wait, dropped), pool.clone());
        let submitted = pool.submit(JobFor::Own, move |busy| {
            let rest = rest;
            if panics {
                // They are dropped in the reverse order.
                let _later = Submits(other, Some(signal));
                let _busy = busy;
                std::panic::resume_unwind(Box::new("quietly"));
            }
            drop(busy);
            drop(Submits(other, Some(signal)));
            rest
        });
        submitted.expect("a thread is idle");
        is_dropped
            .recv_timeout(PATIENCE)
            .expect("the second job ran");
    }
}

/// Its drop submits a job that sends a signal, if the thread is not busy any more.
struct Submits(Arc<LoaderShare>, Option<mpsc::Sender<()>>);

impl Drop for Submits {
    fn drop(&mut self) {
        let signal = self.1.take().expect("it is dropped once");
        let submitted = self.0.submit(JobFor::Own, move |_busy| {
            let _ = signal.send(());
        });
        submitted.expect("a thread is idle");
    }
}

#[test]
fn drop_after_a_job_may_wait_for_another_job() {
    struct WaitsForJob(Arc<LoaderShare>, mpsc::Sender<()>);
    impl Drop for WaitsForJob {
        fn drop(&mut self) {
            for _ in 0..2 {
                let (done, wait) = mpsc::channel();
                let job = move |busy: BusyGuard<'_>| {
                    drop(busy);
                    let _ = done.send(());
                };
                self.0.submit(JobFor::Own, job).expect("a thread is idle");
                wait.recv_timeout(Duration::from_secs(20)).expect("it ran");
            }
            let _ = self.1.send(());
        }
    }
    let pool = Arc::new(share(1));
    for _ in 0..3 {
        let (dropped, wait) = mpsc::channel();
        let rest = WaitsForJob(pool.clone(), dropped);
        let submitted = pool.submit(JobFor::Own, move |busy| {
            drop(busy);
            rest
        });
        submitted.expect("a thread is idle");
        wait.recv_timeout(PATIENCE).expect("it is dropped");
        wait_until("the drop has ended", || ending(&pool) == 0);
    }
    assert_eq!(live(&pool), 2);
}

#[test]
fn thread_is_idle_before_its_job_publishes() {
    let pool = share(1);
    let (done, wait) = mpsc::channel();
    let ids: std::collections::HashSet<_> = (0..1000)
        .map(|_| {
            let done = done.clone();
            pool.submit(JobFor::Own, move |busy| {
                drop(busy);
                let _ = done.send(thread::current().id());
            })
            .expect("the thread is idle");
            wait.recv_timeout(PATIENCE).expect("it ran")
        })
        .collect();
    assert_eq!(ids.len(), 1);
}

#[test]
fn idle_threads_end_and_new_jobs_still_run() {
    let pool = LoaderPool::new(100, Duration::from_millis(1)).share(4, None);
    for _ in 0..50 {
        let (done, wait) = mpsc::channel();
        pool.submit(JobFor::Own, move |busy| {
            drop(busy);
            let _ = done.send(());
        })
        .expect("not all threads are busy");
        wait.recv_timeout(PATIENCE).expect("it ran");
        // The next job comes before, while or after the thread ends.
        wait_until("a thread has ended", || live(&pool) <= 3);
    }
    wait_until("all threads have ended", || live(&pool) == 0);
}

#[test]
fn idle_threads_end_with_their_pool() {
    let pool = LoaderPool::new(100, Duration::from_secs(3600));
    let (shared, share) = (pool.shared.clone(), pool.share(4, None));
    let (done, wait) = mpsc::channel();
    let submitted = share.submit(JobFor::Own, move |busy| {
        drop(busy);
        let _ = done.send(());
    });
    submitted.expect("a thread is idle");
    wait.recv_timeout(PATIENCE).expect("it ran");
    drop((pool, share));
    wait_until("the thread has ended", || {
        shared.state.lock().sets[0].live == 0
    });
}

#[test]
fn panicking_job_frees_its_thread() {
    let pool = share(1);
    pool.submit(JobFor::Own, |_busy| {
        std::panic::resume_unwind(Box::new("quietly"))
    })
    .expect("not all threads are busy");
    let (done, wait) = mpsc::channel();
    // The panicking job holds its guard until it has unwound.
    wait_until("the thread is idle", || {
        let done = done.clone();
        let submitted = pool.submit(JobFor::Own, move |_busy| {
            let _ = done.send(());
        });
        submitted.is_ok()
    });
    wait.recv_timeout(PATIENCE).expect("it ran");
}

/// Starts jobs that go on until their handles are dropped, until one is refused.
fn fill(share: &LoaderShare, job_for: fn() -> JobFor) -> Vec<mpsc::Sender<()>> {
    let jobs = std::iter::from_fn(|| {
        let (submitted, begun, end) = held(share, job_for());
        submitted.ok()?;
        begun.recv_timeout(PATIENCE).expect("it runs");
        Some(end)
    });
    jobs.collect()
}

#[test]
fn each_hung_group_leaves_threads_to_the_others() {
    let pool = LoaderPool::new(8, IDLE_TIMEOUT);
    let taken = [(); 5].map(|()| {
        let hung = fill(&pool.share(100, None), || JobFor::Own);
        let count = hung.len();
        (count, hung)
    });
    assert_eq!(taken.each_ref().map(|(count, _)| *count), [4, 2, 1, 1, 0]);
    drop(taken);
    wait_until("all jobs end", || pool.shared.state.lock().busy == 0);
    assert_eq!(fill(&pool.share(3, None), || JobFor::Own).len(), 3);
}

#[test]
fn clients_of_all_groups_leave_half_of_the_threads_to_own_callers() {
    let pool = LoaderPool::new(8, IDLE_TIMEOUT);
    let shares = [(); 3].map(|()| pool.share(100, None));
    let clients = shares.each_ref().map(|share| fill(share, client));
    assert_eq!(clients.each_ref().map(Vec::len), [4, 0, 0]);
    assert_eq!(fill(&shares[1], || JobFor::Own).len(), 2);
}

#[test]
fn thread_that_a_group_leaves_goes_to_the_client_that_waited_longest() {
    let pool = LoaderPool::new(2, IDLE_TIMEOUT);
    let shares = [pool.share(2, None), pool.share(2, None)];
    let mut first = fill(&shares[0], client);
    assert_eq!(first.len(), 1);
    let (order, ended) = mpsc::channel();
    thread::scope(|scope| {
        for number in 0..4 {
            let (share, order) = (&shares[number % 2], order.clone());
            scope.spawn(move || {
                let until = Instant::now() + Duration::from_secs(20);
                let submitted = share.submit(JobFor::Client(None, until), move |_busy| {
                    let _ = order.send(number);
                });
                submitted.expect("a thread in time");
            });
            wait_until("it waits", || waiting(share) > number);
        }
        first.clear();
    });
    let order: Vec<_> = ended.iter().take(4).collect();
    assert_eq!(order, [0, 1, 2, 3]);
}

#[test]
fn groups_share_threads_with_stacks_of_the_same_size() {
    let pool = LoaderPool::default();
    let run = |stack_size| {
        let (done, wait) = mpsc::channel();
        let submitted = pool.share(9, stack_size).submit(JobFor::Own, move |busy| {
            drop(busy);
            let _ = done.send(thread::current().id());
        });
        submitted.expect("a thread is left");
        wait.recv_timeout(PATIENCE).expect("it ran")
    };
    let small = Some(256 << 10);
    let ids = [None, None, small, None, small].map(run);
    assert_eq!([ids[1], ids[3], ids[4]], [ids[0], ids[0], ids[2]]);
    assert_ne!(ids[0], ids[2]);
}
