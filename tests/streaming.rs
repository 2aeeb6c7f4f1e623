//! Output comes in chunks while a command runs: to a callback, or from a cursor on.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use adl_runtime::{Command, EndReason, Error, OutputCursor, OutputStream, Sandbox, Stdio};

use crate::census;
use crate::harness::{Home, at_most, needs, shell, within};
use crate::jobs::SOON;

const GO: ControlFlow<()> = ControlFlow::Continue(());

/// Waits for a file that the host makes.
const UNTIL_GO: &str = "while ! test -e /tmp/go; do sleep 0.01; done";

#[track_caller]
fn assert_alone(sandbox: &Sandbox) {
    let tree = || census::tree(sandbox.init_pid());
    assert!(within(SOON, || tree().len() == 1), "{:?}", tree());
    assert_eq!(shell(sandbox, "echo alive"), "alive\n");
}

#[test]
fn a_callback_gets_what_is_written_while_the_command_runs() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut got = Vec::new();
    let mut command = sandbox.shell(format!("echo one; {UNTIL_GO}; echo two >&2; exit 3"));
    let status = command
        .output_with(|stream, bytes| {
            got.push((stream, bytes.to_vec()));
            // It would not go on, were this not called before its end.
            if got.len() == 1 {
                sandbox.files().write_file("/tmp/go", b"").unwrap();
            }
            GO
        })
        .unwrap();
    assert_eq!((status.reason(), status.code()), (EndReason::Exited, Some(3)));
    let expected =
        [(OutputStream::Stdout, b"one\n".to_vec()), (OutputStream::Stderr, b"two\n".to_vec())];
    assert_eq!(got, expected);
}

#[test]
fn all_of_it_comes_once_and_whoever_holds_the_stream_holds_up_nothing() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let lines: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    let mut got = Vec::new();
    let mut command = sandbox.shell("sleep 1000 & seq 200000");
    let begin = Instant::now();
    let status = command
        .output_with(|_, bytes| {
            assert!(!bytes.is_empty() && bytes.len() <= 64 << 10);
            got.extend_from_slice(bytes);
            GO
        })
        .unwrap();
    assert!(status.success() && begin.elapsed() < at_most(SOON), "{status}");
    assert!(got == lines.as_bytes(), "{} bytes", got.len());
    // On a terminal, too.
    let mut got = Vec::new();
    let mut command = sandbox.shell("echo on a terminal");
    let status = command.terminal(24, 80).output_with(|stream, bytes| {
        assert_eq!(stream, OutputStream::Stdout);
        got.extend_from_slice(bytes);
        GO
    });
    assert!(status.unwrap().success());
    assert_eq!(got, b"on a terminal\r\n");
}

#[test]
fn a_callback_may_stop_the_command_and_what_it_has_started() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut calls = 0;
    let mut command = sandbox.shell("(setsid sleep 1000 &); yes & yes");
    let status = command
        .output_with(|_, _| {
            calls += 1;
            if calls == 5 { ControlFlow::Break(()) } else { GO }
        })
        .unwrap();
    assert_eq!((status.reason(), calls), (EndReason::Stopped, 5), "{status}");
    assert_alone(&sandbox);
}

#[test]
fn a_callback_that_panics_leaves_nothing_behind() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        sandbox.shell("(setsid sleep 1000 &); yes").output_with(|_, _| panic!("as it should"))
    }));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"as it should"));
    // Init may be about to reap them.
    let runs = |process: &census::Process| !process.is_zombie();
    let tree = census::tree(sandbox.init_pid());
    assert_eq!(tree.iter().filter(|process| runs(process)).count(), 1, "{tree:?}");
    assert_alone(&sandbox);
}

#[test]
fn bounds_hold_for_what_a_callback_gets() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let run = |command: &mut Command| {
        let mut bytes = 0;
        let status = command.output_with(|_, chunk| {
            bytes += chunk.len();
            GO
        });
        (status.unwrap().reason(), bytes)
    };
    let (reason, bytes) = run(sandbox.command("yes").output_limit(1 << 20));
    assert!(reason == EndReason::OutputLimit && bytes > 1 << 20, "{reason:?}, {bytes}");
    let short = Duration::from_millis(200);
    assert_eq!(run(sandbox.shell("echo a; sleep 1000").timeout(short)), (EndReason::TimedOut, 2));
    assert_eq!(run(sandbox.shell("echo a; sleep 1000").idle_timeout(short)), (EndReason::Idle, 2));
    // One who is slow holds up the command, and no clock.
    let begin = Instant::now();
    let mut yes = sandbox.command("yes");
    let status = yes.timeout(short).output_with(|_, _| {
        std::thread::sleep(Duration::from_millis(100));
        GO
    });
    assert_eq!(status.unwrap().reason(), EndReason::TimedOut);
    assert!(begin.elapsed() < at_most(Duration::from_secs(5)));
}

