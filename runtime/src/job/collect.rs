//! What is moved for a command while it runs: input to it, output from it to who takes it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};

use crate::error::{Error, Result};
use crate::exit::{EndReason, ExitStatus};
use crate::job::captures::{OutputStream, TakeOutput};
use crate::job::relay::{Input, Sink};
use crate::job::running::{OVERDUE, Running};
use crate::sys;
use crate::wait::{Deadline, Woken};
use crate::wait::{wait_beside_init, wait_ready};

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
    /// Whether what it writes is dropped: whoever took it has had enough.
    pub(crate) is_stopped: bool,
    /// The first error of a stream of the caller's.
    pub(crate) failed: Option<Error>,
    pub(crate) bounds: Bounds,
    pub(crate) written: Written,
    pub(crate) is_terminal: bool,
}

/// What a command has written so far.
#[derive(Debug)]
pub(crate) struct Written {
    /// In bytes, to all streams that are read.
    total: u64,
    last: Instant,
    /// Whether it was killed for that.
    is_too_much: bool,
}

impl Default for Written {
    fn default() -> Self {
        Self { total: 0, last: Instant::now(), is_too_much: false }
    }
}

/// Which of the places that a command is waited for at are ready.
pub(crate) type Ready = [bool; 6];

/// How a command has ended, and the streams that another process still has open.
pub(crate) type Ended = (ExitStatus, [Option<OwnedFd>; 2]);

impl Collector {
    /// Moves bytes until the command has ended. Returns how it did, and the streams that another
    /// process still has open.
    pub(crate) fn run(mut self, to: &mut dyn TakeOutput) -> Result<Ended> {
        self.begin()?;
        loop {
            if self.only_waits() {
                let status = self.running.wait()?;
                return self.finish(status, to);
            }
            let ready = self.wait()?;
            if let Some(status) = self.turn(ready, to)? {
                return self.finish(status, to);
            }
        }
    }

