//! The `adl` program does what its help says.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Home, Need, adl, adl_command, at_most, needs, stderr, succeeds, within};
use crate::terminal::init_of;
use crate::{census, images};

#[test]
fn the_exit_status_is_that_of_the_command() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for (command, code) in [
        (&["true"][..], 0),
        (&["false"], 1),
        (&["sh", "-c", "exit 42"], 42),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["sh", "-c", "kill -SEGV $$"], 128 + 11),
        (&["no-such-program"], 127),
        (&["/etc"], 126),
    ] {
        let output = adl_command(&home.state()).args(["run", "--"]).args(command).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{command:?}: {}", stderr(&output));
    }
}

#[test]
fn an_error_of_its_own_is_told_and_exits_with_125() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for (arguments, about) in [
        (&["run"][..], "no command"),
        (&["run", "--nonsense", "--", "true"], "--nonsense"),
        (&["run", "--image", "/no/such/image", "true"], "/no/such/image"),
        (&["run", "--name", "a/b", "--", "true"], "a/b"),
        (&["run", "--network", "moon", "--", "true"], "--network"),
        (&["run", "--cap-add", "flying", "--", "true"], "flying"),
        (&["run", "--user", "someone", "--", "true"], "someone"),
        (&["run", "--workdir", "/absent", "--", "true"], "working directory"),
        (&["run", "-t", "--", "true"], "the input device is not a terminal"),
        (&["run", "-it", "--", "true"], "the input device is not a terminal"),
        (&["shell", "-t"], "the input device is not a terminal"),
        (&["run", "--timeout", "soon", "--", "true"], "'soon' for '--timeout"),
        (&["run", "--timeout", "0", "--", "true"], "'0' for '--timeout"),
        (&["run", "--env-file", "/no/such/file", "--", "true"], "/no/such/file"),
        (&["dance"], "dance"),
    ] {
        let output = adl_command(&home.state()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        let stderr = stderr(&output);
        assert!(stderr.starts_with("adl: ") && stderr.contains(about), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_state_directory_is_where_it_was_said_to_be() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let run = |variable: Option<&str>, arguments: &[&str]| {
        let mut adl = adl_command(&home.state());
        adl.env_remove("ADL_STATE_DIR").current_dir(home.path("")).args(arguments);
        adl.envs(variable.map(|value| ("ADL_STATE_DIR", value))).output().unwrap()
    };
    let absolute = home.path("absolute");
    let absolute = absolute.to_str().unwrap();
    for (variable, option, place) in [
        (Some("by-variable"), None, "by-variable"),
        (Some("./sub/by-variable"), None, "sub/by-variable"),
        (None, Some("by-option"), "by-option"),
        (Some("by-variable"), Some(absolute), "absolute"),
        (Some(""), Some("for-empty"), "for-empty"),
    ] {
        let option = option.map(|option| ["--state-dir", option]);
        let options = option.as_ref().map(|option| &option[..]).unwrap_or_default();
        let keep = ["run", "--snapshot", "one", "--", "true"];
        // Before the command, or among its options.
        for arguments in [[options, &keep[..]].concat(), [&keep[..1], options, &keep[1..]].concat()]
        {
            let output = run(variable, &arguments);
            assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
            assert!(home.path(place).join("snapshots/one").is_dir(), "{place}");
            let listed = run(variable, &[&["snapshot", "ls", "-q"], options].concat());
            assert_eq!(listed.stdout, b"one\n", "{listed:?}");
            let removed = run(variable, &[&["snapshot"], options, &["rm", "one"]].concat());
            assert!(removed.status.success(), "{removed:?}");
        }
        for command in ["gc", "doctor"] {
            let output = run(variable, &[&[command], options].concat());
            assert!(output.status.success(), "{output:?}");
        }
    }
    // What would be nowhere is not elsewhere.
    for (variable, options) in [(Some(""), &[][..]), (None, &["--state-dir", ""])] {
        let output = run(variable, &[&["run"], options, &["--", "true"]].concat());
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let told = stderr(&output);
        let named = ["its name is empty", "a value is required for '--state-dir"];
        assert!(named.iter().any(|words| told.contains(words)), "{told}");
    }
}

#[test]
fn without_a_command_there_is_help_and_a_collection_of_nothing_is_told() {
    let home = Home::new();
    let help = succeeds(adl_command(&home.state()).arg("--help"));
    assert_eq!(succeeds(&mut adl_command(&home.state())), help);
    for told in ["--state-dir", "ADL_STATE_DIR", "/var/lib/adl", ".local/state/adl", "125"] {
        assert!(help.contains(told), "{told}: {help}");
    }
    let output = adl_command(&home.state()).arg("gc").output().unwrap();
    assert_eq!((&*output.stdout, output.status.code()), (&b""[..], Some(0)));
    assert_eq!(stderr(&output), "adl: nothing was left behind\n");
}

/// The command lines that help shows.
fn examples(help: &str) -> Vec<String> {
    let mut examples: Vec<String> = Vec::new();
    for line in help.split("Examples:\n").nth(1).unwrap().lines() {
        match line.strip_prefix("    ") {
            Some(line) if line.starts_with("adl ") => examples.push(line.to_owned()),
            Some(line) => *examples.last_mut().unwrap() += &format!("\n{line}"),
            None => {}
        }
    }
    examples
}

#[test]
fn the_examples_of_help_run() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    fs::write(home.path("input.txt"), "b\na\n").unwrap();
    let examples = examples(&succeeds(adl_command(&home.state()).args(["run", "--help"])));
    assert!(examples.len() >= 8, "{examples:?}");
    for example in examples {
        // That is for who has a terminal.
        if example.contains("-it") || example.contains("--memory") && !needs(&[Need::Cgroups]) {
            continue;
        }
        let mut sh = std::process::Command::new("sh");
        sh.args(["-ec", &format!("adl() {{ \"$0\" \"$@\"; }}\n{example}")]).arg(adl());
        sh.env("ADL_STATE_DIR", home.state()).current_dir(home.path(""));
        let printed = succeeds(sh.stdin(Stdio::null()));
        for (of, expected) in [
            ("echo", "hello\n"),
            (":ro", "input.txt\n"),
            ("result", "a\nb\n"),
            ("ls /root", "ready\n"),
        ] {
            assert!(!example.contains(of) || printed.contains(expected), "{example}: {printed}");
        }
    }
    assert_eq!(fs::read_to_string(home.path("sorted")).unwrap(), "a\nb\n");
    assert!(fs::read_to_string(home.path("result.json")).unwrap().contains("\"exited\""));
    succeeds(adl_command(&home.state()).args(["snapshot", "rm", "--all"]));
}

#[test]
fn a_program_that_the_filter_ends_is_told_what_it_may_be() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let run = |signal: &str| {
        let script = format!("kill -{signal} $$");
        adl_command(&home.state()).args(["run", "--", "sh", "-c", &script]).output().unwrap()
    };
    let output = run("SYS");
    assert_eq!(output.status.code(), Some(128 + 31));
    assert!(stderr(&output).contains("32-bit"), "{}", stderr(&output));
    assert_eq!(stderr(&run("TERM")), "");
}