#[test]
fn a_cursor_goes_through_all_that_is_written_once() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = format!("echo one; echo first >&2; {UNTIL_GO}; seq 100000; echo last >&2");
    let job = sandbox.shell(script).background().unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut cursor = OutputCursor::default();
    let mut steps = 0;
    while job.wait_output(cursor, Duration::MAX).unwrap() {
        let (output, next) = job.output_since(cursor);
        assert!(!output.stdout.is_empty() || !output.stderr.is_empty());
        assert_eq!((output.stdout_dropped, output.stderr_dropped), (0, 0));
        stdout.extend(output.stdout);
        stderr.extend(output.stderr);
        (cursor, steps) = (next, steps + 1);
        if stdout == b"one\n" && stderr == b"first\n" {
            // There is no more, and it runs on.
            let short = Duration::from_millis(20);
            assert!(!job.wait_output(cursor, short).unwrap() && job.try_wait().unwrap().is_none());
            sandbox.files().write_file("/tmp/go", b"").unwrap();
        }
    }
    let all = job.wait().unwrap();
    assert!(steps >= 2 && all.status.success());
    assert!(stdout == all.stdout && stderr == all.stderr, "{} bytes", stdout.len());
    assert_eq!(stderr, b"first\nlast\n");
    // At the end there is nothing more, however often it is asked for.
    let (rest, same) = job.output_since(cursor);
    assert!(rest.stdout.is_empty() && rest.stderr.is_empty() && same == cursor);
}

#[test]
fn a_cursor_tells_what_it_has_missed() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut command = sandbox.shell(format!("printf 12345678; {UNTIL_GO}; seq -s '' 1000"));
    let job = command.keep_output(4, 6).background().unwrap();
    let mut cursor = OutputCursor::default();
    let mut first = Vec::new();
    while first.len() < 8 {
        assert!(job.wait_output(cursor, Duration::MAX).unwrap());
        let (output, next) = job.output_since(cursor);
        first.extend(output.stdout);
        cursor = next;
    }
    assert_eq!(first, b"12345678");
    sandbox.files().write_file("/tmp/go", b"").unwrap();
    let all = job.wait().unwrap();
    let (rest, _) = job.output_since(cursor);
    let length = (1..=1000).map(|number: u32| number.to_string().len()).sum::<usize>() + 1;
    assert_eq!(rest.stdout, b"91000\n"[..].to_vec());
    assert_eq!(rest.stdout_dropped, length as u64 - 6);
    assert_eq!(all.stdout_dropped, length as u64 + 8 - 10);
}

#[test]
fn a_wait_for_output_ends_with_the_command_and_with_the_sandbox() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    for end in [|sandbox: &Sandbox| sandbox.kill_all(), Sandbox::reset, Sandbox::delete] {
        let job = sandbox.command("sleep").arg("1000").background().unwrap();
        let waits = {
            let job = job.clone();
            std::thread::spawn(move || job.wait_output(OutputCursor::default(), Duration::MAX))
        };
        end(&sandbox).unwrap();
        assert!(!waits.join().unwrap().unwrap());
        assert!(job.wait().is_ok());
    }
}

#[test]
fn an_option_that_means_nothing_to_a_way_of_running_is_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    type Way = fn(&mut Command) -> Option<Error>;
    let status: Way = |command| command.status().err();
    let output: Way = |command| command.output().err();
    let output_with: Way = |command| command.output_with(|_, _| GO).err();
    let spawn: Way = |command| command.spawn().err();
    let background: Way = |command| command.background().err();
    type Set = fn(&mut Command);
    let all: [(&str, Set, &[Way], &[Way]); 7] = [
        (
            "kill on drop",
            |command| {
                command.kill_on_drop(true);
            },
            &[status, output, output_with, background],
            &[spawn],
        ),
        (
            "keep output",
            |command| {
                command.keep_output(1, 1);
            },
            &[status, output_with],
            &[output, background],
        ),
        (
            "stdin",
            |command| {
                command.stdin(Stdio::piped());
            },
            &[status, output, output_with, background],
            &[spawn],
        ),
        (
            "input",
            |command| {
                command.input("bytes");
            },
            &[spawn],
            &[status, output, output_with, background],
        ),
        (
            "output limit",
            |command| {
                command.output_limit(10);
            },
            &[status],
            &[output, output_with, background],
        ),
        (
            "idle timeout",
            |command| {
                command.idle_timeout(SOON);
            },
            &[status],
            &[output, output_with, background],
        ),
        (
            "terminal",
            |command| {
                command.terminal(24, 80);
            },
            &[background],
            &[status, output, output_with, spawn],
        ),
    ];
    for (what, set, refused, taken) in all {
        for way in refused {
            let mut command = sandbox.command("true");
            set(&mut command);
            match way(&mut command) {
                Some(Error::Invalid { what: told, .. }) => assert_eq!(told, what),
                other => panic!("{what}: {other:?}"),
            }
        }
        for way in taken {
            let mut command = sandbox.command("true");
            set(&mut command);
            assert!(way(&mut command).is_none(), "{what}");
        }
    }
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}
