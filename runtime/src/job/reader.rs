//! The thread that reads what all commands in the background of a sandbox write.
//!
//! One for each life of a sandbox, not for the whole process: what a guest makes slow is its own.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result};
use crate::job::captures::{Caps, Captures};
use crate::job::child::Collection;
use crate::job::collect::{Ready, fds_of, ready_of};
use crate::job::outcome::{Moved, Outcome, STACK, relay, whatever_becomes_of};
use crate::sys::lock::lock;
use crate::wait::{Deadline, wait_ready};

/// What is collected of a command in the background.
#[derive(Debug)]
pub(crate) struct Collecting {
    pub(crate) captures: Captures,
    pub(crate) outcome: Outcome,
}

impl Collecting {
    pub(crate) fn new(caps: Caps) -> Result<Self> {
        Ok(Self { captures: Captures::new(caps), outcome: Outcome::new()? })
    }

    /// Tells how it has ended, whatever became of whoever collected.
    fn end(&self, result: Result<Moved>) {
        self.outcome.end(result);
        self.captures.end();
    }
}

/// Collects to the end, in a thread of its own.
pub(crate) fn read_alone(to: Arc<Collecting>, collection: Collection) -> Result<()> {
    relay(move || to.end(whatever_becomes_of(|| collection.run(&mut &to.captures))))
}

/// Where the output of a command in the background goes, and what moves it.
type Read = (Arc<Collecting>, Collection);

/// Where the thread is told of commands; there is one while it has any.
#[derive(Debug, Default)]
pub(crate) struct Reader(Mutex<Option<Inbox>>);

#[derive(Debug)]
struct Inbox {
    waiting: Vec<Read>,
    /// Readable when something waits.
    bell: Arc<EventFd>,
}

impl Reader {
    /// Has a command be read from until it has ended.
    pub(crate) fn read(
        self: &Arc<Self>,
        to: Arc<Collecting>,
        mut collection: Collection,
    ) -> Result<()> {
        collection.collector.begin()?;
        let mut inbox = lock(&self.0);
        if let Some(inbox) = &mut *inbox {
            inbox.waiting.push((to, collection));
            // It holds one number, so it has room for this.
            let _ = inbox.bell.write(1);
            return Ok(());
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_flags(flags).map_err(Error::io("eventfd"))?);
        let (this, heard) = (Arc::clone(self), Arc::clone(&bell));
        let work = move || this.run(&heard, vec![(to, collection)]);
        let thread = std::thread::Builder::new().name("adl-job".to_owned()).stack_size(STACK);
        thread.spawn(work).map_err(Error::io("start of a thread"))?;
        *inbox = Some(Inbox { waiting: Vec::new(), bell });
        Ok(())
    }

    fn run(&self, bell: &EventFd, mut all: Vec<Read>) {
        loop {
            {
                let mut inbox = lock(&self.0);
                let waiting = inbox.as_mut().map(|inbox| std::mem::take(&mut inbox.waiting));
                all.extend(waiting.unwrap_or_default());
                if all.is_empty() {
                    // Whoever comes next starts another.
                    *inbox = None;
                    return;
                }
            }
            let ready = wait_for_any(bell, &all);
            let _ = bell.read();
            all =
                all.into_iter().zip(ready).filter_map(|(read, ready)| turn(read, ready)).collect();
        }
    }
}

/// Waits until there is something to do for one of them, and says for each what.
fn wait_for_any(bell: &EventFd, all: &[Read]) -> Vec<Result<Option<Ready>>> {
    let mut next = Deadline::NEVER;
    let mut fds = vec![PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
    // All are of one init. To poll more than there are descriptors is an error.
    let init = all.first().map(|(_, first)| first.collector.running.init());
    fds.extend(init.map(|init| PollFd::new(init.as_fd(), PollFlags::POLLIN)));
    for (_, collection) in all {
        next = next.min(collection.collector.next_at());
        fds.extend(fds_of(&own_places(collection)));
    }
    let waited = wait_ready(&mut fds, next);
    let mut polled = fds.iter().skip(1);
    let has_died = polled.next().is_some_and(|fd| fd.any().unwrap_or(true));
    let of = |(_, collection): &Read| {
        let mut ready = ready_of(&own_places(collection), &mut polled);
        let [_, init_died, ..] = &mut ready;
        *init_died = has_died;
        match &waited {
            // What the clock says may be that of another.
            Ok(_) => Ok(ready.contains(&true).then_some(ready)),
            Err(error) => Err(Error::io("poll")(std::io::Error::other(error.to_string()))),
        }
    };
    all.iter().map(of).collect()
}

/// What is waited for of one alone: all but the end of init.
fn own_places(collection: &Collection) -> [Option<(BorrowedFd<'_>, PollFlags)>; 6] {
    let mut places = collection.collector.places();
    let [_, init, ..] = &mut places;
    *init = None;
    places
}

/// Does what there is to do for one, and gives it back if it goes on.
fn turn((to, mut collection): Read, ready: Result<Option<Ready>>) -> Option<Read> {
    let mut captures = &to.captures;
    let turned = whatever_becomes_of(|| match ready? {
        None if !collection.collector.next_at().passed() => Ok(None),
        ready => collection.collector.turn(ready, &mut captures),
    });
    let ended = match turned {
        Ok(None) => return Some((to, collection)),
        Ok(Some(status)) => whatever_becomes_of(|| collection.finish(status, &mut &to.captures)),
        Err(why) => Err(why),
    };
    to.end(ended);
    None
}
