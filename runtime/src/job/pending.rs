//! A command whose output is collected by an event loop of the caller's.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::error::{Error, Result};
use crate::exit::{EndReason, ExitStatus};
use crate::job::captures::Captures;
use crate::job::child::{Collection, Output};
use crate::job::collect::{Collector, fds_of, ready_of};
use crate::job::running::{Handle, Running};
use crate::wait::{Deadline, wait_once};

/// A place that a command is waited for at.
type Place<'a> = Option<(BorrowedFd<'a>, PollFlags)>;

/// The number of the first place that is a stream: before it are the channel and init.
const STREAMS: usize = 2;

/// A command that runs, whose output is collected step by step by whoever waits for it; made by
/// [`Command::begin_output`](crate::Command::begin_output).
///
/// [`PendingOutput::watch`] is one descriptor for `poll(2)` and event loops. When that is readable,
/// or after [`PendingOutput::wait_at_most`], [`PendingOutput::advance`] does what there is to do.
/// No thread works for it. Until someone calls `advance`, the command waits where its pipes are
/// full, and limits of its output are not kept.
///
/// When it is dropped before the end, the command and all that it has started are killed.
///
/// ```no_run
/// # use std::os::fd::BorrowedFd;
/// # use std::time::Duration;
/// # fn wait_readable(_: BorrowedFd<'_>, _: Option<Duration>) {}
/// # use adl_runtime::{Config, Sandbox};
/// let sandbox = Sandbox::create(Config::default())?;
/// let mut pending = sandbox.command("make").begin_output()?;
/// let output = loop {
///     if let Some(output) = pending.advance()? {
///         break output;
///     }
///     let most = pending.wait_at_most();
///     wait_readable(pending.watch()?, most);
/// };
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct PendingOutput {
    /// Until it has ended.
    going: Option<(Collection, Captures)>,
    running: Arc<Running>,
    /// Once someone has asked for it.
    watch: Option<Watch>,
}

impl PendingOutput {
    pub(crate) fn new(mut collection: Collection) -> Result<Self> {
        let running = Arc::clone(&collection.collector.running);
        if let Err(error) = collection.collector.begin() {
            let _ = running.end(EndReason::Stopped);
            return Err(error);
        }
        let captures = Captures::new(collection.caps);
        Ok(Self { going: Some((collection, captures)), running, watch: None })
    }

    /// Moves the bytes that can be moved without waiting, and returns the output once the command
    /// has ended. The last step of a command on a terminal takes up to a tenth of a second.
    ///
    /// # Errors
    /// As [`Command::output`](crate::Command::output), and [`Error::Invalid`] once it has returned
    /// the output or an error.
    pub fn advance(&mut self) -> Result<Option<Output>> {
        self.advance_within(Duration::ZERO)
    }

    /// Does as [`PendingOutput::advance`] when there is something to do, for which it waits: no
    /// longer than `timeout`, and no longer than until a signal handler of the program has run in
    /// the calling thread (`EINTR`).
    ///
    /// # Errors
    /// As [`PendingOutput::advance`].
    pub fn advance_within(&mut self, timeout: Duration) -> Result<Option<Output>> {
        // Before anything is read: a fork shares the pipes.
        self.running.check_own()?;
        let Some((mut collection, captures)) = self.going.take() else {
            return Err(Error::invalid("output", "it was collected before"));
        };
        let deadline = Deadline::after(timeout);
        match turn(&mut collection.collector, &captures, self.watch.as_mut(), deadline) {
            Ok(None) => {
                self.going = Some((collection, captures));
                Ok(None)
            }
            Ok(Some(status)) => {
                let (status, stdio_open) = collection.finish(status, &mut &captures)?;
                Ok(Some(Output::new(status, captures, stdio_open)))
            }
            Err(error) => {
                let _ = self.running.end(EndReason::Stopped);
                Err(error)
            }
        }
    }

