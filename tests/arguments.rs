//! The command line is read as its help says, which completions and manual pages repeat.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use crate::harness::{Home, Need, adl, adl_command, needs, stderr, succeeds};
use crate::images;

/// The commands of adl that have help.
pub(crate) const COMMANDS: [&[&str]; 13] = [
    &[],
    &["run"],
    &["shell"],
    &["snapshot"],
    &["snapshot", "ls"],
    &["snapshot", "changes"],
    &["snapshot", "export"],
    &["snapshot", "rm"],
    &["bench"],
    &["doctor"],
    &["gc"],
    &["completions"],
    &["man"],
];

/// Runs `adl run` with arguments; what the command wrote to stdout.
#[track_caller]
fn run(home: &Home, arguments: &[&str]) -> String {
    succeeds(adl_command(&home.state()).arg("run").args(arguments))
}

/// The long options in a text.
fn options(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let mut options: Vec<_> =
        words.filter(|word| word.starts_with("--") && *word != "--").collect();
    options.sort_unstable();
    options.dedup();
    options
}

#[test]
fn what_follows_the_command_is_its_own_and_may_be_any_bytes() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let own: [&[u8]; 9] =
        [b"-h", b"--name", b"--", b"-", b"", b"--", b"--nonsense", b"\xff\xfe=\x80", b"run"];
    let expected: Vec<u8> = own.iter().flat_map(|it| [b"[", *it, b"]"].concat()).collect();
    for before in [
        &["run", "--"][..],
        &["run", "host"],
        &["run", "host", "--"],
        &["run", "--image", "host"],
        &["run", "--image", "host", "--"],
        &["run", "--timeout", "1m", "-e", "A=b", "--"],
    ] {
        let mut adl = adl_command(&home.state());
        adl.args(before).args(["printf", "[%s]"]).args(own.map(OsStr::from_bytes));
        let output = adl.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(output.stdout, expected, "{before:?}");
    }
    // What is adl's elsewhere is a program here, and there is none.
    for program in [&["host", "help"][..], &["--", "gc"], &["--", "--help"], &["--", "--"]] {
        let output = adl_command(&home.state()).arg("run").args(program).output().unwrap();
        assert_eq!(output.status.code(), Some(127), "{program:?}: {}", stderr(&output));
    }
}

#[test]
fn capabilities_are_added_and_dropped_as_docker_does() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let bounding = |options: &[&str]| {
        let bounding =
            run(&home, &[options, &["--", "grep", "CapBnd", "/proc/self/status"]].concat());
        u64::from_str_radix(bounding.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    // The order does not matter.
    assert_eq!(bounding(&["--cap-drop", "all", "--cap-add", "chown"]), 1);
    assert_eq!(bounding(&["--cap-add", "CAP_CHOWN", "--cap-drop", "ALL"]), 1);
    assert_eq!(bounding(&["--cap-drop=all", "--cap-add=Chown,cap_kill"]), 1 | 1 << 5);
    let default = bounding(&[]);
    assert_eq!(bounding(&["--cap-drop=kill"]), default & !(1 << 5));
    assert_eq!(bounding(&["--cap-drop=kill", "--cap-add=kill"]), default);
    let all = bounding(&["--cap-add=ALL"]);
    assert_eq!(
        bounding(&["--cap-drop=CAP_SYS_ADMIN,chown", "--cap-add=all"]),
        all & !(1 << 21 | 1)
    );
}

#[test]
fn options_count_in_their_order_and_the_last_one_where_there_can_be_one() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    // One place by two names: what is mounted later is above.
    let (image, source) = (home.path("image"), home.path("source"));
    images::small(&image);
    fs::create_dir(image.join("place")).unwrap();
    std::os::unix::fs::symlink("place", image.join("alias")).unwrap();
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "").unwrap();
    let (image, volume) = (image.to_str().unwrap(), format!("{}:/place:ro", source.display()));
    for (options, expected) in [
        (["--tmpfs", "/alias", "-v", &volume], "file\n"),
        (["-v", &volume, "--tmpfs", "/alias"], ""),
    ] {
        let list = ["--image", image, "ls", "/place"];
        assert_eq!(run(&home, &[&options[..], &list].concat()), expected, "{options:?}");
    }

    let absent = "/no/such/image";
    for (options, command, expected) in [
        (&["-w", "/etc", "--workdir", "/tmp"][..], "pwd", "/tmp\n"),
        (&["--hostname", "one", "--hostname=two"], "uname -n", "two\n"),
        (&["--image", absent, "--image", "host"], "echo", "\n"),
        (&["--timeout", "1ms", "--timeout", "1h"], "echo", "\n"),
        (&["--upper", "memory:1m", "--upper", "disk"], "echo", "\n"),
        (&["-e", "A=1", "--env", "A=2", "-eA=3"], "echo $A", "3\n"),
        (&["-i", "-i", "--read-only", "--read-only"], "echo", "\n"),
    ] {
        assert_eq!(
            run(&home, &[options, &["--", "sh", "-c", command]].concat()),
            expected,
            "{options:?}"
        );
    }
}

