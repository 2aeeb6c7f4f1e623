//! Output that is kept in memory, with a bound, while a command runs.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};

use crate::error::{Error, Result};
use crate::job::exit::{EndReason, ExitStatus};
use crate::job::relay::{Input, Sink};
use crate::job::running::Running;
use crate::sys;
use crate::wait::wait_ready;
use crate::wait::{Deadline, Woken};

/// How much is reserved for the end of a stream before it comes, in bytes.
const MOST_RESERVED: usize = 64 << 20;
/// How much is read at once, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// How long after a command's end its terminal is read when something else has it open and writes
/// nothing: the kernel hands what was written on in the background.
const TERMINAL_REST: Duration = Duration::from_millis(20);
/// How long it is read then in all, where what goes on to write does so slowly.
const LONGEST_TERMINAL_REST: Duration = Duration::from_millis(100);
/// How much of it is read then where something else goes on to write, in bytes: more than the
/// kernel keeps.
const MOST_OF_TERMINAL: usize = 64 << 10;

/// How much of a stream is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    /// Of the beginning, in bytes.
    pub(crate) head: usize,
    /// Of the end, in bytes.
    pub(crate) tail: usize,
}

impl Default for Caps {
    /// What a person or a model would read at most.
    fn default() -> Self {
        Self { head: 8 << 20, tail: 8 << 20 }
    }
}

/// When output, or the lack of it, ends a command.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    pub(crate) idle: Option<Duration>,
    /// Of all streams together, in bytes.
    pub(crate) total: Option<u64>,
}

impl Bounds {
    /// The name of one that is set.
    pub(crate) fn name(self) -> Option<&'static str> {
        let idle = self.idle.map(|_| "idle timeout");
        idle.or(self.total.map(|_| "output limit"))
    }
}

/// What a command has written to its two streams, as far as it is kept. Others may look at it
/// while it grows.
#[derive(Debug)]
pub(crate) struct Captures([Mutex<Collected>; 2]);

impl Captures {
    pub(crate) fn new(caps: Caps) -> Self {
        Self([caps, caps].map(|caps| Mutex::new(Collected::new(caps))))
    }

    fn stream(&self, number: usize) -> MutexGuard<'_, Collected> {
        let [stdout, stderr] = &self.0;
        let stream = if number == 0 { stdout } else { stderr };
        stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was kept of stdout and of stderr, each with the number of bytes that were not.
    pub(crate) fn copy(&self) -> [(Vec<u8>, u64); 2] {
        [0, 1].map(|number| self.stream(number).copy())
    }

    /// Takes what was kept of stdout and of stderr, each with the number of bytes that were not.
    pub(crate) fn finish(self) -> [(Vec<u8>, u64); 2] {
        self.0.map(|stream| stream.into_inner().unwrap_or_else(PoisonError::into_inner).finish())
    }
}

/// What is moved for a command while it runs: input to it, output from it.
#[derive(Debug)]
pub(crate) struct Collector {
    pub(crate) running: Arc<Running>,
    /// What goes to stdin.
    pub(crate) input: Option<Input>,
    /// Stdout and stderr, until their ends; a terminal is the first.
    pub(crate) pipes: [Option<OwnedFd>; 2],
    /// Where of the caller's they go on to, instead of being kept.
    pub(crate) sinks: [Option<Sink>; 2],
    /// The first error of a stream of the caller's.
    pub(crate) failed: Option<Error>,
    pub(crate) bounds: Bounds,
    pub(crate) is_terminal: bool,
}

impl Collector {
    /// Moves bytes until the command has ended. Returns how it did, and the streams that another
    /// process still has open.
    ///
    /// When init tells the end, the process was reaped, so all that it wrote is in the pipes: what
    /// is there at that moment is read, and no more, since a process left in the background may
    /// go on to write for ever.
    pub(crate) fn run(mut self, captures: &Captures) -> Result<(ExitStatus, [Option<OwnedFd>; 2])> {
        self.running.check_own()?;
        for pipe in self.pipes.iter().flatten() {
            // What poll(2) has seen may be gone by the time that it is read.
            sys::set_blocking(pipe, false).map_err(Error::io("fcntl"))?;
        }
        let limit = self.bounds.total;
        let mut total = 0_u64;
        let mut last = Instant::now();
        let status = loop {
            let is_waiting_only = !self.input.as_ref().is_some_and(Input::is_open)
                && self.pipes.iter().all(Option::is_none);
            if is_waiting_only && self.bounds.idle.is_none() {
                break self.running.wait()?;
            }
            let idle = self.bounds.idle.and_then(|idle| last.checked_add(idle));
            let idle = idle.map_or(Deadline::NEVER, Deadline::at);
            let ready = self.wait(idle.min(self.running.overdue()))?;
            let [said, init_died, input, unread, pipes @ ..] = ready.unwrap_or_default();
            self.move_input(input, unread);
            for (number, ready) in pipes.into_iter().enumerate() {
                if ready && let Some(count) = self.move_on(number, captures)? {
                    total += count as u64;
                    last = Instant::now();
                }
            }
            if self.bounds.total.is_some_and(|limit| total > limit) {
                self.bounds.total = None;
                self.running.end(EndReason::OutputLimit)?;
            }
            let woken = match (said, init_died) {
                (true, _) => Woken::Ready,
                (false, true) => Woken::InitDied,
                (false, false) => Woken::Late,
            };
            if let Some(status) = self.running.look(woken)? {
                break status;
            }
            if ready.is_none() && self.bounds.idle.is_some() && idle.passed() {
                self.bounds.idle = None;
                self.running.end(EndReason::Idle)?;
            }
        };
        if let Some(input) = self.input.take() {
            input.give_back();
        }
        for number in [0, 1] {
            total += if self.is_terminal {
                self.read_rest_of_terminal(number, captures)?
            } else {
                self.read_rest(number, captures)?
            } as u64;
        }
        // Also where it has ended before anything of that was read.
        let is_too_much = limit.is_some_and(|limit| total > limit);
        let status = if is_too_much { status.with_too_much_output() } else { status };
        self.failed.take().map_or(Ok((status, self.pipes)), Err)
    }

