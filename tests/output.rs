//! What a command writes and reads arrives whole, at any size, on pipes and on a terminal.

use std::io::{Read, Write};
use std::path::Path;
use std::process;
use std::time::{Duration, Instant};

use adl_runtime::{Config, EndReason, Error, Sandbox, Stdio, Terminal};

use crate::census;
use crate::harness::{Home, Need, at_most, needs, shell, typical};
use crate::helper::{Helper, say};
use crate::jobs::alone;

/// How much slower than the host's own commands may be what this library, built without
/// optimization, moves with other tests beside it; what is promised is a matter of benchmarks.
const SLOWER: f64 = if cfg!(debug_assertions) { 2.0 } else { 1.4 };

const MIB: usize = 1 << 20;

/// Bytes that are not the same in any two places.
fn pattern(length: usize) -> Vec<u8> {
    let numbers = (1_u64..).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes: Vec<u8> = numbers.take(length.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(length);
    bytes
}

#[test]
fn what_is_written_just_before_the_end_is_never_lost_and_costs_no_delay() {
    if !needs(&[Need::Program("cat")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    // In one write, that just fits into a pipe: it ends without having waited for a reader.
    let expected = pattern(60_000);
    let on_host = home.path("pattern");
    std::fs::write(&on_host, &expected).unwrap();
    let mut put = sandbox.shell("cat > /tmp/pattern");
    assert!(put.input(expected.clone()).status().unwrap().success());

    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    // In turns, so that what else goes on is the same for both.
    for run in 0..1000 {
        let begin = Instant::now();
        let output = sandbox.command("/usr/bin/cat").arg("/tmp/pattern").output().unwrap();
        inside.push(begin.elapsed());
        assert!(output.status.success(), "{run}: {output:?}");
        assert!(output.stdout == expected, "{run}: {} bytes", output.stdout.len());
        assert!(output.stderr.is_empty() && !output.stdio_open);

        let begin = Instant::now();
        let output = process::Command::new("/usr/bin/cat").arg(&on_host).output().unwrap();
        outside.push(begin.elapsed());
        assert!(output.stdout == expected);
    }
    let (inside, outside) = (typical(&mut inside), typical(&mut outside));
    let ratio = inside.as_secs_f64() / outside.as_secs_f64();
    eprintln!("60,000 bytes: {inside:?}, on the host {outside:?}, ratio {ratio:.2}");
    assert!(ratio < SLOWER, "{inside:?} to {outside:?}");
}

#[test]
fn ten_gibibytes_take_no_more_memory_than_what_is_kept() {
    if !needs(&[]) {
        return;
    }
    // Alone in its process: the memory of the other tests is not to be counted.
    let _alone = alone();
    let home = Home::new();
    let mut helper = Helper::start("collect-much", &home.state());
    let grown: u64 = helper.next().expect("the growth in KiB").parse().unwrap();
    helper.finish();
    eprintln!("10 GiB collected with {grown} KiB");
    // The 16 MiB that are kept have been in memory, or it was not measured.
    assert!((16 << 10..2 * (16 << 10)).contains(&grown), "{grown} KiB");
}

/// The helper of the test above.
pub(crate) fn collect_much(state: &Path) {
    const ALL: u64 = 10 << 30;
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    shell(&sandbox, "true");
    let peak = || -> u64 {
        let peak = census::status(i32::try_from(process::id()).unwrap(), "VmHWM").unwrap();
        peak.trim_end_matches(" kB").parse().unwrap()
    };
    let before = peak();
    let output = sandbox.shell("echo first; head -c 10G /dev/zero; echo last").output().unwrap();
    let grown = peak() - before;
    assert_eq!(output.status.reason(), EndReason::Exited);
    assert_eq!(output.stdout.len() as u64 + output.stdout_dropped, 6 + ALL + 5);
    assert_eq!(output.stdout.len(), 16 * MIB);
    assert!(output.stdout.starts_with(b"first\n\0") && output.stdout.ends_with(b"\0last\n"));
    drop(output);
    say(grown);
    sandbox.delete().unwrap();
    adl_runtime::finish_removals();
}

#[test]
fn as_much_is_kept_of_each_stream_as_was_asked_for() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "printf abcdefghij; printf 0123456789 >&2";
    for (head, tail, stdout, stderr, dropped) in [
        (4, 3, "abcdhij", "0123789", 3),
        (0, 3, "hij", "789", 7),
        (4, 0, "abcd", "0123", 6),
        (0, 0, "", "", 10),
        (6, 4, "abcdefghij", "0123456789", 0),
    ] {
        let output = sandbox.shell(script).keep_output(head, tail).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), stdout);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), stderr);
        assert_eq!((output.stdout_dropped, output.stderr_dropped), (dropped, dropped));
    }
    // In the order in which it was written, where the two are one.
    let mut script = sandbox.shell("for i in 1 2 3; do echo $i; echo $i >&2; done");
    let output = script.stderr(Stdio::same_as_stdout()).output().unwrap();
    assert_eq!((&*output.stdout, &*output.stderr), (&b"1\n1\n2\n2\n3\n3\n"[..], &b""[..]));
}

