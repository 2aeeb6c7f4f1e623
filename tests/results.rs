//! What a program reads of a run is true, whatever ran.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Home, Need, adl, adl_command, needs, stderr, within};
use crate::terminal::init_of;

/// `adl run`, with a file for the result.
fn run(home: &Home, arguments: &[&str]) -> Command {
    let mut adl = adl_command(&home.state());
    adl.current_dir(home.path("")).args(["run", "--result", "result.json"]).args(arguments);
    adl
}

fn read(path: impl AsRef<Path>) -> Value {
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "{text:?}");
    serde_json::from_str(&text).unwrap()
}

/// Runs it; how adl ended, and what is told.
#[track_caller]
fn told(home: &Home, arguments: &[&str]) -> (Output, Value) {
    let output = run(home, arguments).output().unwrap();
    (output, read(home.path("result.json")))
}

#[test]
fn every_end_is_told_with_its_reason() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    // What was told before is not told again.
    fs::write(home.path("result.json"), "{\"reason\":\"exited\"}\n".repeat(100)).unwrap();
    for (arguments, reason, exit_code, signal, adl_exit_code) in [
        (&["--", "sh", "-c", "exit 3"][..], "exited", Some(3), None, 3),
        (&["--", "sh", "-c", "kill -TERM $$"], "signaled", None, Some(15), 128 + 15),
        (&["--timeout", "100ms", "--", "sleep", "1000"], "timed_out", None, Some(9), 124),
        (&["--idle-timeout", "100ms", "--", "sleep", "1000"], "idle", None, Some(9), 124),
        (&["--output-limit", "1k", "--", "yes"], "output_limit", None, Some(9), 128 + 9),
        (&["--", "no-such-program"], "not_started", None, None, 127),
        (&["--", "/etc"], "not_started", None, None, 126),
        (&["-w", "/absent", "--", "true"], "not_started", None, None, 125),
        (&["--image", "/absent", "--", "true"], "error", None, None, 125),
        (&["--env-file", "/absent", "--", "true"], "error", None, None, 125),
        (&["--copy-out", "/tmp:absent/", "--", "true"], "error", None, None, 125),
        (&["--copy-out", "/absent:there", "--", "true"], "exited", Some(0), None, 125),
    ] {
        let (output, told) = told(&home, arguments);
        assert_eq!(output.status.code(), Some(adl_exit_code), "{arguments:?}: {output:?}");
        assert_eq!(told["reason"], reason, "{arguments:?}: {told}");
        assert_eq!(told["exit_code"].as_i64(), exit_code, "{arguments:?}: {told}");
        assert_eq!(told["signal"].as_i64(), signal, "{arguments:?}: {told}");
        assert_eq!(told["adl_exit_code"], adl_exit_code, "{arguments:?}: {told}");
        let (ran, failed) = (!told["wall_time_us"].is_null(), adl_exit_code == 125);
        assert_eq!(ran, !matches!(reason, "not_started" | "error"), "{told}");
        assert_eq!(told["max_resident_bytes"].as_u64().is_some_and(|most| most > 0), ran, "{told}");
        assert_eq!(told["stage"].is_string(), reason == "not_started", "{told}");
        // What is said is what is told.
        let said = stderr(&output);
        let error = told["error"].as_str();
        assert_eq!(error.is_some(), failed || reason == "not_started", "{told}");
        assert!(error.is_none_or(|error| said.contains(error)), "{told}: {said}");
        assert_eq!(told["output_truncated"], reason == "output_limit", "{told}");
        assert_eq!(told["survivors"], false);
    }
    let (_, absent) = told(&home, &["--", "no-such-program"]);
    assert_eq!(
        (&absent["stage"], &absent["errno"]),
        (&"exec".into(), &(nix::errno::Errno::ENOENT as i32).into())
    );
    // Time enough for a start on a machine with much to do.
    let (_, slow) = told(&home, &["--timeout", "2s", "--", "sleep", "1000"]);
    assert!(slow["wall_time_us"].as_u64() >= Some(2_000_000), "{slow}");
}

