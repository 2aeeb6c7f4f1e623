//! Waits without the interpreter, which end when a signal handler of Python's raises.

use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::job::lock;

/// The longest wait at once: a signal that comes just before one begins is seen after it.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);

/// How long a wait is that no signal ends.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// When to stop waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until(Option<Instant>);

impl Until {
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    pub(crate) fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn has_passed(self) -> bool {
        self.left() == Duration::ZERO
    }
}

/// Waits until one of them is readable, or so long at most. It may return before either.
pub(crate) fn readable(py: Python<'_>, fds: &[BorrowedFd<'_>], most: Duration) -> PyResult<()> {
    let polled = py.detach(|| {
        let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let milliseconds = most.min(AT_ONCE).as_nanos().div_ceil(1_000_000);
        poll(&mut fds, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::ZERO))
    });
    match polled {
        Ok(_) => py.check_signals(),
        Err(Errno::EINTR) => py.check_signals(),
        Err(errno) => Err(std::io::Error::from(errno).into()),
    }
}

/// Whether this is the thread in which signal handlers of Python's run.
pub(crate) fn is_main_thread() -> bool {
    nix::unistd::gettid() == nix::unistd::getpid()
}

/// What a thread tells who waits for it.
enum Told<P, T> {
    HowFar(P),
    Ended(T),
}

/// What a thread does, and is waited for.
pub(crate) struct Beside<P, T> {
    name: String,
    // `Python::detach` takes only what other threads may use.
    receiver: Mutex<Receiver<Told<P, T>>>,
}

/// Does what may take very long in a thread of its own.
pub(crate) fn begin<P: Send + 'static, T: Send + 'static>(
    name: &str,
    work: impl FnOnce(&dyn Fn(P)) -> T + Send + 'static,
) -> PyResult<Beside<P, T>> {
    let (sender, receiver) = mpsc::channel();
    let tell = move |sender: Sender<Told<P, T>>| {
        // No one may wait any more.
        let told = work(&|how_far| drop(sender.send(Told::HowFar(how_far))));
        drop(sender.send(Told::Ended(told)));
    };
    thread::Builder::new().name(name.to_owned()).spawn(move || tell(sender))?;
    Ok(Beside { name: name.to_owned(), receiver: Mutex::new(receiver) })
}

impl<P: Send + 'static, T: Send + 'static> Beside<P, T> {
    /// Waits for its end. A signal handler that raises, or `heard` itself, ends the wait; the work
    /// goes on then.
    pub(crate) fn wait(
        &self,
        py: Python<'_>,
        mut heard: impl FnMut(P) -> PyResult<()>,
    ) -> PyResult<T> {
        loop {
            match py.detach(|| lock(&self.receiver).recv_timeout(TICK)) {
                Ok(Told::Ended(told)) => return Ok(told),
                Ok(Told::HowFar(how_far)) => heard(how_far)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let name = &self.name;
                    return Err(PyRuntimeError::new_err(format!("the thread {name} has panicked")));
                }
            }
            py.check_signals()?;
        }
    }

    /// Waits for its end, so long at most, whatever signals come.
    pub(crate) fn wait_within(&self, py: Python<'_>, most: Duration) {
        let until = Until::after(Some(most));
        py.detach(|| {
            let receiver = lock(&self.receiver);
            while let Ok(Told::HowFar(_)) = receiver.recv_timeout(until.left()) {}
        });
    }
}

/// Does what may take very long in a thread of its own, and waits for it: see [`Beside::wait`].
pub(crate) fn interruptible<P: Send + 'static, T: Send + 'static>(
    py: Python<'_>,
    name: &str,
    work: impl FnOnce(&dyn Fn(P)) -> T + Send + 'static,
    heard: impl FnMut(P) -> PyResult<()>,
) -> PyResult<T> {
    begin(name, work)?.wait(py, heard)
}