#[test]
fn options_reach_the_command() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let run = |arguments: &[&str]| {
        let mut adl = adl_command(&home.state());
        succeeds(adl.env("FROM_HERE", "taken").arg("run").args(arguments))
    };
    let environment = run(&["-e", "A=b=c", "--env", "FROM_HERE", "-e", "ABSENT", "--", "env"]);
    assert!(environment.contains("\nA=b=c\nFROM_HERE=taken\n"), "{environment}");
    assert!(!environment.contains("ABSENT"));
    assert_eq!(run(&["-w", "/tmp", "--", "pwd"]), "/tmp\n");
    assert_eq!(run(&["--hostname", "some.host", "--", "uname", "-n"]), "some.host\n");
    assert_eq!(run(&["--name", "known", "--", "uname", "-n"]), "known\n");
    assert_eq!(run(&["--upper", "memory:4m", "--", "stat", "-fc%b", "/dev/shm"]).trim(), "16384");
    assert_eq!(
        run(&["--cap-drop", "all", "--", "grep", "CapBnd", "/proc/self/status"]),
        "CapBnd:\t0000000000000000\n"
    );
    // What follows the command is its own.
    assert_eq!(run(&["--", "echo", "--name", "x", "-e"]), "--name x -e\n");
    if nix::unistd::geteuid().is_root() {
        let ids = ["--", "sh", "-c", "id -u; id -g; id -G; echo $HOME"];
        let of = |user| run(&[&["-u", user], &ids[..]].concat());
        assert_eq!(of("12:34"), "12\n34\n34\n/\n");
        assert_eq!(of("nobody"), "65534\n65534\n65534\n/nonexistent\n");
        assert_eq!(of("nobody:root"), "65534\n0\n0\n/nonexistent\n");
    }
    let image = home.path("image");
    images::small(&image);
    assert_eq!(run(&["--image", image.to_str().unwrap(), "ls", "/"]).lines().next(), Some("bin"));
}