    /// How long to wait for the descriptor at most before [`PendingOutput::advance`] is due;
    /// `None` if there is no end.
    pub fn wait_at_most(&self) -> Option<Duration> {
        let is_always_ready = self.watch.as_ref().is_some_and(|watch| watch.is_always_ready);
        match &self.going {
            Some((collection, _)) if !is_always_ready => collection.collector.next_at().left(),
            _ => Some(Duration::ZERO),
        }
    }

    /// A descriptor that is readable when there is something to do, from the first call on until
    /// this is dropped. For `poll(2)` and event loops; not to be read from.
    ///
    /// # Errors
    /// [`Error::Io`] if there can be no descriptor.
    pub fn watch(&mut self) -> Result<BorrowedFd<'_>> {
        let watch = match self.watch.take() {
            Some(watch) => watch,
            None => {
                let mut watch = Watch::new()?;
                if let Some((collection, _)) = &self.going {
                    watch.add(&collection.collector.places())?;
                }
                watch
            }
        };
        Ok(self.watch.insert(watch).epoll.0.as_fd())
    }

    /// What any thread can signal it with and end it.
    pub fn handle(&self) -> Handle {
        // Whoever has it may wait for it, too.
        self.running.mark_shared();
        Handle(Arc::clone(&self.running))
    }
}

impl Drop for PendingOutput {
    fn drop(&mut self) {
        if self.going.is_some() {
            // There is no one to tell. In a fork, nothing is done.
            let _ = self.running.end(EndReason::Stopped);
        }
    }
}

/// Does what there is to do by the deadline. Returns how the command has ended, if it has.
fn turn(
    collector: &mut Collector,
    mut to: &Captures,
    mut watch: Option<&mut Watch>,
    deadline: Deadline,
) -> Result<Option<ExitStatus>> {
    let ready = {
        let places = collector.places();
        let mut fds = fds_of(&places);
        let is_any = wait_once(&mut fds, deadline.min(collector.next_at()))?;
        let ready = is_any.then(|| ready_of(&places, &mut fds.iter()));
        if let (Some(watch), true) = (&mut watch, is_any) {
            watch.remove_streams(&places)?;
        }
        ready
    };
    if ready.is_none() && !collector.next_at().passed() {
        return Ok(None);
    }
    let ended = collector.turn(ready, &mut to)?;
    if let (Some(watch), None) = (watch, &ended) {
        watch.add(&collector.places())?;
    }
    Ok(ended)
}

/// What a command is waited for at, as one descriptor.
#[derive(Debug)]
struct Watch {
    epoll: Epoll,
    /// Which of the places it has.
    has: [bool; 6],
    /// Whether one of the places can't be waited for, as a regular file.
    is_always_ready: bool,
}

impl Watch {
    fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let epoll = epoll.map_err(Error::io("epoll_create"))?;
        Ok(Self { epoll, has: [false; 6], is_always_ready: false })
    }

    /// Adds the places that it has not.
    fn add(&mut self, places: &[Place<'_>; 6]) -> Result<()> {
        for (has, place) in self.has.iter_mut().zip(places) {
            let (Some((fd, flags)), false) = (place, *has) else { continue };
            // The bits of both are the same.
            let flags = EpollFlags::from_bits_truncate(i32::from(flags.bits()));
            match self.epoll.add(fd, EpollEvent::new(flags, 0)) {
                Ok(()) => *has = true,
                Err(Errno::EPERM) => self.is_always_ready = true,
                Err(errno) => return Err(Error::io("epoll_ctl")(errno)),
            }
        }
        Ok(())
    }

    /// Removes the streams, before any of them is closed: closed alone, one would stay for as long
    /// as a fork has a copy, and wake up whoever waits, again and again.
    fn remove_streams(&mut self, places: &[Place<'_>; 6]) -> Result<()> {
        self.is_always_ready = false;
        for (has, place) in self.has.iter_mut().zip(places).skip(STREAMS) {
            if let (Some((fd, _)), true) = (place, std::mem::take(has)) {
                self.epoll.delete(fd).map_err(Error::io("epoll_ctl"))?;
            }
        }
        Ok(())
    }
}