#[test]
fn a_hundred_mebibytes_of_input_come_back_equal() {
    if !needs(&[]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let bytes = pattern(100 * MIB + 1);
    let mut cat = sandbox.command("cat");
    let output = cat.input(bytes.clone()).keep_output(bytes.len(), 0).output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
}

#[test]
fn input_that_no_one_reads_holds_nothing_up_and_is_no_error() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let bytes = vec![b'x'; 20 * MIB];
    for (script, length) in [
        ("exec true", 0),
        // Closed at once, while it runs on.
        ("exec <&-; echo $(echo closed)", 7),
        ("exec head -c 1", 1),
        // It writes more than fits into a pipe, and reads nothing.
        ("exec head -c 30M /dev/zero", 30 * MIB as u64),
        // Someone else keeps it open.
        ("{ sleep 1000 <&3 3<&- & } 3<&0; echo done", 5),
    ] {
        let begin = Instant::now();
        let output = sandbox.shell(script).input(bytes.clone()).output().unwrap();
        assert!(output.status.success(), "{script}: {}", output.status);
        assert_eq!(output.stdout.len() as u64 + output.stdout_dropped, length, "{script}");
        assert!(
            begin.elapsed() < at_most(Duration::from_secs(10)),
            "{script}: {:?}",
            begin.elapsed()
        );
        let status = sandbox.shell(script).input(bytes.clone()).status().unwrap();
        assert!(status.success(), "{script}: {status}");
    }
    // Nor is it where its time is up with the input in the pipe.
    let mut sleep = sandbox.command("sleep");
    sleep.arg("1000").input(bytes).timeout(Duration::from_millis(100));
    assert_eq!(sleep.output().unwrap().status.reason(), EndReason::TimedOut);
}

#[test]
fn the_end_of_the_input_is_told() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    for input in ["", "abc"] {
        let output = sandbox.command("cat").input(input).output().unwrap();
        assert_eq!((output.status.success(), &*output.stdout), (true, input.as_bytes()));
        let job = sandbox.command("cat").input(input).background().unwrap();
        let output = job.wait_timeout(at_most(Duration::from_secs(10))).unwrap().expect("cat ends");
        assert_eq!(output.stdout, input.as_bytes());
    }
    let mut cat = sandbox.command("cat");
    let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"abc").unwrap();
    // By the close alone, not by the wait.
    drop(child.stdin.take());
    let mut read = Vec::new();
    child.stdout.as_mut().unwrap().read_to_end(&mut read).unwrap();
    assert_eq!(read, b"abc");
    assert!(child.wait().unwrap().success());
    let refused = sandbox.command("cat").input("abc").stdin(Stdio::null()).output();
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    let refused = sandbox.command("cat").input("abc").spawn();
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
}

/// Reads from a terminal until it has shown something; all that it has shown.
fn shown(terminal: &mut Terminal, until: &str) -> String {
    let (mut all, mut buffer) = (String::new(), [0; 4096]);
    while !all.contains(until) {
        let count = terminal.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "the end came before {until:?}, after {all:?}");
        all.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    all
}

