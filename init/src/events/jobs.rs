//! The jobs that there are, and how they are found.

use alloc::boxed::Box;
use alloc::vec::Vec;

use adl_protocol::{EndedBy, Exit, JobEvent, Leftovers, Status, Usage};
use rustix::fd::OwnedFd;

use super::cpu_time::CpuTime;
use crate::job::tree::Tree;
use crate::receive::send_small;

/// A job, from its start until its end is told and the host has let go of it.
pub(super) struct Job {
    /// Until it is reaped.
    pub(super) pid: Option<i32>,
    /// Until the host has let go of it.
    pub(super) channel: Option<OwnedFd>,
    /// Whether the host may ask for something after the end was told.
    pub(super) is_held: bool,
    pub(super) tree: Tree,
    pub(super) leftovers: Leftovers,
    /// When it was started, in ns.
    pub(super) started: u64,
    pub(super) deadline: Option<u64>,
    pub(super) cpu_time: Option<CpuTime>,
    pub(super) by: Option<EndedBy>,
    /// When it was asked that its tree be ended, in ns, until that is done.
    pub(super) ending: Option<u64>,
    pub(super) survivors: bool,
    /// Its end, from when it is reaped until that is told.
    pub(super) end: Option<(Status, Usage, u64)>,
    pub(super) told: bool,
}

impl Job {
    /// Tells its end, once.
    pub(super) fn tell(&mut self, status: Status, usage: Usage, wall: u64) {
        if self.told {
            return;
        }
        self.told = true;
        let Some(channel) = &self.channel else { return };
        let (wall_us, by, survivors) = (wall / 1000, self.by, self.survivors);
        let exit = Exit { status, usage, wall_us, by, survivors };
        let _ = send_small(channel, &JobEvent::Exited(exit), &[]);
        // Whoever holds a copy of it: all who wait at the other end wake up.
        let _ = rustix::net::shutdown(channel, rustix::net::Shutdown::Write);
    }
}

/// The jobs by their numbers, each of which is larger than those before it.
pub(super) struct Jobs(pub(super) Vec<(u64, Box<Job>)>);

impl Jobs {
    pub(super) fn place(&self, number: u64) -> Option<usize> {
        self.0.binary_search_by_key(&number, |(number, _)| *number).ok()
    }

    pub(super) fn get(&self, number: u64) -> Option<&Job> {
        self.0.get(self.place(number)?).map(|(_, job)| &**job)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Job> {
        let place = self.place(number)?;
        self.0.get_mut(place).map(|(_, job)| &mut **job)
    }

    pub(super) fn push(&mut self, number: u64, job: Job) {
        self.0.push((number, Box::new(job)));
    }

    pub(super) fn remove(&mut self, number: u64) {
        if let Some(place) = self.place(number) {
            self.0.remove(place);
        }
    }
}

/// Numbers of jobs by a key, in its order. A list, since a tree of each kind would be a tenth of
/// init, and moving the entries of thousands of jobs takes microseconds.
pub(super) struct Sorted<K>(pub(super) Vec<(K, u64)>);

impl<K: Ord + Copy> Sorted<K> {
    pub(super) fn first(&self) -> Option<(K, u64)> {
        self.0.first().copied()
    }

    pub(super) fn insert(&mut self, key: K, number: u64) {
        let at = self.0.partition_point(|entry| *entry < (key, number));
        self.0.insert(at, (key, number));
    }

    /// The first job of a key.
    pub(super) fn get(&self, key: K) -> Option<u64> {
        let at = self.0.partition_point(|(other, _)| *other < key);
        self.0.get(at).filter(|(other, _)| *other == key).map(|(_, number)| *number)
    }

    pub(super) fn remove(&mut self, key: K, number: u64) {
        if let Ok(at) = self.0.binary_search(&(key, number)) {
            self.0.remove(at);
        }
    }
}
