//! The end of all processes of the sandbox but init.

use alloc::vec::Vec;

use adl_protocol::{EndedBy, Exit, JobEvent, Status, Usage};
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::process::Signal;

use super::{BETWEEN_PASSES, CONTROL, Loop, UNKILLABLE};
use crate::receive::{Receiver, send_frame};
use crate::sys::{self, now};

/// The end of all processes that there are, while it is under way.
pub(super) struct KillAll {
    pub(super) channel: OwnedFd,
    pub(super) since: u64,
    /// When they are looked for again, in ns.
    pub(super) next: u64,
}

impl Loop {
    /// Begins to end all processes but this one. No fork outruns that.
    pub(super) fn kill_all(&mut self, channel: OwnedFd, now: u64, control: &Receiver) {
        self.kill_all = Some(KillAll { channel, since: now, next: now });
        // What is asked for meanwhile comes after.
        self.listen_to_control(control, epoll::EventFlags::empty());
    }

    /// Ends what is left of all processes, or tells that there are none.
    pub(super) fn go_on_killing(&mut self, control: &mut Receiver) -> Result<(), i32> {
        let Some(kill) = &mut self.kill_all else { return Ok(()) };
        let _ = sys::signal_all(Signal::KILL);
        for (_, job) in self.jobs.0.iter_mut().filter(|(_, job)| job.end.is_none()) {
            job.by.get_or_insert(EndedBy::KillAll);
        }
        let now = now();
        let survivors = sys::has_children();
        if survivors && now.saturating_sub(kill.since) < UNKILLABLE {
            kill.next = now + BETWEEN_PASSES;
            return Ok(());
        }
        let Some(KillAll { channel, since, .. }) = self.kill_all.take() else { return Ok(()) };
        if survivors {
            let left: Vec<u64> =
                self.jobs.0.iter().filter(|(_, j)| j.end.is_none()).map(|(n, _)| *n).collect();
            left.into_iter().for_each(|number| self.tell_survivors(number));
        }
        let (status, usage) = (Status::Code(0), Usage::default());
        let wall_us = now.saturating_sub(since) / 1000;
        let exit = Exit { status, usage, wall_us, by: None, survivors };
        let _ = send_frame(&channel, &JobEvent::Exited(exit));
        self.listen_to_control(control, epoll::EventFlags::IN);
        self.take_requests(control)
    }

    pub(super) fn listen_to_control(&self, control: &Receiver, flags: epoll::EventFlags) {
        let _ = epoll::modify(&self.epoll, control, epoll::EventData::new_u64(CONTROL), flags);
    }
}