#[test]
fn a_value_is_what_comes_next_whatever_it_begins_with() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for options in [
        &["-e", "-A=b"][..],
        &["-e-A=b"],
        &["-e=-A=b"],
        &["-ie", "-A=b"],
        &["--env", "-A=b"],
        &["--env=-A=b"],
    ] {
        let environment = run(&home, &[options, &["--", "env"]].concat());
        assert!(environment.contains("\n-A=b\n"), "{options:?}: {environment}");
    }
    let (from, bytes) = (home.path("-file"), home.path(OsStr::from_bytes(b"\xff")));
    fs::write(&from, "copied\n").unwrap();
    fs::write(&bytes, "B=c\n").unwrap();
    let mut adl = adl_command(&home.state());
    adl.current_dir(home.path("")).args(["run", "--copy-in", "-file:/tmp/to", "--env-file"]);
    adl.arg(&bytes).args(["--", "sh", "-c", "cat /tmp/to; echo $B"]);
    assert_eq!(succeeds(&mut adl), "copied\nc\n");
}

#[test]
fn what_is_misspelt_is_told_with_what_is_like_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for (arguments, told) in [
        (&["run", "--tiemout", "3", "--", "true"][..], "a similar argument exists: '--timeout'"),
        (&["shell", "--workdri", "/"], "a similar argument exists: '--workdir'"),
        (&["bench", "--round", "1"], "a similar argument exists: '--rounds'"),
        (&["run", "--network", "hots", "--", "true"], "a similar value exists: 'host'"),
        (&["dcotor"], "a similar subcommand exists: 'doctor'"),
        (&["rn"], "a similar subcommand exists: 'run'"),
        (&["cg"], "a similar subcommand exists: 'gc'"),
        (&["snapshot", "l"], "a similar subcommand exists: 'ls'"),
        (&["snapshot", "chnages"], "a similar subcommand exists: 'changes'"),
        (&["run", "-x", "--", "true"], "unexpected argument '-x' found"),
        (&["run", "--cpu-weight", "x", "--", "true"], "takes a whole number"),
        (&["bench", "--rounds", "0"], "at least 1"),
        (&["run", "--memory", "0", "--", "true"], "takes a size, as 512m"),
        (&["snapshot"], "requires a subcommand"),
        (&["snapshot", "rm"], "<NAME>"),
        (&["completions", "tcsh"], "bash, fish, zsh"),
        (&["man", "dance"], "\"dance\""),
        (&["gc", "all"], "'all'"),
    ] {
        let output = adl_command(&home.state()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        let stderr = stderr(&output);
        assert!(stderr.starts_with("adl: ") && stderr.contains(told), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("error: ") && !stderr.contains('\x1b'), "{arguments:?}: {stderr}");
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
}

#[test]
fn help_has_headings_and_fits_a_hundred_columns() {
    let home = Home::new();
    for command in COMMANDS {
        let help = |flag: &str, columns: &str| {
            let mut adl = adl_command(&home.state());
            succeeds(adl.env("COLUMNS", columns).args(command).arg(flag))
        };
        let long = help("--help", "200");
        assert_eq!(long, help("-h", "100"), "{command:?}");
        let usage = format!("\nUsage: {}", [&["adl"], command].concat().join(" "));
        assert!(long.contains(&usage), "{command:?}: {long}");
        let width = |text: &str| text.lines().map(|line| line.chars().count()).max();
        assert!(width(&long) <= Some(100), "{command:?}: {long}");
        assert!(width(&help("--help", "80")) <= Some(80), "{command:?}");
    }
    let of_run = succeeds(adl_command(&home.state()).args(["run", "--help"]));
    for heading in ["Command", "Copies", "Ports", "Mounts", "Limits", "Sandbox"] {
        assert!(of_run.contains(&format!("\n{heading}:\n")), "{heading}: {of_run}");
    }
}

#[test]
fn manual_pages_have_all_that_help_has() {
    let home = Home::new();
    for command in COMMANDS {
        let help = succeeds(adl_command(&home.state()).args(command).arg("--help"));
        let page = succeeds(adl_command(&home.state()).arg("man").args(command));
        let title = [&["adl"], command].concat().join("-");
        assert!(page.contains(&format!(".TH {title} 1")), "{command:?}: {page}");
        let page = page.replace("\\-", "-").replace("\\fB", " ").replace("\\fR", " ");
        let all = options(&help);
        assert!(all.contains(&"--help"), "{help}");
        assert_eq!(options(&page), all, "{command:?}");
    }
    let of = |command: &[&str]| succeeds(adl_command(&home.state()).arg("man").args(command));
    for section in ["\"EXIT STATUS\"", "ENVIRONMENT", "FILES", "EXAMPLES", "RESULT"] {
        assert!(of(&["run"]).contains(&format!("\n.SH {section}\n")), "{}", of(&["run"]));
    }
    assert!(of(&[]).contains("\n.SH FILES\n") && !of(&[]).contains("\n.SH EXTRA\n"));
}

#[test]
fn a_shell_completes_commands_options_and_values() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let script = succeeds(adl_command(&home.state()).args(["completions", "bash"]));
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());

    let file = home.path("completions");
    fs::write(&file, &script).unwrap();
    let complete = |words: &[&str]| -> Vec<String> {
        let ask = ". \"$0\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1))\n\
                   _adl adl \"${@: -1}\" \"${@: -2:1}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        let found = succeeds(bash.args(["-c", ask]).arg(&file).args(words));
        found.lines().map(str::to_owned).collect()
    };
    assert_eq!(complete(&["adl", "sn"]), ["snapshot"]);
    assert_eq!(complete(&["adl", "run", "--time"]), ["--timeout"]);
    assert_eq!(complete(&["adl", "run", "--network", "h"]), ["host"]);
    assert_eq!(complete(&["adl", "snapshot", "export", "--l"]), ["--layer"]);
    for command in ["run", "shell", "bench", "doctor"] {
        let help = succeeds(adl_command(&home.state()).args([command, "--help"]));
        let listed =
            help.lines().filter(|line| line.starts_with("  -") || line.starts_with("      --"));
        let mut names: Vec<_> = listed
            .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")))
            // As in --rm[=<true>].
            .filter_map(|word| word.split('[').next())
            .collect();
        let mut found = complete(&["adl", command, "--"]);
        found.sort_unstable();
        names.sort_unstable();
        assert_eq!(found, names, "{command}");
    }
    for shell in ["zsh", "fish"] {
        let script = succeeds(adl_command(&home.state()).args(["completions", shell]));
        assert!(script.contains("timeout") && script.contains("snapshot"), "{shell}");
    }
}

