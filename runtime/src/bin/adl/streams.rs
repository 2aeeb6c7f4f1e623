//! The caller's standard streams and those of a command, joined by pipes of adl's own.
//!
//! So the command holds nothing of the caller's: no terminal to set up or type into, no file to
//! lock or to move the position of, no stdin to write to. One loop, and no thread, as for a
//! terminal.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Instant;

use adl_runtime::{Child, Command, ExitStatus, Sandbox, Scope, Stdio};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{Whence, getpgrp, lseek, tcgetpgrp};

use crate::output::say;
use crate::session::{LAST, is_momentary, leave_the_rest, open_once_more, was_ended};
use crate::sys;
use crate::values::CliResult;

/// The most that is on its way in one direction, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// The most that is written at once where a write may wait, in bytes: what a pipe that is ready
/// takes.
const WAITING_CHUNK: usize = 4096;

/// How often a terminal that another job of the caller's shell has is looked at, in milliseconds.
const BACKGROUND: u16 = 200;

/// Says where the streams of a command lead: nowhere where the caller's do, else into pipes.
pub(crate) fn prepare(command: &mut Command) -> io::Result<()> {
    let [stdin, stdout, stderr] =
        [own(io::stdin().as_fd())?, own(io::stdout().as_fd())?, own(io::stderr().as_fd())?];
    for (name, file) in [("stdin", &stdin), ("stdout", &stdout), ("stderr", &stderr)] {
        if file.metadata()?.is_dir() {
            return Err(io::Error::other(format!("{name} is a directory")));
        }
    }
    let null_or = |file: &File| -> io::Result<Stdio> {
        Ok(if is_null(file)? { Stdio::null() } else { Stdio::piped() })
    };
    let merged = !is_null(&stderr)? && is_same(&stdout, &stderr)?;
    command.stdin(null_or(&stdin)?).stdout(null_or(&stdout)?);
    // In one pipe, so that the two stay in the order in which they were written.
    command.stderr(if merged { Stdio::same_as_stdout() } else { null_or(&stderr)? });
    Ok(())
}

/// Moves bytes until the command has ended and all that it wrote is written, and passes on signals
/// to its process group meanwhile. Returns how it ended, and whether what it wrote was taken.
///
/// The command is looked at when something happens, and after each `pause`.
pub(crate) fn run(
    child: &mut Child,
    sandbox: &Sandbox,
    signals: &SignalFd,
    pause: PollTimeout,
) -> CliResult<(ExitStatus, bool)> {
    // A read from a terminal that is another job's then fails, instead of stopping adl.
    SigSet::from(Signal::SIGTTIN).thread_block()?;
    let mut input = None;
    if let Some(pipe) = child.stdin.take() {
        let (from, _) = own_end(io::stdin().as_fd(), 0)?;
        input = Some(Flow::new(from, our_end(pipe.into())?, true));
    }
    let mut outputs = [("stdout", None), ("stderr", None)];
    let [(_, stdout), (_, stderr)] = &mut outputs;
    if let Some(pipe) = child.stdout.take() {
        let (to, never_waits) = own_end(io::stdout().as_fd(), 1)?;
        *stdout = Some(Flow::new(our_end(pipe.into())?, to, never_waits));
    }
    if let Some(pipe) = child.stderr.take() {
        let (to, never_waits) = own_end(io::stderr().as_fd(), 2)?;
        *stderr = Some(Flow::new(our_end(pipe.into())?, to, never_waits));
    }
    let closed_input = None;
    let init = sandbox.pidfd()?;
    Relay { child, init, signals, pause, input, closed_input, outputs, delivered: true }.run()
}