    /// Comes before all others.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.running.check_own()?;
        self.running.mark_collected();
        for pipe in self.pipes.iter().flatten() {
            // What poll(2) has seen may be gone by the time that it is read.
            sys::set_blocking(pipe, false).map_err(Error::io("fcntl"))?;
        }
        self.written.last = Instant::now();
        Ok(())
    }

    /// Whether there is nothing to do until its end.
    fn only_waits(&self) -> bool {
        let is_open = self.input.as_ref().is_some_and(Input::is_open);
        !is_open && self.pipes.iter().all(Option::is_none) && self.bounds.idle.is_none()
    }

    /// When it is silent for too long.
    fn idle_at(&self) -> Deadline {
        let idle = self.bounds.idle.and_then(|idle| self.written.last.checked_add(idle));
        idle.map_or(Deadline::NEVER, Deadline::at)
    }

    /// When there is something to do, whatever happens.
    pub(crate) fn next_at(&self) -> Deadline {
        let input = self.input.as_ref().map_or(Deadline::NEVER, Input::next_at);
        self.idle_at().min(self.running.overdue()).min(input)
    }

    /// Does what was waited for, or nothing where that is what the clock was. Returns how the
    /// command has ended, if it has: then [`Collector::finish`] is next.
    pub(crate) fn turn(
        &mut self,
        ready: Option<Ready>,
        to: &mut dyn TakeOutput,
    ) -> Result<Option<ExitStatus>> {
        let idle = self.idle_at();
        let [said, init_died, input, unread, pipes @ ..] = ready.unwrap_or_default();
        self.move_input(input, unread);
        for (number, ready) in pipes.into_iter().enumerate() {
            if ready && let Some(count) = self.move_on(number, to)? {
                self.written.total += count as u64;
                self.written.last = Instant::now();
            }
        }
        if self.bounds.total.is_some_and(|limit| self.written.total > limit)
            && !self.written.is_too_much
        {
            self.written.is_too_much = true;
            self.running.end(EndReason::OutputLimit)?;
        }
        let woken = match (said, init_died) {
            (true, _) => Woken::Ready,
            (false, true) => Woken::InitDied,
            (false, false) => Woken::Late,
        };
        if let Some(status) = self.running.look(woken)? {
            return Ok(Some(status));
        }
        if ready.is_none() && self.bounds.idle.is_some() && idle.passed() {
            self.bounds.idle = None;
            self.running.end(EndReason::Idle)?;
        }
        Ok(None)
    }

    /// Takes what there is after the end.
    ///
    /// When init tells the end, the process was reaped, so all that it wrote is in the pipes: what
    /// is there at that moment is read, and no more, since a process left in the background may
    /// go on to write for ever.
    pub(crate) fn finish(mut self, status: ExitStatus, to: &mut dyn TakeOutput) -> Result<Ended> {
        if let Some(input) = self.input.take() {
            input.give_back();
        }
        let mut deadline = self.running.delivered_by(status);
        for number in [0, 1] {
            self.written.total += if self.is_terminal {
                self.read_rest_of_terminal(number, to)?
            } else {
                self.read_rest(number, &mut deadline, to)?
            } as u64;
        }
        // Also where it has ended before anything of that was read.
        let is_too_much = self.bounds.total.is_some_and(|limit| self.written.total > limit);
        let status = if is_too_much { status.with_too_much_output() } else { status };
        self.running.collected(status);
        match self.failed.take() {
            None => Ok((status, self.pipes)),
            Some(why) => Err(Error::Undelivered { status: Box::new(status), why: Arc::new(why) }),
        }
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

    /// What is waited for: the channel, the end of init, the input, the end of its readers, the
    /// streams.
    pub(crate) fn places(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 6] {
        let [input, unread] = self.input.as_ref().map_or([None, None], Input::places);
        [
            Some((self.running.as_fd(), PollFlags::POLLIN)),
            Some((self.running.init().as_fd(), PollFlags::POLLIN)),
            input,
            unread,
            self.place(0),
            self.place(1),
        ]
    }

    /// Waits until there is something to do, and says for what; `None` for what the clock says.
    fn wait(&self) -> Result<Option<Ready>> {
        let places = self.places();
        let mut fds = fds_of(&places);
        if !wait_ready(&mut fds, self.next_at())? {
            return Ok(None);
        }
        Ok(Some(ready_of(&places, &mut fds.iter())))
    }

    /// What is waited for of a stream: bytes, or that the last ones are taken.
    fn place(&self, number: usize) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let pipe = self.pipes.get(number)?.as_ref()?;
        let sink = self.sinks.get(number).and_then(Option::as_ref);
        sink.and_then(Sink::place).or(Some((pipe.as_fd(), PollFlags::POLLIN)))
    }

    fn move_input(&mut self, is_ready: bool, is_unread: bool) {
        let Some(input) = &mut self.input else { return };
        input.look();
        if is_unread {
            input.close();
        } else if is_ready && let Err(error) = input.go_on() {
            self.failed.get_or_insert(error);
        }
    }

    /// Does what was waited for of a stream. Returns the number of bytes that were read, 0 at its
    /// end, or `None` if that was not what was waited for.
    fn move_on(&mut self, number: usize, to: &mut dyn TakeOutput) -> Result<Option<usize>> {
        if let Some(Some(sink)) = self.sinks.get(number)
            && sink.place().is_some()
        {
            self.pass_on(number);
            return Ok(None);
        }
        self.read(number, to).map(Some)
    }

    /// Writes to where a stream goes on to. Where that fails, the stream is closed, so that the
    /// command gets SIGPIPE when it writes more.
    fn pass_on(&mut self, number: usize) {
        let Some(Some(sink)) = self.sinks.get_mut(number) else { return };
        let Err(errno) = sink.go_on() else { return };
        let failed = sink.failed(errno);
        self.stop_passing_on(number, (errno != Errno::EPIPE).then_some(failed));
    }

    fn stop_passing_on(&mut self, number: usize, failed: Option<Error>) {
        self.failed = self.failed.take().or(failed);
        if let Some(Some(sink)) = self.sinks.get_mut(number) {
            sink.put(&[]);
        }
        if let Some(place) = self.pipes.get_mut(number) {
            *place = None;
        }
    }

    /// Waits until where a stream goes on to has taken all that was read of it.
    ///
    /// A deadline comes with the end of the sandbox, too.
    fn finish_passing_on(&mut self, number: usize, deadline: &mut Deadline) -> Result<()> {
        while let Some(Some(sink)) = self.sinks.get(number)
            && let Some((fd, flags)) = sink.place()
        {
            let init = self.running.init().as_fd();
            let mut woken = wait_beside_init(fd, flags, init, *deadline)?;
            if woken == Woken::InitDied {
                *deadline = deadline.min(Deadline::after(OVERDUE));
                let is_ready = wait_ready(&mut [PollFd::new(fd, flags)], *deadline)?;
                woken = if is_ready { Woken::Ready } else { Woken::Late };
            }
            if woken == Woken::Late {
                let what = "the caller's stream to take what the command wrote";
                let late = Error::TimedOut { what, after: deadline.length() };
                self.stop_passing_on(number, Some(late));
            } else {
                self.pass_on(number);
            }
        }
        Ok(())
    }

    /// Reads once from a stream; returns the number of bytes, 0 if there is nothing.
    fn read(&mut self, number: usize, to: &mut dyn TakeOutput) -> Result<usize> {
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
            _ if self.is_stopped || bytes.is_empty() => {}
            _ => {
                let stream = if number == 0 { OutputStream::Stdout } else { OutputStream::Stderr };
                if to.take(stream, bytes).is_break() {
                    self.is_stopped = true;
                    self.running.end(EndReason::Stopped)?;
                }
            }
        }
        Ok(count)
    }

    /// Reads what is there now, and finds out whether anyone could write more. Returns the number
    /// of bytes.
    fn read_rest(
        &mut self,
        number: usize,
        deadline: &mut Deadline,
        to: &mut dyn TakeOutput,
    ) -> Result<usize> {
        let Some(Some(pipe)) = self.pipes.get(number) else { return Ok(0) };
        let mut left = sys::bytes_available(pipe).map_err(Error::io("FIONREAD"))?;
        let mut all = 0;
        while left != 0 {
            self.finish_passing_on(number, deadline)?;
            match self.read(number, to)? {
                0 => break,
                count => {
                    left = left.saturating_sub(count);
                    all += count;
                }
            }
        }
        self.finish_passing_on(number, deadline)?;
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
    fn read_rest_of_terminal(&mut self, number: usize, to: &mut dyn TakeOutput) -> Result<usize> {
        let mut all = 0;
        let end = Deadline::after(LONGEST_TERMINAL_REST);
        while let Some(Some(terminal)) = self.pipes.get(number) {
            let mut fds = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            // Of silence, however long the reading takes: what is there after that is read, too.
            if !wait_ready(&mut fds, Deadline::after(TERMINAL_REST).min(end))? {
                break;
            }
            all += self.read(number, to)?;
            if all > MOST_OF_TERMINAL {
                break;
            }
        }
        Ok(all)
    }
}

/// For `poll(2)`.
pub(crate) fn fds_of<'a>(places: &[Option<(BorrowedFd<'a>, PollFlags)>]) -> Vec<PollFd<'a>> {
    places.iter().flatten().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect()
}

/// Which of the places are ready, by the next of those that were polled.
pub(crate) fn ready_of<'a>(
    places: &[Option<(BorrowedFd<'_>, PollFlags)>; 6],
    fds: &mut impl Iterator<Item = &'a PollFd<'a>>,
) -> Ready {
    places.map(|place| place.is_some() && fds.next().is_some_and(|fd| fd.any().unwrap_or(true)))
}

/// Reads once from a pipe; returns the number of bytes, 0 at its end, or `None` if there is
/// nothing: a guest may have taken it out again.
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