#[test]
fn help_needs_no_more_than_a_place_to_write_to() {
    for arguments in [&["--help"][..], &["run", "--help"], &["completions", "bash"], &["man"]] {
        let mut bare = Command::new(adl());
        bare.args(arguments).env_clear().current_dir("/");
        assert!(succeeds(&mut bare).len() > 500, "{arguments:?}");
    }
}

#[test]
fn what_can_not_be_printed_is_an_error_or_an_end_of_each_command() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    run(&home, &["--snapshot", "kept", "--", "touch", "/root/file"]);
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    let unread = || {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        Stdio::from(write)
    };
    // Without what takes long: for that there is no room.
    let few = ["--rounds=1", "--jobs=1", "--resets=0", "--snapshots=0", "--copies=0", "--pool=0"];
    let bench = [&["bench", "--upper=memory:8m"], &few[..]].concat();
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["help", "gc"],
        &["run", "--help"],
        &["completions", "bash"],
        &["man", "run"],
        &["doctor"],
        &["doctor", "--json"],
        &["snapshot", "ls"],
        &["snapshot", "changes", "kept"],
        &["snapshot", "export", "kept"],
        &bench,
    ] {
        let output = adl_command(&home.state()).args(arguments).stdout(full()).output().unwrap();
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {told}");
        let told = told.lines().last().unwrap_or_default();
        assert!(
            told.starts_with("adl: ") && told.contains("No space left"),
            "{arguments:?}: {told}"
        );
        // As SIGPIPE would have it.
        let output = adl_command(&home.state()).args(arguments).stdout(unread()).output().unwrap();
        assert_eq!(output.status.code(), Some(128 + 13), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("pipe"), "{arguments:?}: {}", stderr(&output));
    }
    // What is said on stderr is for who hears it.
    for arguments in [
        &["run"][..],
        &["dance"],
        &["run", "--", "no-such-program"],
        &["run", "--stats", "--", "false"],
    ] {
        let of = |stderr: Stdio| {
            let mut adl = adl_command(&home.state());
            adl.args(arguments).stdout(Stdio::null()).stderr(stderr).status().unwrap().code()
        };
        let heard = of(Stdio::null());
        assert!(matches!(heard, Some(1 | 125 | 127)), "{arguments:?}: {heard:?}");
        assert_eq!([of(full()), of(unread())], [heard; 2], "{arguments:?}");
    }
    succeeds(adl_command(&home.state()).args(["snapshot", "rm", "kept"]));
}