struct Relay<'a> {
    child: &'a mut Child,
    /// Readable when the sandbox has died.
    init: OwnedFd,
    signals: &'a SignalFd,
    pause: PollTimeout,
    input: Option<Flow>,
    /// The input, after its end.
    closed_input: Option<Flow>,
    outputs: [(&'static str, Option<Flow>); 2],
    /// Nothing that was written is lost but what no one reads.
    delivered: bool,
}

impl Relay<'_> {
    fn run(mut self) -> CliResult<(ExitStatus, bool)> {
        let handle = self.child.handle();
        let mut passed_on = None;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            self.turn(Some(handle.as_fd()), self.pause)?;
            while let Some(signal) = self.signals.read_signal()? {
                let signal = u8::try_from(signal.ssi_signo)?;
                self.child.signal(signal, Scope::Group)?;
                passed_on = Some(signal);
            }
        };
        self.end_input();
        // All that it wrote is in the pipes. Another process may go on to write.
        for (_, flow) in &mut self.outputs {
            if let Some(flow) = flow {
                flow.end_with_what_is_there()?;
            }
        }
        // The reader of one that ended by itself may take as long as it likes.
        let is_by_signal = passed_on.is_some() && status.signal() == passed_on;
        let until = (was_ended(status) || is_by_signal).then(|| Instant::now() + LAST);
        while self.outputs.iter().flat_map(|(_, flow)| flow).any(|flow| !flow.is_over()) {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                leave_the_rest();
                break;
            }
            let left = left.map(|left| left.as_nanos().div_ceil(1_000_000));
            self.turn(None, left.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from)?)?;
            // What the caller's own streams do not take is left.
            if self.signals.read_signal()?.is_some() {
                break;
            }
        }
        Ok((status, self.delivered))
    }

    /// No one reads any more.
    fn end_input(&mut self) {
        if let Some(input) = self.input.take().or(self.closed_input.take()) {
            input.give_back();
        }
    }

    /// There is no more to read, but what is in the pipe.
    fn close_input(&mut self) {
        let Some(mut input) = self.input.take() else { return };
        let path = format!("/proc/self/fd/{}", input.to.as_raw_fd());
        // Its other side, to count what is left there when the command has ended.
        if let Ok(other_side) = File::open(path) {
            input.to = other_side;
            self.closed_input = Some(input);
        }
    }

    /// Waits until there is something to do, and does it.
    fn turn(&mut self, child: Option<BorrowedFd<'_>>, pause: PollTimeout) -> CliResult<()> {
        let is_away = self.input.as_ref().is_some_and(|input| is_of_another_job(&input.from));
        let of_input = self.input.as_ref().map(|flow| flow.interest(!is_away));
        let [stdout, stderr] =
            self.outputs.each_ref().map(|(_, flow)| flow.as_ref().map(|flow| flow.interest(true)));
        let wanted = [
            child.map(|child| (child, PollFlags::POLLIN)),
            child.map(|_| (self.init.as_fd(), PollFlags::POLLIN)),
            Some((self.signals.as_fd(), PollFlags::POLLIN)),
            // That no one reads any more is told without being asked for.
            self.input.as_ref().map(|flow| (flow.to.as_fd(), PollFlags::empty())),
            of_input.flatten(),
            stdout.flatten(),
            stderr.flatten(),
        ];
        let mut fds: Vec<PollFd> =
            wanted.iter().flatten().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
        match poll(&mut fds, if is_away { PollTimeout::from(BACKGROUND) } else { pause }) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = fds.iter().map(PollFd::any);
        let ready = wanted.map(|wanted| wanted.is_some() && ready.next().flatten() != Some(false));
        let [_, _, _, unread, input, outputs @ ..] = ready;
        if unread {
            self.end_input();
        }
        if let (Some(flow), true) = (&mut self.input, input) {
            match flow.go_on() {
                Ok(()) if flow.is_over() => self.close_input(),
                Ok(()) => {}
                Err(Broken::Write(_)) => self.end_input(),
                Err(Broken::Read(_)) if is_of_another_job(&flow.from) => {}
                Err(Broken::Read(error)) => {
                    // A terminal that has hung up is an end.
                    if error.raw_os_error() != Some(libc::EIO) {
                        say(format_args!("stdin: {error}"));
                    }
                    self.end_input();
                }
            }
        }
        for ((name, place), _) in
            self.outputs.iter_mut().zip(outputs).filter(|(_, is_ready)| *is_ready)
        {
            let Some(flow) = place else { continue };
            if let Err(Broken::Read(error) | Broken::Write(error)) = flow.go_on() {
                // The command gets SIGPIPE when it writes more.
                *place = None;
                if error.kind() != ErrorKind::BrokenPipe {
                    say(format_args!("{name}: {error}"));
                    self.delivered = false;
                }
            }
        }
        Ok(())
    }
}

/// Bytes on their way from one open file to another.
struct Flow {
    from: File,
    to: File,
    buffer: Vec<u8>,
    /// How much of the buffer is written.
    written: usize,
    /// How much was written in all.
    moved: usize,
    /// How much is still to be read, in bytes.
    left: usize,
    /// The most that is written at once, in bytes.
    most: usize,
}