#[test]
fn a_command_on_a_terminal_has_it_in_every_way() {
    if !needs(&[Need::Program("stty")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut script = sandbox.shell(
        "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all three
         echo controlling > /dev/tty
         read -r pid name state parent group session terminal foreground rest < /proc/self/stat
         test $session = $$ && test $group = $$ && test $foreground = $$ && echo leads
         echo error >&2; test -c $(tty) && exit 7",
    );
    let output = script.terminal(31, 97).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (name, rest) = text.split_once("\r\n").unwrap();
    assert!(name.strip_prefix("/dev/pts/").is_some_and(|n| n.parse::<u32>().is_ok()), "{text}");
    assert_eq!(rest, "31 97\r\nall three\r\ncontrolling\r\nleads\r\nerror\r\n");
    assert_eq!((output.status.code(), output.stderr.len(), output.stdio_open), (Some(7), 0, false));
    // Without one, it has none.
    let output = sandbox.shell("test -t 0 || test -t 1 || tty; : > /dev/tty").output().unwrap();
    assert_eq!((output.stdout, output.status.code()), (b"not a tty\n".to_vec(), Some(1)));
}

#[test]
fn a_terminal_that_is_resized_tells_its_command() {
    if !needs(&[Need::Program("stty")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut script = sandbox.shell(
        "trap 'stty size; kill $!; exit 0' WINCH; sleep 1000 & echo ready; while :; do wait; done",
    );
    let mut child = script.terminal(24, 80).spawn().unwrap();
    assert!(child.stdin.is_none() && child.stdout.is_none() && child.stderr.is_none());
    let terminal = child.terminal.as_mut().unwrap();
    shown(terminal, "ready\r\n");
    terminal.resize(50, 132).unwrap();
    shown(terminal, "50 132\r\n");
    // It ends for the reader when no one has it open any more.
    let mut rest = Vec::new();
    terminal.read_to_end(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn keys_of_a_terminal_do_what_they_do() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut script = sandbox.shell("echo ready; exec sleep 1000");
    let mut child = script.terminal(24, 80).spawn().unwrap();
    let terminal = child.terminal.as_mut().unwrap();
    shown(terminal, "ready\r\n");
    // No look at "^C": the kernel signals before it echoes, and a dead leader's terminal is hung
    // up.
    terminal.write_all(b"\x03").unwrap();
    let status =
        child.wait_timeout(at_most(Duration::from_secs(10))).unwrap().expect("Ctrl-C ends it");
    assert_eq!((status.signal(), status.reason()), (Some(2), EndReason::Signaled));

    let mut child = sandbox.command("cat").terminal(24, 80).spawn().unwrap();
    let terminal = child.terminal.as_mut().unwrap();
    terminal.write_all(b"line\n\x04").unwrap();
    // Once as an echo, once from cat.
    shown(terminal, "line\r\nline\r\n");
    let status =
        child.wait_timeout(at_most(Duration::from_secs(10))).unwrap().expect("Ctrl-D ends it");
    assert!(status.success(), "{status}");
}

#[test]
fn what_was_printed_on_a_terminal_is_never_lost() {
    if !needs(&[Need::Program("printf")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut times = Vec::new();
    for run in 0..200 {
        let mut printf = sandbox.command("/usr/bin/printf");
        printf.args(["%030000d\\n", "7"]).terminal(24, 80);
        let begin = Instant::now();
        let output = match run % 2 {
            0 => printf.output().unwrap(),
            _ => printf.spawn().unwrap().wait_with_output().unwrap(),
        };
        times.push(begin.elapsed());
        assert!(output.status.success(), "{run}: {}", output.status);
        let length = output.stdout.len();
        assert!(output.stdout.ends_with(b"07\r\n") && length == 30_002, "{run}: {length} bytes");
    }
    let time = typical(&mut times);
    eprintln!("30,000 bytes on a terminal: {time:?}");
    // Nor is there a wait for what might come: everyone has closed it.
    assert!(time < Duration::from_millis(15), "{time:?}");
}

#[test]
fn what_a_terminal_excludes_is_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let terminal = || {
        let mut command = sandbox.command("true");
        command.terminal(24, 80);
        command
    };
    let refused = [
        terminal().stdout(Stdio::piped()).output().err(),
        terminal().stdin(Stdio::null()).status().err(),
        terminal().stderr(Stdio::same_as_stdout()).spawn().err(),
        terminal().input("typed").output().err(),
        terminal().background().err(),
    ];
    for (number, error) in refused.into_iter().enumerate() {
        assert!(matches!(error, Some(Error::Invalid { .. })), "{number}: {error:?}");
    }
    assert!(terminal().status().unwrap().success());
}
