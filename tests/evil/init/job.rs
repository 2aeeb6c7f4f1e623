//! Jobs that don't run, and lies about them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use adl_protocol::{
    EndedBy, Exit, FileAction, FileTask, JobEvent, JobStdio, Reply, Spawn, Stage, Status,
    StdioSource, Task, Usage, VERSION, limits,
};
use rustix::net::{RecvFlags, SendFlags};

use crate::attached;
use crate::files;
use crate::sockets;
use crate::wire::{Control, flood, forever, frame, frame_of, send, send_away};

const OUT_OF_BAND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::OOB);
const STARTED: JobEvent = JobEvent::Started { pid: 7 };

pub(crate) struct Job {
    pub(crate) channel: OwnedFd,
    notice: Option<OwnedFd>,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    is_terminal: bool,
}

pub(crate) fn exited(code: u8) -> JobEvent {
    JobEvent::Exited(Exit {
        status: Status::Code(code),
        usage: Usage::default(),
        wall_us: 1,
        by: None,
        survivors: false,
    })
}

fn huge(status: Status, by: Option<EndedBy>) -> JobEvent {
    let most = u64::MAX;
    let usage = Usage {
        user_us: most,
        system_us: most,
        max_rss_kib: most,
        minor_faults: most,
        major_faults: most,
        blocks_in: most,
        blocks_out: most,
        voluntary_switches: most,
        involuntary_switches: most,
    };
    JobEvent::Exited(Exit { status, usage, wall_us: most, by, survivors: true })
}

impl Job {
    fn take(spawn: &Spawn<'_>, control: &mut Control) -> Self {
        let mut next = || control.descriptors.pop_front().unwrap();
        let channel = next();
        let notice = spawn.start_notice.then(&mut next);
        let (mut stdin, mut stdout) = (None, None);
        if let JobStdio::Streams(sources) = &spawn.stdio {
            if sources[0] == StdioSource::Descriptor {
                stdin = Some(next());
            }
            if sources[1] == StdioSource::Descriptor {
                stdout = Some(next());
            }
        }
        control.descriptors.clear();
        let is_terminal = matches!(spawn.stdio, JobStdio::Terminal { .. });
        Self { channel, notice, stdin, stdout, is_terminal }
    }

    pub(crate) fn say(&self, bytes: &[u8]) {
        send(&self.channel, bytes, vec![]);
    }

    pub(crate) fn say_with(&self, bytes: &[u8], attached: Vec<OwnedFd>) {
        send(&self.channel, bytes, attached);
    }

    /// What comes before the end of a job that is as it should be.
    fn begin(&mut self) {
        if self.notice.is_some() {
            self.say(&frame(&STARTED));
        }
        if self.is_terminal {
            self.say_with(&frame(&JobEvent::Terminal), attached::make("terminal"));
        }
        self.notice = None;
    }

    fn end(&self) {
        self.say(&frame(&exited(0)));
    }

    /// Waits until the host has sent something, or let go.
    fn wait_for_request(&self) {
        let _ = rustix::net::recv(&self.channel, &mut [0; 64][..], RecvFlags::empty());
    }

    /// Tells the host, by its stdout, that something was done.
    fn tell_done(&self) {
        let mut stdout = File::from(self.stdout.as_ref().unwrap().try_clone().unwrap());
        stdout.write_all(b"x").unwrap();
    }
}