/// The side on which a flow came to its end.
enum Broken {
    Read(io::Error),
    Write(io::Error),
}

impl Flow {
    fn new(from: File, to: File, never_waits: bool) -> Self {
        let most = if never_waits { CHUNK } else { WAITING_CHUNK };
        Self { from, to, buffer: Vec::new(), written: 0, moved: 0, left: usize::MAX, most }
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.written..).unwrap_or_default()
    }

    fn is_over(&self) -> bool {
        self.left == 0 && self.rest().is_empty()
    }

    /// What it waits for; nothing more is read before all of the buffer is written.
    fn interest(&self, reads: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match (self.rest().is_empty(), self.left) {
            (false, _) => Some((self.to.as_fd(), PollFlags::POLLOUT)),
            (true, 1..) if reads => Some((self.from.as_fd(), PollFlags::POLLIN)),
            _ => None,
        }
    }

    /// Does what it has waited for.
    fn go_on(&mut self) -> Result<(), Broken> {
        if self.rest().is_empty() {
            self.read().or_else(is_momentary).map_err(Broken::Read)?;
        }
        let rest = self.buffer.get(self.written..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        match self.to.write(rest.get(..self.most).unwrap_or(rest)) {
            Ok(count) => {
                self.written += count;
                self.moved = self.moved.saturating_add(count);
            }
            Err(error) => is_momentary(error).map_err(Broken::Write)?,
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        self.written = 0;
        self.buffer.clear();
        self.buffer.resize(CHUNK.min(self.left), 0);
        let result = self.from.read(&mut self.buffer);
        self.buffer.truncate(*result.as_ref().unwrap_or(&0));
        match result? {
            0 => self.left = 0,
            count => self.left -= count,
        }
        Ok(())
    }

    /// Has it be over when what is in the pipe now is written.
    fn end_with_what_is_there(&mut self) -> nix::Result<()> {
        self.left = self.left.min(sys::bytes_in_pipe(&self.from)?);
        Ok(())
    }

    /// Sets the position of a file to where the command has come to. Of what can't be read twice,
    /// what was read ahead is lost.
    fn give_back(&self) {
        let is_file = self.from.metadata().is_ok_and(|metadata| metadata.is_file());
        // The command can write to the pipe, too: no more is given back than came.
        let left = sys::bytes_in_pipe(&self.to).unwrap_or(0).min(self.moved);
        let unread = left + self.rest().len();
        if let (true, Ok(unread)) = (is_file && unread > 0, i64::try_from(unread)) {
            // One that is in the way of no one else.
            let _ = lseek(&self.from, -unread, Whence::SeekCur);
        }
    }
}

/// The end of a pipe that adl has for itself, which does not wait.
fn our_end(pipe: OwnedFd) -> io::Result<File> {
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(File::from(pipe))
}

/// One of adl's own streams, and whether to use it may wait for someone else. A pipe or a terminal
/// is opened once more where that is allowed, so that it does not: the flag belongs to what the
/// calling shell and others have open, too.
fn own_end(stream: BorrowedFd<'_>, number: u8) -> io::Result<(File, bool)> {
    let file = own(stream)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok((file, true));
    }
    if kind.is_char_device() || kind.is_fifo() {
        let mut how = File::options();
        how.read(number == 0).write(number != 0);
        if let Ok(file) = open_once_more(how, &format!("/proc/self/fd/{number}")) {
            return Ok((file, true));
        }
    }
    Ok((file, false))
}

fn own(stream: BorrowedFd<'_>) -> io::Result<File> {
    stream.try_clone_to_owned().map(File::from)
}

fn is_null(file: &File) -> io::Result<bool> {
    const NULL: u64 = libc::makedev(1, 3);
    let metadata = file.metadata()?;
    Ok(metadata.file_type().is_char_device() && metadata.rdev() == NULL)
}

/// Whether two streams lead to the same place.
fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let of = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    Ok(of(one)? == of(other)?)
}

/// Whether it is a terminal that another job of the caller's shell has now.
fn is_of_another_job(input: &File) -> bool {
    input.is_terminal() && tcgetpgrp(input).is_ok_and(|group| group != getpgrp())
}