#[test]
fn the_three_streams_are_those_of_the_caller() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let mut adl = adl_command(&home.state());
    adl.args(["run", "--", "sh", "-c", "cat; echo err >&2"]);
    adl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut adl = adl.spawn().unwrap();
    adl.stdin.take().unwrap().write_all(b"through\0 and through").unwrap();
    let output = adl.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"through\0 and through");
    assert_eq!(output.stderr, b"err\n");
}

/// What no option has to say.
const OF_EVERY_COMMAND: [&str; 6] = ["PATH=", "LANG=", "HOME=", "USER=", "LOGNAME=", "SHELL="];

#[test]
fn variables_come_from_files_too_and_errors_name_the_line() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let (first, second, wrong) = (home.path("first"), home.path("second"), home.path("wrong"));
    fs::write(&first, "# a comment\n\nA=1\nB=\" quoted \" \nFROM_HERE\nABSENT\nC=x=y\n").unwrap();
    fs::write(&second, "A=2\nC=0").unwrap();
    fs::write(&wrong, "A=1\n#\nexport B=2\n").unwrap();
    let adl = |arguments: &[&str]| {
        let mut adl = adl_command(&home.state());
        adl.env("FROM_HERE", "taken").arg("run").args(["-e", "C=from an option"]).args(arguments);
        adl
    };
    let [first, second, wrong] = [&first, &second, &wrong].map(|path| path.to_str().unwrap());
    let environment = succeeds(&mut adl(&["--env-file", first, "--env-file", second, "--", "env"]));
    let set: Vec<&str> = environment
        .lines()
        .filter(|line| !OF_EVERY_COMMAND.iter().any(|name| line.starts_with(name)))
        .collect();
    assert_eq!(set, ["B=\" quoted \" ", "FROM_HERE=taken", "A=2", "C=from an option"]);

    let output = adl(&["--env-file", wrong, "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let told = stderr(&output);
    assert!(told.contains(&format!("{wrong}: line 3: ")), "{told}");
}

#[test]
fn a_command_whose_time_is_up_ends_with_124_and_what_it_wrote_is_there() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for (timeout, length) in [("2", 2000), ("1.5", 1500), ("1500ms", 1500)] {
        let mut adl = adl_command(&home.state());
        adl.args(["run", "--timeout", timeout, "--", "sh", "-c"]);
        adl.arg("trap '' TERM; echo part; setsid sleep 1000 & sleep 1000");
        let begin = Instant::now();
        let output = adl.output().unwrap();
        let took = begin.elapsed();
        assert_eq!(output.status.code(), Some(124), "{}", stderr(&output));
        assert_eq!(output.stdout, b"part\n");
        let told = stderr(&output);
        assert!(told.starts_with("adl: ") && told.lines().count() == 1, "{told}");
        let length = Duration::from_millis(length);
        assert!(
            took >= length && took < length + at_most(Duration::from_secs(5)),
            "{timeout}: {took:?}"
        );
    }
    // One that ends before is as without.
    let mut adl = adl_command(&home.state());
    let output = adl.args(["run", "--timeout", "1h", "--", "sh", "-c", "exit 3"]).output().unwrap();
    assert_eq!((output.status.code(), &*stderr(&output)), (Some(3), ""));
}