#[test]
fn more_output_than_may_be_is_told_and_what_came_before_is_passed_on() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let both = "head -c 600 /dev/zero; head -c 600 /dev/zero >&2";
    for (limit, script, reason) in [
        ("2k", both, "exited"),
        ("1k", both, "output_limit"),
        // It ends by itself before that is noticed.
        ("1k", "head -c 2000 /dev/zero", "output_limit"),
        ("0", "echo", "output_limit"),
        ("0", "true", "exited"),
    ] {
        let (output, told) = told(&home, &["--output-limit", limit, "--", "sh", "-c", script]);
        assert_eq!(told["reason"], reason, "{limit} {script}: {told}");
        let code = if reason == "exited" { 0 } else { 128 + 9 };
        assert_eq!(output.status.code(), Some(code), "{limit} {script}: {output:?}");
        assert_eq!(stderr(&output).contains("wrote more than"), code != 0, "{output:?}");
    }
    let (output, _) = told(&home, &["--output-limit", "1k", "--", "sh", "-c", "echo first; yes"]);
    assert!(output.stdout.starts_with(b"first\ny\n"));
    let mut adl = adl_command(&home.state());
    let output = adl.args(["run", "--tty", "--output-limit", "1", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn output_that_is_lost_is_told() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = run(&home, &["--", "echo"]).stdout(full).output().unwrap();
    let told = read(home.path("result.json"));
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!((&told["reason"], &told["adl_exit_code"]), (&"exited".into(), &125.into()));
    assert_eq!(told["output_truncated"], true, "{told}");
    let error = told["error"].as_str().unwrap();
    assert!(error.contains("write to stdout") && stderr(&output).contains(error), "{error}");

    // More than a pipe holds, and less than two of them and one on the way: the command ends, and
    // adl waits for the reader until it is to end, too.
    let script = "head -c 100000 /dev/zero; echo done >&2";
    let mut adl = run(&home, &["--", "sh", "-c", script]);
    let mut adl = adl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = adl.stderr.take().unwrap();
    said.read_exact(&mut [0; 5]).unwrap();
    let pid = i32::try_from(adl.id()).unwrap();
    let init = init_of(pid);
    // It has reaped all, told that, and waits.
    let has_ended = || {
        let read = |what: &str| fs::read_to_string(format!("/proc/{init}/{what}")).unwrap();
        read(&format!("task/{init}/children")).is_empty() && read("stat").contains(") S ")
    };
    assert!(within(Duration::from_secs(20), has_ended));
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(within(Duration::from_secs(20), || adl.try_wait().unwrap().is_some()));
    assert_eq!(adl.wait().unwrap().code(), Some(0));
    let told = read(home.path("result.json"));
    assert_eq!((&told["reason"], &told["output_truncated"]), (&"exited".into(), &true.into()));
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("was not read"), "{rest}");
}

#[test]
fn what_all_have_used_is_told_where_a_cgroup_counts_it() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let hog = "x = b'1' * (300 << 20)";
    let (output, told_of) = told(&home, &["--memory", "64m", "--", "python3", "-c", hog]);
    assert_eq!((&told_of["reason"], output.status.code()), (&"out_of_memory".into(), Some(137)));
    assert!(told_of["oom_kills"].as_u64() >= Some(1), "{told_of}");
    assert!(told_of["memory_peak_bytes"].as_u64() >= Some(32 << 20), "{told_of}");

    let busy = ["--cpu-time", "200ms", "--", "sh", "-c", "while :; do :; done"];
    let (output, told_of) = told(&home, &busy);
    assert_eq!((&told_of["reason"], output.status.code()), (&"cpu_timed_out".into(), Some(124)));
    assert!(told_of["cpu_time_us"].as_u64() >= Some(200_000), "{told_of}");

    let many = "import os, time\nfor _ in range(20):\n  try: os.fork() or time.sleep(1000)\n  \
                except OSError: pass";
    let (_, told_of) = told(&home, &["--pids-limit", "5", "--", "python3", "-c", many]);
    assert_eq!((&told_of["reason"], &told_of["exit_code"]), (&"exited".into(), &0.into()));
    assert!(told_of["processes_refused"].as_u64() >= Some(1), "{told_of}");
    // As of Linux 6.6 there is a peak. Who is moved to a cgroup, and not made in it, comes in beyond
    // the limit, too (the kernel's cgroup-v2.rst, PID).
    let is_full = |peak| (5..=6).contains(&peak);
    assert!(told_of["processes_peak"].as_u64().is_none_or(is_full), "{told_of}");
    // Without any cgroup it is not known.
    let (_, told_of) = told(&home, &["--", "true"]);
    assert!(told_of["processes_refused"].is_null(), "{told_of}");
}

