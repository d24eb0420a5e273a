//! Parent and child of a fork use connections of their own, and loader threads.

use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use larder::http::HttpPool;
use larder::{Context, Error, Group, Registry};

use super::raw_server::{RawServer, key_of, keyed_body, ok_with};
use super::{get, pool_of};

/// The gets of each process with each kind of server.
const GETS: usize = 5_000;

#[test]
fn parent_and_child_of_a_fork_get_their_own_values() {
    run_alone("client::fork::forking_process");
}

#[test]
fn child_of_a_fork_starts_loader_threads_of_its_own() {
    run_alone("client::fork::forking_process_with_an_idle_loader_thread");
}

/// Runs a test in a process of its own, so that no other test runs while it forks.
fn run_alone(test: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "the process of another test"]
fn forking_process() {
    for headers in ["", "Server: larder\r\n"] {
        let server = RawServer::answering_by(move |head| {
            let key = key_of(head);
            ok_with(headers, &keyed_body(&key, key.as_bytes()))
        });
        let pool = pool_of(&server.url);
        warm(&pool);
        // SAFETY: the child uses the pool, whose locks no other thread holds, and exits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let gets = gets_of(&pool, "child");
            // SAFETY: ends this process only.
            unsafe { libc::_exit(i32::from(gets.is_err())) };
        }
        let gets = gets_of(&pool, "parent");
        let mut status = 0;
        // SAFETY: `status` is valid for the call.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!((gets, status), (Ok(()), 0), "{headers}");
    }
}

#[test]
#[ignore = "the process of another test"]
fn forking_process_with_an_idle_loader_thread() {
    let group = Group::builder("echo")
        .registry(&Registry::new())
        .max_loader_threads(1)
        .build_with(|_, key| Ok::<_, Error>(key.to_owned()))
        .unwrap();
    let load = |key: &str| group.get_with(&Context::background().with_timeout(PATIENCE), key);
    load("parent").unwrap();
    // The thread takes the pool's lock once more before it is idle, which nothing shows.
    std::thread::sleep(Duration::from_millis(200));
    // SAFETY: the child uses the group, whose locks no other thread holds, and exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let loaded = load("child");
        // SAFETY: ends this process only.
        unsafe { libc::_exit(i32::from(loaded.is_err())) };
    }
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child has the value in time");
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Opens several connections.
fn warm(pool: &HttpPool) {
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let start = &start;
            scope.spawn(move || {
                for n in 0..20 {
                    start.wait();
                    get(pool, &format!("warm-{thread}-{n}")).unwrap();
                }
            });
        }
    });
}

/// Gets many keys; an error if one has no value or that of another key.
fn gets_of(pool: &HttpPool, process: &str) -> Result<(), String> {
    for n in 0..GETS {
        let key = format!("{process}-{n}");
        match get(pool, &key) {
            Ok(answer) if answer.value == key => {}
            other => return Err(format!("{key}: {other:?}")),
        }
    }
    Ok(())
}