pub(crate) fn start(way: &str, spawn: &Spawn<'_>, control: &mut Control, given: Option<&OwnedFd>) {
    let mut job = Job::take(spawn, control);
    match &spawn.task {
        Task::Socket => {
            return sockets::answer(way, &sockets::Asked::Any, &job, control, given);
        }
        Task::File(FileTask { action: FileAction::Connect, .. }) => {
            return sockets::answer(way, &sockets::Asked::Unix, &job, control, given);
        }
        _ => {}
    }
    if let Task::File(task) = &spawn.task {
        files::answer(way, task, &job);
        return;
    }
    match way {
        "job-silent" => {
            job.begin();
            forever();
        }
        "job-exit" => std::process::exit(0),
        "job-exit-after-start" => {
            job.begin();
            std::process::exit(0);
        }
        // Closed without an end; the program lives on.
        "job-close" => {}
        "job-close-control" => {
            job.begin();
            let null = attached::null();
            let closed = std::mem::replace(&mut control.socket, null);
            drop(closed);
            forever();
        }
        "job-notice-held" => {
            job.say(&frame(&STARTED));
            forever();
        }
        "job-length-zero" => job.say(&0_u32.to_le_bytes()),
        "job-length-max" => job.say(&u32::MAX.to_le_bytes()),
        "job-length-over" => {
            job.say(&u32::try_from(limits::MAX_FRAME + 1).unwrap().to_le_bytes());
        }
        "job-truncated-close" => job.say(&frame(&exited(0))[..6]),
        "job-truncated-silent" => {
            job.say(&frame(&exited(0))[..6]);
            forever();
        }
        "job-trailing" => job.say(&frame_of(&[&frame(&exited(0))[4..], b"!"].concat())),
        "job-unknown" => job.say(&frame_of(&[200, 1, 2, 3])),
        "job-wrong-type" => job.say(&frame(&Reply::Ready { version: VERSION, network: 1 })),
        "job-failed-0" => job.say(&failed(0)),
        "job-failed-minus" => job.say(&failed(-1)),
        "job-failed-million" => job.say(&failed(1_000_000)),
        "job-huge" => job.say(&frame(&huge(Status::Code(0), None))),
        "job-timed-out" => {
            job.say(&frame(&huge(
                Status::Signal { signal: 255, core: true },
                Some(EndedBy::Timeout),
            )));
        }
        "job-exited-first" => {
            job.end();
            job.begin();
        }
        "job-exited-twice" => {
            job.begin();
            job.end();
            job.say(&frame(&exited(1)));
        }
        "job-started-twice" => {
            job.begin();
            job.say(&frame(&STARTED));
            job.end();
        }
        "job-pid-0" => start_with(&mut job, 0),
        "job-pid-minus" => start_with(&mut job, -1),
        "job-pid-least" => start_with(&mut job, i32::MIN),
        "job-terminal-unasked" => {
            job.begin();
            job.say_with(&frame(&JobEvent::Terminal), attached::make("terminal"));
            job.end();
        }
        "job-flood" => {
            job.begin();
            flood(&job.channel, &frame(&STARTED).repeat(1000));
            forever();
        }
        "job-flood-truncated" => {
            job.begin();
            // A frame of the longest that is taken, byte by byte, and then another.
            let body = vec![0; limits::MAX_PATH];
            flood(&job.channel, &frame_of(&body));
            forever();
        }
        "control-flood" => {
            job.begin();
            job.end();
            drop(job);
            flood(
                &control.socket,
                &frame(&Reply::Ready { version: VERSION, network: 1 }).repeat(1000),
            );
            forever();
        }
        "job-out-of-band" => {
            job.begin();
            let _ = send_away(&job.channel, b"!", attached::make("lingering"), OUT_OF_BAND);
            let _ = send_away(&job.channel, b"!", vec![], OUT_OF_BAND);
            job.end();
        }
        // What it would have the host do.
        "job-closes-lingering" => {
            job.begin();
            drop(attached::make("lingering"));
            job.end();
        }
        // One out-of-band byte, and nothing after it.
        "job-out-of-band-alone" => {
            job.begin();
            job.wait_for_request();
            let _ = send_away(&job.channel, b"!", vec![], OUT_OF_BAND);
            job.tell_done();
            forever();
        }
        // Both ends of the channel are the host's then.
        "job-channel-away" => {
            job.begin();
            job.wait_for_request();
            let own = job.channel.try_clone().unwrap();
            job.say_with(&frame(&STARTED)[..3], vec![own]);
            std::process::exit(0);
        }
        // In the host's end of the control socket, which no one reads.
        "job-channel-parked" => {
            job.begin();
            job.wait_for_request();
            let own = job.channel.try_clone().unwrap();
            let _ = send_away(&control.socket, b"x", vec![own], SendFlags::NOSIGNAL);
            std::process::exit(0);
        }
        "job-stdin-unread" => {
            job.begin();
            forever();
        }
        "job-stdout-for-ever" => {
            job.begin();
            let mut stdout = File::from(job.stdout.take().unwrap());
            while stdout.write_all(&[b'x'; 65536]).is_ok() {}
            job.end();
        }
        // When the host says so.
        "terminal-late" => {
            job.say(&frame(&STARTED));
            job.notice = None;
            let Task::Program(program) = &spawn.task else { panic!("no program") };
            let port = program.arguments.single().unwrap().to_str().unwrap().parse().unwrap();
            let mut host = TcpStream::connect(("127.0.0.1", port)).unwrap();
            host.read_to_end(&mut Vec::new()).unwrap();
            job.say_with(&frame(&JobEvent::Terminal), attached::make("terminal"));
            job.wait_for_request();
        }
        // A terminal of which the one side stays here.
        "terminal-kept" => {
            job.say(&frame(&STARTED));
            let terminal = attached::terminal();
            let copy = terminal.try_clone().unwrap();
            job.say_with(&frame(&JobEvent::Terminal), vec![copy]);
            job.notice = None;
            job.end();
            std::mem::forget(terminal);
            forever();
        }
        "echoes" => {
            job.begin();
            let mut bytes = Vec::new();
            File::from(job.stdin.take().unwrap()).read_to_end(&mut bytes).unwrap();
            File::from(job.stdout.take().unwrap()).write_all(&bytes).unwrap();
            job.end();
        }
        way => {
            if let Some(what) = way.strip_prefix("terminal-with-") {
                job.say(&frame(&STARTED));
                job.say_with(&frame(&JobEvent::Terminal), attached::make(what));
                job.notice = None;
                job.wait_for_request();
            } else if let Some(what) = way.strip_prefix("terminal-then-") {
                job.begin();
                job.wait_for_request();
                let attached = attached::make(what);
                let _ = send_away(&job.channel, b"x", attached, SendFlags::NOSIGNAL);
            } else if let Some(what) = way.strip_prefix("start-with-") {
                // Before the host looks: it waits for the notice.
                job.say_with(&frame(&STARTED), attached::make(what));
                job.notice = None;
                job.end();
            } else if let Some(what) = way.strip_prefix("end-with-") {
                job.begin();
                job.wait_for_request();
                job.say_with(&frame(&exited(0)), attached::make(what));
                job.tell_done();
            } else if let Some(what) = way.strip_prefix("left-with-") {
                // After the end, to be closed with the channel.
                job.begin();
                job.wait_for_request();
                job.end();
                let attached = attached::make(what);
                let _ = send_away(&job.channel, b"x", attached, SendFlags::NOSIGNAL);
                job.tell_done();
            } else {
                job.begin();
                job.end();
            }
        }
    }
    fn failed(errno: i32) -> Vec<u8> {
        frame(&JobEvent::Failed { stage: Stage::Exec, errno })
    }
    fn start_with(job: &mut Job, pid: i32) {
        job.say(&frame(&JobEvent::Started { pid }));
        job.notice = None;
        job.end();
    }
}
