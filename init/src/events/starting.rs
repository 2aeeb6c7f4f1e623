//! The children that are on their way to their programs, and the requests that wait for that.

use rustix::event::epoll;

use super::Loop;
use crate::receive::Receiver;
use crate::sys::now;

/// How many children may be on their way to their programs in init's memory at once. Each takes a
/// stack of 48 KiB, a request of up to 32 KiB and a pointer for each string in it, for as long as a
/// guest keeps it stopped, of the 48 MiB that init has.
pub(super) const STARTING: usize = 128;
/// How long requests wait for one of so many to be at its program, in ns, and how much longer for
/// each that is: a guest that keeps them stopped, and lets go of one now and then, holds up others
/// for no longer.
pub(super) const PATIENCE: u64 = 500_000_000;
const PATIENCE_MORE: u64 = 20_000_000;
/// How long after a look whether one is, there is another, in ns.
const BETWEEN_LOOKS: u64 = 500_000;

impl Loop {
    /// Whether the next request has to wait for what is being started.
    pub(super) fn is_full(&mut self) -> bool {
        self.forget_started();
        if self.starting.len() < STARTING {
            self.full_at = None;
            return false;
        }
        let now = now();
        let waited = now - self.full_at.replace(now).unwrap_or(now);
        self.patience = self.patience.saturating_sub(waited);
        self.patience != 0
    }

    pub(super) fn forget_started(&mut self) {
        let before = self.starting.len();
        self.starting.retain(|memory| !memory.is_free());
        let started = (before - self.starting.len()) as u64;
        self.patience = PATIENCE.min(self.patience + started * PATIENCE_MORE);
    }

    pub(super) fn hold_requests(&mut self, control: &Receiver) {
        self.look_at = Some(now() + BETWEEN_LOOKS);
        self.listen_to_control(control, epoll::EventFlags::empty());
    }

    /// Takes the requests that wait, once they need not any more.
    pub(super) fn go_on_taking(&mut self, control: &mut Receiver) -> Result<(), i32> {
        if self.look_at.is_none_or(|at| now() < at) {
            return Ok(());
        }
        self.look_at = None;
        self.listen_to_control(control, epoll::EventFlags::IN);
        self.take_requests(control)
    }
}
