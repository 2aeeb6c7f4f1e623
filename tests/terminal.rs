//! `adl run -it` on a terminal: what one who sits at it sees.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Home, Need, adl, needs, stderr, within};

/// How long the screen may take to show something.
const SOON: Duration = Duration::from_secs(20);

/// A terminal emulator with a shell, on a server of its own.
struct Tmux<'a> {
    home: &'a Home,
    name: String,
}

impl<'a> Tmux<'a> {
    /// Of 80 columns and 24 rows. The shell's prompt is `outer>`, and `$ADL` is the program.
    fn new(home: &'a Home) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let this = Self { home, name: format!("adl-test-{}-{number}", std::process::id()) };
        // A root's shell takes no prompt from its environment.
        fs::write(home.path("profile"), "PS1='outer> '\n").unwrap();
        let start = ["new-session", "-d", "-x", "80", "-y", "24", "sh"];
        this.tmux(&[&["-f", "/dev/null"], &start[..]].concat());
        this.tmux(&["set-option", "-g", "status", "off"]);
        this.tmux(&["resize-window", "-x", "80", "-y", "24"]);
        this.shows("outer>");
        this
    }

    fn command(&self) -> Command {
        let mut tmux = Command::new("tmux");
        tmux.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("SHELL", "/bin/sh");
        tmux.env("ENV", self.home.path("profile"))
            .env("ADL", adl())
            .env("ADL_STATE_DIR", self.home.state());
        tmux.env("TMUX_TMPDIR", self.home.path("")).env("LC_ALL", "C.UTF-8");
        tmux.stdin(Stdio::null()).args(["-L", &self.name]);
        tmux
    }