#[test]
fn the_end_of_the_sandbox_and_that_of_adl_are_told() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let start = || {
        let mut adl = run(&home, &["--", "sh", "-c", "echo runs; exec sleep 1000"]);
        let mut adl = adl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        adl.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        adl
    };
    let adl = start();
    let init = init_of(i32::try_from(adl.id()).unwrap());
    kill(Pid::from_raw(init), Signal::SIGKILL).unwrap();
    let output = adl.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let died = read(home.path("result.json"));
    assert_eq!((&died["reason"], &died["adl_exit_code"]), (&"sandbox_died".into(), &125.into()));
    // Of one that was killed nothing is told, and nothing of before.
    let mut adl = start();
    adl.kill().unwrap();
    adl.wait().unwrap();
    assert_eq!(fs::read_to_string(home.path("result.json")).unwrap(), "");
    adl_runtime::collect_garbage(Some(&home.state())).unwrap();
}

#[test]
fn a_descriptor_takes_the_result_and_the_command_has_not_got_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let script = "echo forged >&7; echo forged >/dev/fd/7; ls /proc/self/fd | grep -c '^7$'";
    let with = |flag: &str, how: &str| {
        let mut sh = Command::new("sh");
        sh.current_dir(home.path("")).env("ADL_STATE_DIR", home.state()).args(["-c", how]);
        sh.arg(adl()).args(["run", "--result", flag, "--", "sh", "-c", script]);
        String::from_utf8(sh.output().unwrap().stdout).unwrap()
    };
    fs::write(home.path("log"), "before\n").unwrap();
    assert_eq!(with("/dev/fd/7", "\"$0\" \"$@\" 7>>log"), "0\n");
    let text = fs::read_to_string(home.path("log")).unwrap();
    let (before, line) = text.split_once('\n').unwrap();
    let result: Value = serde_json::from_str(line).unwrap();
    assert_eq!((before, &result["exit_code"]), ("before", &1.into()), "{text}");
    let text = with("/proc/self/fd/7", "{ \"$0\" \"$@\" 7>&1 >lines; } | cat");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["reason"], "exited");
    assert_eq!(fs::read_to_string(home.path("lines")).unwrap(), "0\n");

    // stdout is the command's, but who says so has it behind that.
    let mut adl = adl_command(&home.state());
    let output = adl.args(["run", "--result", "/dev/stdout", "--", "echo", "first"]).output();
    let stdout = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(stdout.starts_with("first\n{"), "{stdout}");
    fs::write(home.path("readable"), "").unwrap();
    for (flag, about) in [
        ("-", "/dev/fd/3"),
        ("", "name of a file"),
        ("/dev/fd/99", "99>FILE"),
        ("/dev/stdin", "99>FILE"),
        ("/absent/x", "No such"),
        ("/tmp", "directory"),
    ] {
        let mut adl = adl_command(&home.state());
        adl.stdin(File::open(home.path("readable")).unwrap());
        let output = adl.args(["run", "--result", flag, "--", "echo", "ran"]).output().unwrap();
        if flag == "/dev/stdin" {
            // A file as any other.
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            continue;
        }
        assert_eq!((output.status.code(), &*output.stdout), (Some(125), &b""[..]), "{flag}");
        assert!(stderr(&output).contains(about), "{flag}: {output:?}");
    }
}

