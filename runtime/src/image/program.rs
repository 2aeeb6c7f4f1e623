//! Programs of the host, run to fetch images.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::sys::program::end_with_caller;
use crate::sys::{pidfd, set_blocking};
use crate::wait::{Deadline, wait_ready};

/// How much of what a program says of an error is kept, in bytes, its end.
const KEPT: usize = 16 << 10;
/// How often it is looked at what a program has made.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// How a program ended, and what it wrote.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    /// The end of it.
    pub(super) stderr: Vec<u8>,
}

/// Runs a program until it ends, and kills it with what it has started where it is late.
/// `look` is called now and then meanwhile, and ends it by an error. `None` where there is no such
/// program.
///
/// # Errors
/// [`Error::TimedOut`]; [`Error::TooLarge`] where it writes more than `longest` bytes to stdout.
pub(super) fn run(
    command: &mut Command,
    what: &'static str,
    longest: u64,
    deadline: Deadline,
    look: impl FnMut() -> Result<()>,
) -> Result<Option<Ended>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Its messages are looked at; where it finds logins and proxies is the caller's.
    command.env("LC_ALL", "C").process_group(0);
    end_with_caller(command);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::at("start", command.get_program().as_ref())(error)),
    };
    let mut running = Running(child);
    running.wait(what, longest, deadline, look).map(Some)
}

/// A program that is killed, with its process group, when this is dropped.
struct Running(Child);