    /// Takes the streams that go on to nowhere: whoever has them reads them.
    pub(crate) fn take_piped(&mut self) -> [Option<OwnedFd>; 2] {
        let mut taken = [None, None];
        for ((to, pipe), sink) in taken.iter_mut().zip(&mut self.pipes).zip(&self.sinks) {
            if sink.is_none() {
                *to = pipe.take();
            }
        }
        taken
    }

    /// Waits until there is something to do, and says for what: the channel, the end of init, the
    /// input, the end of its readers, the streams. `None` if the deadline comes first.
    fn wait(&self, until: Deadline) -> Result<Option<[bool; 6]>> {
        let input = self.input.as_ref().map_or([None, None], Input::places);
        let [to_move, unread] = input;
        let places = [
            Some((self.running.as_fd(), PollFlags::POLLIN)),
            Some((self.running.init().as_fd(), PollFlags::POLLIN)),
            to_move,
            unread,
            self.place(0),
            self.place(1),
        ];
        let mut fds: Vec<_> =
            places.iter().flatten().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
        if !wait_ready(&mut fds, until)? {
            return Ok(None);
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        Ok(Some(places.map(|place| place.is_some() && ready.next().unwrap_or(false))))
    }

    /// What is waited for of a stream: bytes, or that the last ones are taken.
    fn place(&self, number: usize) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let pipe = self.pipes.get(number)?.as_ref()?;
        let sink = self.sinks.get(number).and_then(Option::as_ref);
        sink.and_then(Sink::place).or(Some((pipe.as_fd(), PollFlags::POLLIN)))
    }

    fn move_input(&mut self, is_ready: bool, is_unread: bool) {
        let Some(input) = &mut self.input else { return };
        if is_unread {
            input.close();
        } else if is_ready && let Err(error) = input.go_on() {
            self.failed.get_or_insert(error);
        }
    }

    /// Does what was waited for of a stream. Returns the number of bytes that were read, 0 at its
    /// end, or `None` if that was not what was waited for.
    fn move_on(&mut self, number: usize, captures: &Captures) -> Result<Option<usize>> {
        if let Some(Some(sink)) = self.sinks.get(number)
            && sink.place().is_some()
        {
            self.pass_on(number);
            return Ok(None);
        }
        self.read(number, captures).map(Some)
    }

    /// Writes to where a stream goes on to. Where that fails, the stream is closed, so that the
    /// command gets SIGPIPE when it writes more.
    fn pass_on(&mut self, number: usize) {
        let Some(Some(sink)) = self.sinks.get_mut(number) else { return };
        let Err(errno) = sink.go_on() else { return };
        if errno != Errno::EPIPE {
            self.failed.get_or_insert(Error::io("write to the caller's stream")(errno));
        }
        sink.put(&[]);
        if let Some(place) = self.pipes.get_mut(number) {
            *place = None;
        }
    }

    /// Waits until where a stream goes on to has taken all that was read of it.
    fn finish_passing_on(&mut self, number: usize) -> Result<()> {
        let deadline = self.running.overdue();
        while let Some(Some(sink)) = self.sinks.get(number)
            && let Some((fd, flags)) = sink.place()
        {
            if !wait_ready(&mut [PollFd::new(fd, flags)], deadline)? {
                let what = "the caller's stream to take what the command wrote";
                return Err(Error::TimedOut { what, after: deadline.length() });
            }
            self.pass_on(number);
        }
        Ok(())
    }

