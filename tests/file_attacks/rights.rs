//! Calls for a user, beside commands of that user.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use adl_runtime::{Files, Result, WriteMode, WriteOptions};

use crate::harness::{Home, Need, needs, shell, within};
use crate::jobs::SOON;

/// Things of which some belong to root and some to the user 1000, in a directory.
const OWNED: &str = r#"
set -e
cd "$1"
chmod 755 .
mkdir root sticky setgid exec unreadable own; mkdir root/sub own/sub unreadable/sub
for d in . root sticky setgid exec unreadable unreadable/sub own own/sub; do
    echo content > $d/root-600; chmod 600 $d/root-600
    echo content > $d/root-644; chmod 644 $d/root-644
    echo content > $d/mine; chown 1000:1000 $d/mine; chmod 640 $d/mine
    echo content > $d/group; chown 0:1000 $d/group; chmod 660 $d/group
done
mkdir root/empty own/empty sticky/empty
chown 1000:1000 own own/sub own/empty
chmod 1777 sticky; chown 0:1000 setgid; chmod 2775 setgid; chmod 711 exec; chmod 111 exec
chmod 700 unreadable
ln root/root-600 own/hard-600; ln root/root-644 own/hard-644
ln -s ../root/root-600 own/link-600; ln -s ../own/mine sticky/link-own
"#;

/// A call, and a command that does the same.
type Case<'a> = (&'a str, &'a dyn Fn(&Files, &str) -> Result<()>, &'a str);