    #[track_caller]
    fn tmux(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Types text.
    #[track_caller]
    fn types(&self, text: &str) {
        self.tmux(&["send-keys", "-l", "--", text]);
    }

    /// Presses keys, by their names.
    #[track_caller]
    fn presses(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a line.
    #[track_caller]
    fn enters(&self, line: &str) {
        self.types(line);
        self.presses(&["Enter"]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until a line of the screen is just that; or is after a prompt, as where a command was
    /// typed before there was one.
    #[track_caller]
    fn shows(&self, line: &str) {
        self.shows_a_line(line, |shown| {
            let shown = shown.trim_end();
            shown == line || shown.rsplit_once("> ").is_some_and(|(_, said)| said == line)
        });
    }

    #[track_caller]
    fn shows_a_line(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        let shown = within(SOON, || self.screen().lines().any(&is_it));
        assert!(shown, "no {what:?} on the screen:\n{}", self.screen());
    }

    /// The settings of the outer shell's terminal, as that sees them; `name` is not used twice.
    #[track_caller]
    fn settings(&self, name: &str) -> String {
        let file = self.home.path(name);
        self.enters(&format!("stty -g > {}; echo got-{name}", file.display()));
        self.shows(&format!("got-{name}"));
        fs::read_to_string(file).unwrap()
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        // What runs in it gets SIGHUP.
        let _ = self.command().arg("kill-server").output();
    }
}

#[test]
fn bash_on_a_terminal_edits_lines_and_its_jobs_are_interrupted_and_stopped() {
    if !needs(&[Need::Program("tmux"), Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let tmux = Tmux::new(&home);
    let before = tmux.settings("before");
    tmux.enters("$ADL run -it -e PS1='in> ' -- bash --norc; echo status=$?");
    tmux.shows("in>");

    tmux.types("echo edited-axc");
    tmux.presses(&["Left", "BSpace"]);
    tmux.enters("b");
    tmux.shows("edited-abc");

    tmux.enters("echo interrupt; sleep 1000");
    tmux.shows("interrupt");
    tmux.presses(&["C-c"]);
    tmux.enters("echo after=$?");
    tmux.shows("after=130");

    let job = "trap \"echo goes-on\" CONT; echo begins; until read -r l; do :; done; echo read-$l";
    tmux.enters(&format!("sh -c '{job}'"));
    tmux.shows("begins");
    tmux.presses(&["C-z"]);
    tmux.shows_a_line("Stopped", |line| line.contains("Stopped"));
    tmux.enters("fg");
    tmux.shows("goes-on");
    tmux.enters("more");
    tmux.shows("read-more");

    tmux.enters("clear; stty size");
    tmux.shows("24 80");
    tmux.enters("until [ \"$(stty size)\" = '30 100' ]; do sleep 0.01; done; echo resized-$(tty)");
    tmux.tmux(&["resize-window", "-x", "100", "-y", "30"]);
    tmux.shows("resized-/dev/pts/0");

    // Typed before the shell reads on, Ctrl-D would be the end of nothing.
    tmux.enters("PS1='last> '; (exit 9)");
    tmux.shows("last>");
    tmux.presses(&["C-d"]);
    tmux.shows("status=9");
    assert_eq!(tmux.settings("after"), before);
}

#[test]
fn python_on_a_terminal_edits_lines_and_is_interrupted() {
    if !needs(&[Need::Program("tmux"), Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let tmux = Tmux::new(&home);
    let before = tmux.settings("before");
    tmux.enters("$ADL run -ti -- python3; echo status=$?");
    tmux.shows(">>>");

    tmux.types("print('edited', 6*8)");
    tmux.presses(&["Left", "BSpace"]);
    tmux.types("7");
    tmux.presses(&["Enter"]);
    tmux.shows("edited 42");

    tmux.enters("import os, time");
    tmux.enters("print('size', *os.get_terminal_size())");
    tmux.shows("size 80 24");

    tmux.enters("print('sl' + 'eeps'); time.sleep(1000)");
    tmux.shows("sleeps");
    tmux.presses(&["C-c"]);
    tmux.shows("KeyboardInterrupt");
    tmux.enters("print('goes', 'on')");
    tmux.shows("goes on");

    tmux.enters("import sys; sys.ps1 = 'last> '");
    tmux.shows("last>");
    tmux.presses(&["C-d"]);
    tmux.shows("status=0");
    assert_eq!(tmux.settings("after"), before);
}

#[test]
fn a_shell_on_a_terminal_is_one_to_type_at() {
    if !needs(&[Need::Program("tmux"), Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let tmux = Tmux::new(&home);
    tmux.enters("$ADL shell -e PS1='in> ' -- --norc; echo status=$?");
    tmux.shows("in>");
    tmux.enters("[[ $- = *i* ]] && echo $0-is-interactive");
    tmux.shows("/bin/bash-is-interactive");
    tmux.enters("exit 6");
    tmux.shows("status=6");
}

#[test]
fn the_terminal_is_as_before_whatever_ends_the_session() {
    if !needs(&[Need::Program("tmux")]) {
        return;
    }
    let home = Home::new();
    let tmux = Tmux::new(&home);
    let before = tmux.settings("before");
    let pid_file = home.path("pid");
    // Ended by a signal to adl, by its time, and by the death of the sandbox.
    for (name, options, status) in
        [("term", "", 143), ("time", "--timeout 1", 124), ("died", "", 125)]
    {
        tmux.enters(&format!(
            "sh -c 'echo $$ > {}; exec $ADL run -it {options} -- sh -c \"$0\"' \
             'echo up-{name}; exec sleep 1000'; echo {name}=$?",
            pid_file.display()
        ));
        if name != "time" {
            tmux.shows(&format!("up-{name}"));
            let adl: i32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
            match name {
                "term" => kill(Pid::from_raw(adl), Signal::SIGTERM).unwrap(),
                _ => kill(Pid::from_raw(init_of(adl)), Signal::SIGKILL).unwrap(),
            }
        }
        tmux.shows(&format!("{name}={status}"));
        assert_eq!(tmux.settings(&format!("after-{name}")), before, "{name}");
    }
}

/// The init of the sandbox that a process has.
pub(crate) fn init_of(adl: i32) -> i32 {
    let is_init = |pid: i32| {
        let pids = crate::census::status(pid, "NSpid").unwrap_or_default();
        pids.split_whitespace().skip(1).last() == Some("1")
    };
    let tree = crate::census::tree(adl);
    tree.iter().map(|process| process.pid).find(|pid| is_init(*pid)).expect("an init")
}

/// Starts `script(1)`, which gives a command a terminal, with all that it shows on its stdout.
fn on_a_terminal(home: &Home, command: &str) -> Child {
    let mut script = Command::new("script");
    script.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("TERM", "the-callers");
    script.env("ADL", adl()).env("ADL_STATE_DIR", home.state()).env("SHELL", "/bin/sh");
    script.args(["-qec", command, "/dev/null"]);
    script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The end of what [`on_a_terminal`] started. Nothing is typed.
fn end(mut script: Child) -> Output {
    // Its end would be typed, so that it is kept open.
    let stdin = script.stdin.take();
    let output = script.wait_with_output().unwrap();
    drop(stdin);
    output
}

#[test]
fn a_command_on_a_terminal_has_one_of_the_sandboxs_own() {
    if !needs(&[Need::Program("script")]) {
        return;
    }
    let home = Home::new();
    for (command, shown, code) in [
        ("-it -- tty", "/dev/pts/0\r\n", 0),
        ("-t -- sh -c 'test -t 0 -a -t 1 -a -t 2 && exit 7'", "", 7),
        ("-it -- sh -c 'kill -KILL $$'", "", 137),
        ("-it -- sh -c 'echo $TERM'", "the-callers\r\n", 0),
        ("-it -e TERM=my-own -- sh -c 'echo $TERM'", "my-own\r\n", 0),
        ("-it -- sh -c 'echo to stderr >&2'", "to stderr\r\n", 0),
        ("-it --timeout 2 -- sh -c 'echo part; exec sleep 1000'", "part\r\nadl: ", 124),
        ("-it -- no-such-program", "adl: ", 127),
        // adl's own lines, too, begin where a line does.
        ("-it --timeout 0.5 -- sh -c 'exec sleep 1000'; echo end", "than 500ms\r\nend\r\n", 0),
    ] {
        let output = end(on_a_terminal(&home, &format!("$ADL run {command}")));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(shown), "{command}: {text:?}");
        assert_eq!(output.status.code(), Some(code), "{command}: {text:?}");
    }
}

/// Whether this was shown, and nothing else but that the end takes long, where the disk is slow.
fn is_all_of(shown: &[u8], expected: &str) -> bool {
    let rest = shown.strip_prefix(expected.as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"adl: removing what"))
}

#[test]
fn all_that_was_printed_is_shown_also_to_a_slow_reader_and_with_the_terminal_still_open() {
    if !needs(&[Need::Program("script")]) {
        return;
    }
    let home = Home::new();
    let expected: String = (1..=50_000).map(|number| format!("{number}\r\n")).collect();
    for (command, background) in [("seq 50000", false), ("sh -c 'sleep 1000 & seq 50000'", true)] {
        let output = end(on_a_terminal(&home, &format!("$ADL run -it -- {command}")));
        assert!(is_all_of(&output.stdout, &expected), "{background}: {}", output.stdout.len());
        // One that takes little at a time, and so holds adl up.
        let file = home.path("shown");
        let reader =
            format!("$ADL run -it -- {command} | dd bs=512 of={} status=none", file.display());
        assert_eq!(end(on_a_terminal(&home, &reader)).status.code(), Some(0));
        let shown = fs::read(&file).unwrap();
        assert!(is_all_of(&shown, &expected), "{background}: {}", shown.len());
    }
}

#[test]
fn a_command_that_reads_nothing_holds_nothing_up() {
    if !needs(&[Need::Program("script")]) {
        return;
    }
    let home = Home::new();
    let pid_file = home.path("pid");
    let mut script = on_a_terminal(
        &home,
        &format!(
            "stty raw -echo; echo $$ > {}; exec $ADL run -it -- sh -c 'stty raw; exec sleep 1000'",
            pid_file.display()
        ),
    );
    // Much more than all that lies between has room for, in short lines.
    let mut stdin = script.stdin.take().unwrap();
    let typing = std::thread::spawn(move || {
        for _ in 0..1 << 17 {
            if stdin.write_all(b"typed..\n").is_err() {
                break;
            }
        }
        stdin
    });
    let adl = || fs::read_to_string(&pid_file).ok()?.trim().parse::<i32>().ok();
    let sleeps = || {
        let Some(adl) = adl() else { return false };
        let tree = crate::census::tree(adl);
        tree.iter().any(|p| p.status("Name").as_deref() == Some("sleep"))
    };
    assert!(within(SOON, sleeps));
    kill(Pid::from_raw(adl().unwrap()), Signal::SIGTERM).unwrap();
    let output = script.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143));
    drop(typing.join().unwrap());
}

#[test]
fn when_no_one_sees_the_output_any_more_the_command_hangs_up() {
    if !needs(&[Need::Program("script")]) {
        return;
    }
    let home = Home::new();
    let command = "{ $ADL run -it -- yes; echo $? >&2; } | head -n1";
    let output = end(on_a_terminal(&home, command));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("y\r\n") && text.ends_with("129\r\n"), "{text:?}");
}