    /// Reads once from a stream; returns the number of bytes, 0 if there is nothing.
    fn read(&mut self, number: usize, captures: &Captures) -> Result<usize> {
        let Some(place) = self.pipes.get_mut(number) else { return Ok(0) };
        let Some(pipe) = place else { return Ok(0) };
        let mut chunk = [0; CHUNK];
        let count = read_from(pipe.as_fd(), &mut chunk)?;
        if count == Some(0) {
            *place = None;
        }
        let count = count.unwrap_or(0);
        let bytes = chunk.get(..count).unwrap_or_default();
        match self.sinks.get_mut(number) {
            Some(Some(sink)) => {
                sink.put(bytes);
                self.pass_on(number);
            }
            _ => captures.stream(number).push(bytes),
        }
        Ok(count)
    }

    /// Reads what is there now, and finds out whether anyone could write more. Returns the number
    /// of bytes.
    fn read_rest(&mut self, number: usize, captures: &Captures) -> Result<usize> {
        let Some(Some(pipe)) = self.pipes.get(number) else { return Ok(0) };
        let mut left = sys::bytes_available(pipe).map_err(Error::io("FIONREAD"))?;
        let mut all = 0;
        while left != 0 {
            self.finish_passing_on(number)?;
            match self.read(number, captures)? {
                0 => break,
                count => {
                    left = left.saturating_sub(count);
                    all += count;
                }
            }
        }
        self.finish_passing_on(number)?;
        let Some(place) = self.pipes.get_mut(number) else { return Ok(all) };
        let Some(pipe) = place else { return Ok(all) };
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        wait_ready(&mut fds, Deadline::after(Duration::ZERO))?;
        let [fd] = fds;
        if fd.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
            *place = None;
        }
        Ok(all)
    }

    /// Reads to the end, or, if another process has the terminal open, until nothing comes.
    fn read_rest_of_terminal(&mut self, number: usize, captures: &Captures) -> Result<usize> {
        let mut all = 0;
        let end = Deadline::after(LONGEST_TERMINAL_REST);
        while let Some(Some(terminal)) = self.pipes.get(number) {
            let mut fds = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            // Of silence, however long the reading takes: what is there after that is read, too.
            if !wait_ready(&mut fds, Deadline::after(TERMINAL_REST).min(end))? {
                break;
            }
            all += self.read(number, captures)?;
            if all > MOST_OF_TERMINAL {
                break;
            }
        }
        Ok(all)
    }
}

/// Reads once from a pipe; returns the number of bytes, 0 at its end, or `None` if there is nothing:
/// a guest may have taken it out again.
fn read_from(pipe: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>> {
    loop {
        match nix::unistd::read(pipe, buffer) {
            Ok(count) => return Ok(Some(count)),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            // A terminal of which the other side is closed.
            Err(Errno::EIO) => return Ok(Some(0)),
            Err(errno) => return Err(Error::io("read from a pipe")(errno)),
        }
    }
}

/// The beginning and the end of a stream, and the number of bytes between.
#[derive(Debug)]
struct Collected {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
    caps: Caps,
}

impl Collected {
    fn new(caps: Caps) -> Self {
        Self { head: Vec::new(), tail: VecDeque::new(), dropped: 0, caps }
    }

    fn push(&mut self, bytes: &[u8]) {
        let Caps { head, tail } = self.caps;
        let room = head.saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        self.head.extend_from_slice(first);
        if !rest.is_empty() && self.tail.capacity() == 0 {
            // All that it can need, within reason: growing by doubling would take twice of it.
            self.tail.reserve_exact(tail.min(MOST_RESERVED) + CHUNK);
        }
        // Of more than the tail holds, only the end can stay.
        let skipped = rest.len().saturating_sub(tail);
        self.tail.extend(rest.get(skipped..).unwrap_or_default());
        let over = self.tail.len().saturating_sub(tail);
        self.tail.drain(..over);
        self.dropped = self.dropped.saturating_add((skipped + over) as u64);
    }

    /// What was kept so far, and the number of bytes that were not.
    fn copy(&self) -> (Vec<u8>, u64) {
        let (front, back) = self.tail.as_slices();
        ([self.head.as_slice(), front, back].concat(), self.dropped)
    }

    /// Takes it, without a copy of the beginning.
    fn finish(self) -> (Vec<u8>, u64) {
        let mut bytes = self.head;
        bytes.reserve_exact(self.tail.len());
        let (front, back) = self.tail.as_slices();
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(back);
        (bytes, self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::{Caps, Collected};

    #[test]
    fn keeps_the_head_and_the_tail_and_counts_the_rest() {
        for chunk in 1..12 {
            let bytes: Vec<u8> = (0..100).collect();
            let mut collected = Collected::new(Caps { head: 4, tail: 3 });
            for part in bytes.chunks(chunk) {
                collected.push(part);
            }
            assert_eq!(collected.finish(), (vec![0, 1, 2, 3, 97, 98, 99], 93), "chunk {chunk}");
        }
    }

    #[test]
    fn keeps_all_that_fits() {
        let mut collected = Collected::new(Caps { head: 4, tail: 3 });
        collected.push(b"abcde");
        collected.push(b"fg");
        assert_eq!(collected.finish(), (b"abcdefg".to_vec(), 0));
    }
}