#[test]
fn a_call_may_do_what_a_command_of_the_same_user_may() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let of_others = sandbox.id_range().is_some();
    if !of_others {
        // There is no other user.
        return;
    }
    let truncate = WriteOptions::new().how(WriteMode::Truncate);
    // The path is $1, and for what makes something new beside it, that with a suffix.
    let cases: [Case<'_>; 14] = [
        ("read", &|f, p| f.read_file(p).map(drop), "cat \"$1\""),
        (
            "replace",
            &|f, p| f.write_file(p, "new"),
            "m=$({ test ! -L \"$1\" && stat -c %a \"$1\"; } || echo 644) && printf new > \"${1%/*}/.t\" && chmod $m \"${1%/*}/.t\" && mv -fT \"${1%/*}/.t\" \"$1\" || { rm -f \"${1%/*}/.t\"; false; }",
        ),
        ("truncate", &|f, p| f.write_with(p, "new", truncate), "printf new > \"$1\""),
        ("append", &|f, p| f.append_file(p, "new"), "printf new >> \"$1\""),
        ("stat", &|f, p| f.metadata(p).map(drop), "stat -L \"$1\""),
        ("list", &|f, p| f.list_dir(p).map(drop), "test -d \"$1\" && ls -U \"$1\""),
        ("mkdir", &|f, p| f.create_dir_all(format!("{p}.new/sub")), "mkdir -p \"$1.new/sub\""),
        ("remove", &|f, p| f.remove_file(p), "unlink \"$1\""),
        (
            "remove all",
            &|f, p| f.remove_dir_all(p),
            "test -d \"$1\" && ! test -L \"$1\" && rm -rf \"$1\"",
        ),
        ("rename", &|f, p| f.rename(p, format!("{p}.new")), "mv -T \"$1\" \"$1.new\""),
        ("chmod", &|f, p| f.set_permissions(p, 0o604), "chmod 604 \"$1\""),
        ("chown", &|f, p| f.chown(p, Some(1000), Some(1000)), "chown 1000:1000 \"$1\""),
        ("chgrp", &|f, p| f.chown(p, None, Some(1000)), "chgrp 1000 \"$1\""),
        ("symlink", &|f, p| f.symlink("to", format!("{p}.new")), "ln -sT to \"$1.new\""),
    ];
    let directories =
        ["root", "sticky", "setgid", "exec", "unreadable", "unreadable/sub", "own", "own/sub"];
    let mut paths: Vec<String> = directories.iter().map(|d| (*d).to_owned()).collect();
    for directory in directories {
        paths.extend(
            ["root-600", "root-644", "mine", "group", "none"].map(|n| format!("{directory}/{n}")),
        );
    }
    paths.extend(
        [
            "own/hard-600",
            "own/hard-644",
            "own/link-600",
            "sticky/link-own",
            "root/empty",
            "own/empty",
            "sticky/empty",
        ]
        .map(str::to_owned),
    );
    // All cases at once: a directory for each, made by one script and looked at by one command.
    let mut number = 0;
    let mut tried = Vec::new();
    for path in &paths {
        for case in &cases {
            tried.push((number, path, case));
            number += 1;
        }
    }
    let mut make =
        "set -e; umask 022; mkdir -p /tmp/r/0; cat > /tmp/owned; bash /tmp/owned /tmp/r/0
        cd /tmp/r\n"
            .to_owned();
    for (number, path, _) in &tried {
        let first = path.split('/').next().unwrap_or_default();
        let others = if path.contains("link-") { "0/root 0/own" } else { "" };
        for which in ["call", "command"] {
            make += &format!("mkdir {which}-{number}; cp -a 0/{first} {others} {which}-{number}\n");
        }
    }
    fs::write(home.path("make"), make).unwrap();
    sandbox.files().copy_in(home.path("make"), "/tmp/make").unwrap();
    let made = sandbox.shell("bash /tmp/make").input(OWNED).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // Each by one shell for all commands: they are many.
    let mut script = "exec 2>/dev/null\n".to_owned();
    for (number, path, (_, _, command)) in &tried {
        script +=
            &format!("(set -- /tmp/r/command-{number}/{path}; {command}) >/dev/null; echo $?\n");
    }
    let mut command = sandbox.shell("cat > /tmp/script; bash /tmp/script");
    let outcomes = run(command.input(&*script).uid(1000).gid(1000));
    let outcomes: Vec<bool> = outcomes.lines().map(|line| line == "0").collect();
    assert_eq!(outcomes.len(), tried.len());
    let mut files = sandbox.files();
    files.uid(1000).gid(1000);
    let mut wrong = Vec::new();
    for ((number, path, (name, call, _)), may) in tried.iter().zip(&outcomes) {
        let made = call(&files, &format!("/tmp/r/call-{number}/{path}"));
        if made.is_ok() != *may {
            wrong.push(format!("{name} {path}: command {may}, call {made:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(outcomes.iter().filter(|may| **may).count() > 100);
    assert!(outcomes.iter().filter(|may| !**may).count() > 100);
    // And it comes to the same, but for removals that fail: rm goes on where a call ends.
    let is_partial = |line: &str| {
        let number = line.split(['/', ' ']).next().and_then(|number| number.parse::<usize>().ok());
        number.is_some_and(|n| {
            tried.get(n).is_some_and(|(_, _, case)| case.0 == "remove all" && !outcomes[n])
        })
    };
    let tell = |which: &str| -> BTreeSet<String> {
        let told = shell(
            &sandbox,
            format!("cd /tmp/r; find {which}-* -printf '%p %y %m %U:%G %s %n %l\n'"),
        );
        let lines = told.lines().filter_map(|line| line.strip_prefix(which)?.strip_prefix('-'));
        lines.filter(|line| !is_partial(line)).map(str::to_owned).collect()
    };
    let differ: Vec<String> =
        tell("call").symmetric_difference(&tell("command")).take(20).cloned().collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

#[track_caller]
#[test]
fn what_is_written_is_closed_to_others_until_it_has_its_mode() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    shell(&sandbox, "mkdir -m 755 /tmp/d; echo old > /tmp/d/kept; chmod 600 /tmp/d/kept");
    let private = WriteOptions::new().mode(0o600);
    for (path, options, looked_at) in [
        ("/tmp/d/new", private, "/tmp/d/.adl-*"),
        ("/tmp/d/kept", WriteOptions::new(), "/tmp/d/.adl-*"),
        ("/tmp/d/only", private.how(WriteMode::CreateNew), "/tmp/d/.adl-*"),
        ("/tmp/d/direct", private.how(WriteMode::Truncate), "/tmp/d/direct"),
        ("/tmp/d/log", private.how(WriteMode::Append), "/tmp/d/log"),
    ] {
        let mut writer = files.open_write(path, options).unwrap();
        writer.write_all(&[b's'; 8192]).unwrap();
        writer.flush().unwrap();
        let look = |uid: u32| {
            let mut command = sandbox.shell(format!("cat {looked_at}"));
            let output = command.uid(uid).gid(uid).output().unwrap();
            output.stdout
        };
        // It is there, half written.
        assert!(within(SOON, || look(0).len() == 8192), "{path}");
        assert_eq!(look(1000), b"", "{path}");
        writer.finish().unwrap();
        assert_eq!(shell(&sandbox, format!("stat -c %a {path}")), "600\n");
        assert_eq!(files.read_file(path).unwrap().len(), 8192);
    }
    // What no one has asked to be closed is as the umask has it.
    files.write_file("/tmp/d/open", "x").unwrap();
    assert_eq!(shell(&sandbox, "stat -c %a /tmp/d/open"), "644\n");
}

fn run(command: &mut adl_runtime::Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