#[test]
fn a_sandbox_that_dies_is_an_error_of_adls() {
    if !needs(&[crate::harness::Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let mut adl = adl_command(&home.state());
    adl.args(["run", "-i", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    let mut adl = adl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(adl.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let init = init_of(adl.id().try_into().unwrap());
    kill(Pid::from_raw(init), Signal::SIGKILL).unwrap();
    let output = adl.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(stderr(&output), "adl: the sandbox has died, or was reset meanwhile\n");
}

#[test]
fn a_shell_is_the_best_there_is_and_reads_commands_from_stdin() {
    if !needs(&[crate::harness::Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let image = home.path("image");
    images::small(&image);
    let shell = |arguments: &[&str], script: &str| {
        let mut adl = adl_command(&home.state());
        adl.arg("shell").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut adl = adl.spawn().unwrap();
        adl.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = adl.wait_with_output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    assert_eq!(shell(&[], "echo $0 $PWD\nexit 3\n"), ("/bin/bash /\n".to_owned(), Some(3)));
    assert_eq!(
        shell(&["-e", "A=b", "-w", "/tmp", "--", "-s", "c"], "echo $A $PWD $1"),
        ("b /tmp c\n".to_owned(), Some(0))
    );
    let image = image.to_str().unwrap();
    assert_eq!(shell(&["--image", image], "echo $0"), ("/bin/sh\n".to_owned(), Some(0)));
    assert_eq!(shell(&["--", "-c", "exit 4"], ""), (String::new(), Some(4)));
}

/// Starts `adl run` with a script that prints a line when it is ready.
fn start(home: &Home, script: &str) -> std::process::Child {
    let mut adl = adl_command(&home.state());
    let mut adl =
        adl.args(["run", "--", "bash", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(adl.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    adl
}

#[test]
fn signals_are_passed_on_and_the_sandbox_is_taken_down_in_order() {
    if !needs(&[crate::harness::Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    for (signal, script, code) in [
        (Signal::SIGTERM, "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done", 5),
        (Signal::SIGINT, "trap 'exit 6' INT; echo ready; while :; do sleep 0.01; done", 6),
        (Signal::SIGTERM, "echo ready; exec sleep 1000", 128 + 15),
        (Signal::SIGHUP, "echo ready; exec sleep 1000", 128 + 1),
    ] {
        let mut adl = start(&home, script);
        kill(Pid::from_raw(adl.id().try_into().unwrap()), signal).unwrap();
        let status = adl.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{signal} {script}");
        assert_eq!(home.left(), [""; 0]);
    }
}

#[test]
fn adl_that_is_killed_leaves_no_process_and_gc_removes_the_rest() {
    if !needs(&[crate::harness::Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let mut adl = start(&home, "sleep 1000 & echo ready; sleep 1000");
    let processes = census::tree(adl.id().try_into().unwrap());
    assert!(processes.len() >= 4, "{processes:?}");
    adl.kill().unwrap();
    assert_eq!(adl.wait().unwrap().signal(), Some(9));
    let gone = || processes.iter().all(|process| !process.exists());
    assert!(within(Duration::from_secs(2), gone));
    let left = home.left();
    assert_eq!(left.len(), 1);
    let removed = succeeds(adl_command(&home.state()).arg("gc"));
    assert_eq!(removed.trim(), left[0].to_str().unwrap());
    assert_eq!(home.left(), [""; 0]);
    assert_eq!(succeeds(adl_command(&home.state()).arg("gc")), "");
}

#[test]
fn to_ask_for_help_or_to_mistype_does_nothing() {
    if !needs(&[crate::harness::Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let mut adl = start(&home, "echo ready; sleep 1000");
    adl.kill().unwrap();
    adl.wait().unwrap();
    // What `adl gc` would remove, and any sandbox would by and by.
    let left = home.left();
    assert_eq!(left.len(), 1);
    for command in crate::arguments::COMMANDS {
        let helps = [[command, &["--help"]].concat(), [command, &["-h"]].concat()];
        let topic = [&["help"], command].concat();
        let first = succeeds(adl_command(&home.state()).args(&helps[0]));
        for help in helps.iter().chain([&topic]) {
            assert_eq!(succeeds(adl_command(&home.state()).args(help)), first, "{help:?}");
        }
        // With what may not be left out before it.
        let one = match command {
            ["snapshot", "changes" | "export" | "rm"] => &["one"][..],
            ["completions"] => &["bash"],
            _ => &[],
        };
        for nonsense in [&["--nonsense"][..], &["-Q"], &["nonsense", "and", "more"]] {
            // To these that is a program, an argument of one, or a name.
            let takes_any = matches!(command, ["run" | "shell"] | ["snapshot", "rm"]);
            if takes_any && nonsense[0] == "nonsense" {
                continue;
            }
            let arguments = [command, one, nonsense].concat();
            let output = adl_command(&home.state()).args(&arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(125), "{arguments:?}: {}", stderr(&output));
            assert!(output.stdout.is_empty(), "{arguments:?}");
        }
    }
    assert_eq!(home.left(), left);
    succeeds(adl_command(&home.state()).arg("gc"));
}

#[test]
fn help_is_given_for_the_asking() {
    let home = Home::new();
    for arguments in [
        &["--help"][..],
        &["help"],
        &["run", "--help"],
        &["run", "-h"],
        &["shell", "--help"],
        &["bench", "--help"],
    ] {
        let help = succeeds(adl_command(&home.state()).args(arguments));
        assert!(help.contains("Usage: adl"), "{arguments:?}: {help}");
    }
    let version = succeeds(adl_command(&home.state()).arg("--version"));
    assert_eq!(version, format!("adl {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn doctor_tells_what_the_machine_can_do() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let report = succeeds(adl_command(&home.state()).arg("doctor")).to_lowercase();
    for subject in ["kernel", "user namespace", "overlay", "cgroup", "seccomp", "good     ports"] {
        assert!(report.contains(subject), "{subject}: {report}");
    }
    if needs(&[Need::Cgroups]) {
        assert!(report.contains("memory (1)") || report.contains("memory (2)"), "{report}");
    }
}

#[test]
fn bench_measures_each_row_beside_the_hosts_own() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let few = ["bench", "all", "--json", "--rounds", "5", "--resets", "1", "--copies", "1"];
    let few = [&few[..], &["--snapshots", "1", "--large", "4m", "--pool", "4"]].concat();
    let few = [&few[..], &["--alive", "20", "--flat", "1", "--throughput", "5"]].concat();
    let json = succeeds(adl_command(&home.state()).args(few));
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    let of_files = ["write_5b", "read_5b", "list_100k", "copy_in_1g", "copy_out_1g"];
    let others =
        ["create", "exec_argv", "exec_shell", "exec_probe", "reset_1", "reset_100k", "delete"];
    let of_snapshots = ["snapshot_1m", "snapshot_large", "fork_1m", "fork_large"];
    let of_pools = ["acquire", "reset_plain", "reset_spare", "cycle_64", "pool_cycle_64"];
    let of_many = ["alive_create", "alive_job", "alive_delete", "alive_create_16", "throughput_64"];
    let all = others.into_iter().chain(of_files).chain(of_snapshots).chain(of_pools);
    let flat = ["flat_create", "flat_create_of_blank", "flat_run_adl", "flat_spawn"];
    let is_root = needs(&[Need::Root]);
    for row in all.chain(of_many).chain(flat.into_iter().filter(|_| is_root)) {
        let value =
            |key: &str| rows[row][key].as_f64().unwrap_or_else(|| panic!("{row} {key}: {json}"));
        assert!(value("min_us") > 0.0 && value("n") >= 1.0);
        assert!(value("min_us") <= value("p50_us") && value("p50_us") <= value("p99_us"), "{json}");
        if row.starts_with("exec") {
            assert!(value("host_spawn_p50_us") > 0.0);
        }
        if row.contains("cycle") || row.starts_with("throughput") {
            assert!(value("per_second") > 0.0);
        }
        if row.starts_with("flat") {
            assert!(value("mounts_ratio") > 0.0 && value("descriptors_ratio") > 0.0, "{json}");
            assert!(value("processes_ratio") > 0.0, "{json}");
        }
        if row == "alive_create" {
            assert!(value("descriptors_each") <= 6.0, "{json}");
            assert_eq!(rows[row]["steps_p50_us"][0][0], 20, "{json}");
        }
    }
}

#[test]
fn bench_measures_what_takes_long_only_where_it_is_named() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let few = ["bench", "--json", "--rounds", "2", "--jobs", "1", "--pool", "2"];
    let rows = |long: &[&str]| -> serde_json::Value {
        let json = succeeds(adl_command(&home.state()).args(few).args(long));
        serde_json::from_str(&json).unwrap()
    };
    let short = rows(&[]);
    assert!(short["create"]["n"] == 2 && short["acquire"]["n"] == 2, "{short}");
    let of_long = ["cycle_1", "reset_100k", "snapshot_1m", "list_100k", "copy_in_1g", "run_adl"];
    let of_many = ["alive_create", "flat_create", "throughput_1"];
    for row in of_long.into_iter().chain(of_many) {
        assert!(short[row].is_null(), "{row}: {short}");
    }
    let long = rows(&["snapshots", "--snapshots", "1", "--large", "2m"]);
    assert!(long["snapshot_large"]["n"] == 1 && long["cycle_1"].is_null(), "{long}");
}

#[test]
fn bench_compares_with_what_is_there_and_names_what_is_not() {
    if !needs(&[Need::Root, Need::Program("bwrap")]) {
        return;
    }
    let home = Home::new();
    let few = ["bench", "--json", "--rounds", "3", "--jobs", "1", "--pool", "0", "--compare"];
    // Of the others only bubblewrap is found.
    let programs = home.path("programs");
    fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink("/usr/bin/bwrap", programs.join("bwrap")).unwrap();
    let mut adl = adl_command(&home.state());
    let output = adl.args(few).env("PATH", &programs).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for row in ["run_adl", "run_bwrap"] {
        assert_eq!(rows[row]["n"], 3, "{rows}");
        assert!(rows[row]["host_spawn_p50_us"].as_f64().unwrap() > 0.0, "{rows}");
    }
    let told = stderr(&output);
    // Nor is a compiler.
    for row in ["run_runc", "run_crun", "seed_*", "floor_*"] {
        assert!(rows[row].is_null(), "{rows}");
        let named =
            told.lines().any(|line| line.starts_with("adl: not measured") && line.contains(row));
        assert!(named, "{row}: {told}");
    }
    if needs(&[Need::Program("gcc")]) {
        let rows: serde_json::Value =
            serde_json::from_str(&succeeds(adl_command(&home.state()).args(few))).unwrap();
        for row in ["floor_create", "floor_exec_argv", "floor_delete"] {
            assert_eq!(rows[row]["n"], 3, "{rows}");
            assert!(rows[row]["min_us"].as_f64().unwrap() > 0.0, "{rows}");
        }
    }
}

#[test]
fn bench_leaves_out_and_names_what_the_sandbox_has_no_room_for() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let little = ["bench", "all", "--json", "--rounds", "1", "--resets", "1", "--copies", "1"];
    let little = [&little[..], &["--pool", "2", "--upper", "memory:8m", "--alive", "2"]].concat();
    let little = [&little[..], &["--flat", "0", "--throughput", "0"]].concat();
    let output = adl_command(&home.state()).args(little).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(rows["create"]["n"] == 1 && rows["write_5b"]["n"] == 5, "{rows}");
    let told = stderr(&output);
    for row in ["reset_100k", "snapshot_1m", "fork_large", "list_100k", "copy_in_1g"] {
        assert!(rows[row].is_null(), "{rows}");
        assert!(told.contains(row), "{row}: {told}");
    }
    assert!(told.lines().all(|line| line.starts_with("adl: not measured: ")), "{told}");
}
