//! Commands whose output an event loop of the caller's collects.

use std::collections::HashMap;
use std::fs::File;
use std::time::{Duration, Instant};

use adl_runtime::{EndReason, Error, Output, PendingOutput, Result, Sandbox, Stage};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::census;
use crate::harness::{Home, needs, within};

/// More than a machine under load takes for anything here.
const SOON: Duration = Duration::from_secs(30);

/// Waits until one of them is readable or due.
fn wait_for_any<'a>(all: impl Iterator<Item = &'a mut PendingOutput>) {
    let (mut fds, mut most) = (Vec::new(), Duration::from_secs(60));
    for pending in all {
        most = pending.wait_at_most().map_or(most, |other| other.min(most));
        fds.push(PollFd::new(pending.watch().unwrap(), PollFlags::POLLIN));
    }
    let milliseconds = most.as_nanos().div_ceil(1_000_000);
    poll(&mut fds, PollTimeout::try_from(milliseconds).unwrap()).unwrap();
}

fn collect(mut pending: PendingOutput) -> Result<Output> {
    loop {
        if let Some(output) = pending.advance()? {
            assert!(matches!(pending.advance(), Err(Error::Invalid { what: "output", .. })));
            return Ok(output);
        }
        wait_for_any(std::iter::once(&mut pending));
    }
}

fn is_empty(sandbox: &Sandbox) -> bool {
    census::tree(sandbox.init_pid()).iter().filter(|process| !process.is_zombie()).count() <= 1
}

#[test]
fn what_is_collected_is_what_output_collects() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let input: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
    let mut pending = sandbox.shell("tee /dev/stderr; exit 3");
    pending.input(&*input).keep_output(1 << 21, 16);
    let output = collect(pending.begin_output().unwrap()).unwrap();
    assert_eq!(output.status.code(), Some(3));
    for (stream, dropped) in
        [(&output.stdout, output.stdout_dropped), (&output.stderr, output.stderr_dropped)]
    {
        assert_eq!(stream.len() as u64 + dropped, input.len() as u64);
        assert!(stream[..1 << 21] == input[..1 << 21], "not what was written");
        assert_eq!(stream[stream.len() - 16..], input[input.len() - 16..]);
    }

    let left = collect(sandbox.shell("sleep 1000 & echo x").begin_output().unwrap()).unwrap();
    assert_eq!((&*left.stdout, left.stdio_open), (&b"x\n"[..], true));
    sandbox.kill_all().unwrap();

    let mut on_terminal = sandbox.shell("tty; exit 2");
    let output = collect(on_terminal.terminal(24, 80).begin_output().unwrap()).unwrap();
    assert!(output.stdout.starts_with(b"/dev/pts/"), "{output:?}");
    assert_eq!(output.status.code(), Some(2));

    let missing = collect(sandbox.command("/missing").begin_output().unwrap()).unwrap_err();
    assert!(matches!(missing, Error::Start { stage: Stage::Exec, .. }), "{missing:?}");
}

#[test]
fn a_wait_for_it_ends_in_time() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut pending = sandbox.shell("read line; echo done").begin_output().unwrap();
    let output = loop {
        if let Some(output) = pending.advance_within(SOON).unwrap() {
            break output;
        }
    };
    assert_eq!(output.stdout, b"done\n");

    let mut pending = sandbox.shell("exec sleep 1000").begin_output().unwrap();
    let begin = Instant::now();
    assert!(pending.advance_within(Duration::from_millis(50)).unwrap().is_none());
    assert!(begin.elapsed() >= Duration::from_millis(50));
    pending.handle().kill().unwrap();
    assert_eq!(collect(pending).unwrap().status.signal(), Some(9));
}

#[test]
fn one_thread_collects_of_any_number_at_once() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandboxes = [home.sandbox(), home.sandbox()];
    let mut running: HashMap<usize, PendingOutput> = (0..60)
        .map(|number| {
            let script = format!("sleep 0.0{}; echo {number}", number % 10);
            (number, sandboxes[number % 2].shell(script).begin_output().unwrap())
        })
        .collect();
    let end = Instant::now() + SOON;
    while !running.is_empty() {
        assert!(Instant::now() < end, "{} still run", running.len());
        wait_for_any(running.values_mut());
        running.retain(|number, pending| match pending.advance().unwrap() {
            None => true,
            Some(output) => {
                assert_eq!(output.stdout, format!("{number}\n").into_bytes());
                false
            }
        });
    }
}

#[test]
fn it_ends_by_all_that_ends_a_command() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let short = Duration::from_millis(50);
    let reason =
        |pending: Result<PendingOutput>| collect(pending.unwrap()).unwrap().status.reason();
    let sleeps = "echo begun; exec sleep 1000";
    assert_eq!(reason(sandbox.shell(sleeps).timeout(short).begin_output()), EndReason::TimedOut);
    assert_eq!(reason(sandbox.shell(sleeps).idle_timeout(short).begin_output()), EndReason::Idle);
    let floods = "exec yes";
    let flood = sandbox.shell(floods).output_limit(1 << 20).begin_output();
    assert_eq!(reason(flood), EndReason::OutputLimit);
    let killed = sandbox.shell(sleeps).begin_output().unwrap();
    killed.handle().kill().unwrap();
    assert_eq!(reason(Ok(killed)), EndReason::Signaled);
    let dies = sandbox.shell(sleeps).begin_output();
    sandbox.reset().unwrap();
    assert_eq!(reason(dies), EndReason::SandboxDied);
}

#[test]
fn when_it_is_dropped_all_that_it_has_started_is_killed() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut pending = sandbox.shell("setsid sleep 1000 & echo begun; wait").begin_output().unwrap();
    assert!(pending.advance().unwrap().is_none());
    assert!(within(SOON, || census::tree(sandbox.init_pid()).len() >= 3));
    drop(pending);
    assert!(within(SOON, || is_empty(&sandbox)));
    assert!(sandbox.command("true").status().unwrap().success());
}

#[test]
fn a_stream_that_has_ended_wakes_no_one_up_again() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "exec >&- 2>&-; exec sleep 1000";
    let mut pending = sandbox.shell(script).begin_output().unwrap();
    let is_calm = within(SOON, || {
        assert!(pending.advance().unwrap().is_none());
        let mut fds = [PollFd::new(pending.watch().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(200_u8)).unwrap() == 0
            && census::tree(sandbox.init_pid())
                .iter()
                .any(|it| it.status("Name").is_some_and(|name| name == "sleep"))
    });
    assert!(is_calm, "still readable");
    pending.handle().kill().unwrap();
    assert_eq!(collect(pending).unwrap().status.signal(), Some(9));
}

#[test]
fn streams_of_the_callers_are_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let file = File::create(home.path("file")).unwrap();
    let refused = sandbox.command("true").stdout(file).begin_output();
    assert!(matches!(refused, Err(Error::Invalid { what: "stdio", .. })));
}
