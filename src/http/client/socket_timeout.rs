//! A time-out of a socket that follows a deadline, at few system calls.

use std::io;
use std::time::Duration;

/// A time-out of the socket, as it is set there.
#[derive(Default)]
pub(crate) struct SocketTimeout(Option<Duration>);

impl SocketTimeout {
    /// Sees to it that a system call made now ends when the time `left` is over, give or take a
    /// sixteenth of it. Exchanges begin with the same time left, so the setting of the first serves all
    /// that follow and costs them no system call. A setting that is too short is kept down to the
    /// half: the caller waits a second time.
    ///
    /// # Errors
    ///
    /// `TimedOut` if there is none.
    pub(crate) fn prepare(
        &mut self,
        left: Duration,
        set: impl FnOnce(Duration) -> io::Result<()>,
    ) -> io::Result<()> {
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let fits = |set: Duration| set <= left + left / 16 && set >= left / 2;
        if self.0.is_some_and(fits) {
            return Ok(());
        }
        let timeout = left.max(MIN_TIMEOUT);
        set(timeout)?;
        self.0 = Some(timeout);
        Ok(())
    }
}

/// The finest time-out worth asking the kernel for; Linux rounds up to its tick, 1 to 10 ms.
pub(crate) const MIN_TIMEOUT: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_of_one_length_set_the_sockets_timeout_once() {
        let mut timeout = SocketTimeout::default();
        let mut set = Vec::new();
        let mut prepare = |millis| {
            timeout.prepare(Duration::from_millis(millis), |timeout| {
                set.push(timeout);
                Ok(())
            })
        };
        for _ in 0..100 {
            prepare(10_000).unwrap();
        }
        prepare(9_900).unwrap();
        prepare(15_000).unwrap();
        prepare(1_000).unwrap();
        prepare(10_000).unwrap();
        assert_eq!(
            prepare(0).unwrap_err().kind(),
            io::ErrorKind::TimedOut,
            "the deadline has passed"
        );
        let seconds: Vec<_> = set.iter().map(|t| t.as_secs_f64().round()).collect();
        assert_eq!(seconds, [10.0, 1.0, 10.0]);
    }

    #[test]
    fn a_timeout_that_could_not_be_set_is_not_remembered() {
        let mut timeout = SocketTimeout::default();
        let left = Duration::from_secs(10);
        let refused = || io::Error::other("no");
        assert!(timeout.prepare(left, |_| Err(refused())).is_err());
        let mut again = false;
        timeout
            .prepare(left, |_| {
                again = true;
                Ok(())
            })
            .unwrap();
        assert!(again);
    }
}