#[test]
fn the_result_is_not_where_the_output_goes() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    fs::write(home.path("out"), "before\n").unwrap();
    symlink("out", home.path("alias")).unwrap();
    fs::hard_link(home.path("out"), home.path("second")).unwrap();
    let forge = "for i in $(seq 100); do echo '{\"reason\":\"exited\",\"exit_code\":0}'; done
        exit 1";
    let run = |result: &str, redirection: &str| {
        let mut sh = Command::new("sh");
        sh.current_dir(home.path("")).env("ADL_STATE_DIR", home.state());
        sh.args(["-c", &format!("\"$0\" \"$@\" {redirection}")]).arg(adl());
        sh.args(["run", "--result", result, "--", "sh", "-c", forge]);
        sh.output().unwrap().status.code()
    };
    for result in ["out", "alias", "second"] {
        for redirection in [">>out", "2>>out"] {
            assert_eq!(run(result, redirection), Some(125), "{result} {redirection}");
        }
        let text = fs::read_to_string(home.path("out")).unwrap();
        assert!(text.starts_with("before\n") && !text.contains("exit_code"), "{text}");
    }
    // The control: beside it, each is what it should be.
    assert_eq!(run("result.json", ">out"), Some(1));
    assert_eq!(read(home.path("result.json"))["exit_code"], 1);
    assert_eq!(fs::read_to_string(home.path("out")).unwrap().lines().count(), 100);
}

#[test]
fn no_command_may_write_where_the_result_is() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let at = |name: &str| home.path(name);
    fs::create_dir_all(at("shared/below")).unwrap();
    fs::create_dir(at("out")).unwrap();
    fs::write(at("precious"), "untouched").unwrap();
    fs::write(at("one"), "").unwrap();
    symlink(at("precious"), at("shared/link")).unwrap();
    symlink("shared", at("alias")).unwrap();
    let forge = "echo '{\"reason\":\"exited\",\"exit_code\":0}' > /w/result.json; exit 1";
    let run = |result: &str, options: &[&str]| {
        let mut adl = adl_command(&home.state());
        adl.current_dir(at("")).args(["run", "--result", result]).args(options);
        adl.args(["--", "sh", "-c", forge]).output().unwrap()
    };
    let volume = ["-v", "./shared:/w"];
    for (result, options) in [
        ("shared/result.json", &volume[..]),
        ("shared/below/result.json", &volume),
        ("alias/result.json", &volume),
        ("shared/link", &volume),
        ("one", &["-v", "./one:/w/result.json"]),
        ("out/result.json", &["--copy-out", "/w:out"]),
        ("result.json", &["--copy-out", "/w/result.json:result.json"]),
        ("result.json", &["--copy-out", "/w/result.json:./"]),
        ("shared/result.json", &["--beneath", "shared"]),
    ] {
        let output = run(result, options);
        assert_eq!(output.status.code(), Some(125), "{result} {options:?}: {output:?}");
        assert!(stderr(&output).contains("--result"), "{output:?}");
        assert!(stderr(&output).contains("elsewhere") || stderr(&output).contains("another"));
    }
    assert_eq!(fs::read_to_string(at("precious")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(at("shared")).unwrap().count(), 2);
    // By a descriptor, too.
    let mut sh = Command::new("sh");
    sh.current_dir(at("")).env("ADL_STATE_DIR", home.state());
    sh.args(["-c", "\"$0\" run --result /dev/fd/7 -v ./shared:/w -- true 7>shared/x"]).arg(adl());
    assert_eq!(sh.status().unwrap().code(), Some(125));
    // The control: what only looks like that, and what the command could do with it.
    for (result, options) in [
        ("result.json", &volume[..]),
        ("shared/below/../../result.json", &[]),
        ("shared/result.json", &["-v", "./shared:/w:cow"]),
    ] {
        let output = run(result, options);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{result} {options:?}: {output:?}");
        let told = read(at(result));
        assert_ne!(told["exit_code"], 0, "{result}: {told}");
    }
    fs::remove_file(at("shared/result.json")).unwrap();
    run("result.json", &volume);
    assert_eq!(read(at("shared/result.json"))["exit_code"], 0);
}
