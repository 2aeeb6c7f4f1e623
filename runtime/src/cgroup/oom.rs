//! The end of a whole job where memory ran out, which version 1 does not bring about by itself.
//!
//! Version 1 kills one process, and the rest of the job goes on without it. But it tells by an
//! eventfd that it is about to. A thread waits for that of all sandboxes, looks which leaf has
//! counted a kill, and ends all that is in it by `cgroup.kill` of version 2, as that would have
//! done.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Group;
use super::directory::Directory;
use crate::error::{Error, Result};
use crate::sys::lock::lock;
use crate::sys::owner::{Owner, PerProcess};

/// How long after it is told a kill may come.
const KILL: Duration = Duration::from_millis(200);
/// How long after it is told the first look comes; the time doubles from one to the next.
const FIRST_LOOK: Duration = Duration::from_micros(500);

/// The thread. A fork has none, and starts its own.
static WATCHER: PerProcess<Mutex<Option<Arc<Watcher>>>> = PerProcess::new();

#[derive(Debug)]
struct Watcher {
    epoll: Epoll,
    groups: Mutex<HashMap<u64, Weak<Group>>>,
}

/// What is told when memory has run out, for as long as this lives.
#[derive(Debug)]
pub(super) struct Notice {
    number: u64,
    watcher: Arc<Watcher>,
    event: EventFd,
    owner: Owner,
}

impl Notice {
    /// Asks for notices of a cgroup of version 1. They lead nowhere before [`Notice::watch_for`].
    pub(super) fn of(directory: &Directory) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let watcher = watcher()?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_flags(flags).map_err(Error::io("eventfd"))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Once for each notice: it is not read.
        let interest = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, number);
        watcher.epoll.add(&event, interest).map_err(Error::io("epoll_ctl"))?;
        let this = Self { number, watcher, event, owner: Owner::this_process() };
        this.ask(directory)?;
        Ok(this)
    }

    /// Asks for those of one more cgroup. The kernel tells of the memory of each for itself.
    pub(super) fn ask(&self, directory: &Directory) -> Result<()> {
        let control = directory.open("memory.oom_control", fs::OpenOptions::new().read(true))?;
        let request = format!("{} {}", self.event.as_fd().as_raw_fd(), control.as_raw_fd());
        directory.write("cgroup.event_control", &request)
    }

    pub(super) fn watch_for(&self, group: &Arc<Group>) {
        self.watcher.groups().insert(self.number, Arc::downgrade(group));
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        // What a fork takes out of its copy of the epoll is taken out of its parent's.
        if self.owner.is_this_process() {
            self.watcher.groups().remove(&self.number);
            // A child on its way to its program may have a copy of the descriptor, so that closing
            // it is not enough.
            let _ = self.watcher.epoll.delete(&self.event);
        }
    }
}

impl Watcher {
    fn groups(&self) -> MutexGuard<'_, HashMap<u64, Weak<Group>>> {
        lock(&self.groups)
    }

    fn watch(&self) {
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let told = events.iter().take(count).map(EpollEvent::data);
            let groups: Vec<_> =
                told.filter_map(|number| self.groups().get(&number)?.upgrade()).collect();
            // The notice comes before the kill.
            let mut pause = FIRST_LOOK;
            loop {
                groups.iter().for_each(|group| group.end_where_memory_ran_out());
                if pause > KILL {
                    break;
                }
                std::thread::sleep(pause);
                pause *= 2;
            }
        }
    }
}

fn watcher() -> Result<Arc<Watcher>> {
    let mut watcher = lock(WATCHER.get());
    if let Some(watcher) = &*watcher {
        return Ok(Arc::clone(watcher));
    }
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(Error::io("epoll_create"))?;
    let made = Arc::new(Watcher { epoll, groups: Mutex::default() });
    let thread = Arc::clone(&made);
    std::thread::Builder::new()
        .name("adl-oom".to_owned())
        .spawn(move || thread.watch())
        .map_err(Error::io("start a thread"))?;
    *watcher = Some(Arc::clone(&made));
    Ok(made)
}