impl Running {
    fn wait(
        &mut self,
        what: &'static str,
        longest: u64,
        deadline: Deadline,
        mut look: impl FnMut() -> Result<()>,
    ) -> Result<Ended> {
        let pid = i32::try_from(self.0.id()).map_err(|_| Error::SandboxDied)?;
        let end = match pidfd::open(pid) {
            // The calling program, which may ignore SIGCHLD, has it reaped: it has ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => None,
            end => Some(end.map_err(Error::io("pidfd_open"))?),
        };
        let mut stdout = self.0.stdout.take();
        let mut stderr = self.0.stderr.take();
        for fd in [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)] {
            let Some(fd) = fd else { continue };
            set_blocking(fd, false).map_err(Error::io("fcntl"))?;
        }
        let (mut out, mut error) = (Vec::new(), Vec::new());
        loop {
            let has_ended = match &end {
                None => true,
                Some(end) => {
                    let pipes =
                        [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
                    wait(end.as_fd(), pipes, deadline.min(Deadline::after(BETWEEN_LOOKS)))?
                }
            };
            // What it wrote is in the pipes by the time it has ended. What it has left running is
            // not waited for.
            read(&mut stdout, &mut out).map_err(Error::io("read"))?;
            read(&mut stderr, &mut error).map_err(Error::io("read"))?;
            if out.len() as u64 > longest {
                return Err(Error::TooLarge {
                    what: "what a registry sent, in bytes",
                    limit: longest,
                });
            }
            error.drain(..error.len().saturating_sub(KEPT));
            look()?;
            if has_ended {
                let status = match self.0.wait() {
                    // Reaped as above, and its status with it: what it says has to do. What it
                    // brings is checked in any case.
                    Err(lost) if lost.raw_os_error() == Some(libc::ECHILD) => {
                        ExitStatus::from_raw(i32::from(says_that_it_failed(&error)) << 8)
                    }
                    status => status.map_err(Error::io("wait"))?,
                };
                return Ok(Ended { status, stdout: out, stderr: error });
            }
            if deadline.passed() {
                return Err(Error::TimedOut { what, after: deadline.length() });
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The group has its number for as long as it is not reaped.
        if let (Ok(None), Ok(pid)) = (self.0.try_wait(), i32::try_from(self.0.id())) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

/// Waits until there is something to read, or the program has ended, which this returns.
fn wait(
    end: BorrowedFd<'_>,
    pipes: [Option<BorrowedFd<'_>>; 2],
    deadline: Deadline,
) -> Result<bool> {
    let mut fds = vec![PollFd::new(end, PollFlags::POLLIN)];
    fds.extend(pipes.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    wait_ready(&mut fds, deadline)?;
    Ok(fds.first().is_some_and(|fd| fd.any().unwrap_or(true)))
}

/// Reads what there is now; at its end, the stream is let go of.
fn read(stream: &mut Option<impl Read>, bytes: &mut Vec<u8>) -> io::Result<()> {
    let Some(open) = stream else { return Ok(()) };
    let mut buffer = [0; 8 << 10];
    for _ in 0..64 {
        match open.read(&mut buffer) {
            Ok(0) => {
                *stream = None;
                return Ok(());
            }
            Ok(count) => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The last lines of what a program said, for an error: without what a terminal would obey, and
/// without what a program of Go's puts around them.
pub(super) fn last_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let told: Vec<String> = match lines.iter().rev().find(|line| is_fatal(line)) {
        Some(line) => vec![message(line)],
        None => {
            lines.iter().skip(lines.len().saturating_sub(3)).map(|line| message(line)).collect()
        }
    };
    let told = told.join("; ");
    let shown = told.chars().filter(|c| !is_format(*c));
    let told: String = shown.map(|c| if c.is_control() { ' ' } else { c }).collect();
    if told.is_empty() { "it does not say why".to_owned() } else { told }
}

/// Whether a character is not seen, and changes how others are: Unicode's category of formats (Cf),
/// and what separates lines and paragraphs.
fn is_format(c: char) -> bool {
    matches!(
        u32::from(c),
        0xad | 0x600..=0x605
            | 0x61c
            | 0x6dd
            | 0x70f
            | 0x890..=0x891
            | 0x8e2
            | 0x180e
            | 0x200b..=0x200f
            | 0x2028..=0x202e
            | 0x2060..=0x206f
            | 0xfeff
            | 0xfff9..=0xfffb
            | 0x110bd
            | 0x110cd
            | 0x13430..=0x1343f
            | 0x1bca0..=0x1bca3
            | 0x1d173..=0x1d17a
            | 0xe0000..=0xe007f
    )
}

fn is_fatal(line: &str) -> bool {
    line.contains("level=fatal") || line.starts_with("Error")
}

fn says_that_it_failed(stderr: &[u8]) -> bool {
    String::from_utf8_lossy(stderr).lines().any(is_fatal)
}

/// What is in `msg="…"`, if anything is.
fn message(line: &str) -> String {
    let Some((_, quoted)) = line.split_once("msg=\"") else { return line.trim().to_owned() };
    let mut message = String::new();
    let mut characters = quoted.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => break,
            '\\' => message.extend(characters.next().filter(|c| !matches!(c, 'n' | 't'))),
            c => message.push(c),
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::{Error, last_lines, run};
    use crate::wait::Deadline;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const LATE: Duration = Duration::from_secs(60);

    #[test]
    fn what_a_program_writes_is_told_and_where_there_is_none_that() {
        let mut command = shell("echo out; echo error >&2; seq 20000 >&2; echo $LC_ALL; exit 3");
        let ended = run(&mut command, "x", 100, Deadline::after(LATE), || Ok(())).unwrap().unwrap();
        assert_eq!((ended.status.code(), &ended.stdout[..]), (Some(3), &b"out\nC\n"[..]));
        assert!(ended.stderr.ends_with(b"\n20000\n") && ended.stderr.len() <= super::KEPT);
        let none = run(&mut Command::new("/no/such/program"), "x", 0, Deadline::NEVER, || Ok(()));
        assert!(none.unwrap().is_none());
        let much = run(&mut shell("yes"), "x", 1000, Deadline::after(LATE), || Ok(()));
        assert!(matches!(much, Err(Error::TooLarge { limit: 1000, .. })));
    }

    #[test]
    fn a_program_that_is_late_ends_with_what_it_has_started() {
        let file = std::env::temp_dir().join(format!("adl-late-{}", std::process::id()));
        let script = format!("sleep 100 & echo $! > {}; wait", file.display());
        let begin = Instant::now();
        let deadline = Deadline::after(Duration::from_millis(500));
        let late = run(&mut shell(&script), "a test", 0, deadline, || Ok(()));
        assert!(matches!(late, Err(Error::TimedOut { what: "a test", .. })), "{late:?}");
        assert!(begin.elapsed() < LATE);
        let pid = std::fs::read_to_string(&file).unwrap();
        let path = format!("/proc/{}/cmdline", pid.trim());
        let end = Instant::now() + LATE;
        while std::fs::read(&path).is_ok_and(|line| line.starts_with(b"sleep")) {
            assert!(Instant::now() < end, "{pid} still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
        // One that ends by itself does not wait for what it has left.
        let mut leaves = shell("sleep 100 & echo $!");
        let ended = run(&mut leaves, "x", 100, Deadline::after(LATE), || Ok(())).unwrap().unwrap();
        let left: i32 = String::from_utf8(ended.stdout).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), nix::sys::signal::SIGKILL)
            .unwrap();
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn the_last_words_of_a_program_are_told_without_what_a_terminal_obeys() {
        let skopeo = b"time=\"x\" level=info msg=\"a\"\ntime=\"x\" level=fatal msg=\"Error \\\"q\\\"\\n end\"\n";
        assert_eq!(last_lines(skopeo), "Error \"q\" end");
        assert_eq!(last_lines(b"a\nb\n\nc\nd\x1b[31m\n"), "b; c; d [31m");
        let hidden =
            "Error: a\u{202e}b\u{2066}c\u{200b}d\u{ad}e\u{feff}f\u{e0041}g\u{2028}h\u{9b}i";
        assert_eq!(last_lines(hidden.as_bytes()), "Error: abcdefgh i");
        assert_eq!(last_lines("ä 日本 e\u{301}".as_bytes()), "ä 日本 e\u{301}");
        assert_eq!(last_lines(b""), "it does not say why");
        assert_eq!(last_lines("\u{202e}".as_bytes()), "it does not say why");
    }
}
