//! `adl run --snapshot` keeps what a command has done, where it has done it, and gives names on.

use std::fs;
use std::process::Output;

use adl_runtime::{Config, Error, Image, Sandbox, Snapshot, SnapshotOptions};

use crate::harness::{Home, adl_command, needs, shell, stderr, succeeds};

fn adl(home: &Home, arguments: &[&str]) -> String {
    succeeds(adl_command(&home.state()).args(arguments))
}

fn try_adl(home: &Home, arguments: &[&str]) -> Output {
    adl_command(&home.state()).args(arguments).output().unwrap()
}

/// The names of snapshots, without and with those that were made up.
fn names(home: &Home) -> Vec<String> {
    adl(home, &["snapshot", "ls", "--quiet"]).lines().map(str::to_owned).collect()
}

fn on_disk(home: &Home) -> usize {
    adl_runtime::finish_removals();
    adl(home, &["gc"]);
    fs::read_dir(home.state().join("snapshots")).map_or(0, Iterator::count)
}

#[test]
fn a_snapshot_is_made_of_what_has_succeeded() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for (options, command, code, told) in [
        (&[][..], &["no-such-program"][..], 127, "was not started"),
        (&[], &["/etc"], 126, "was not started"),
        (&["--snapshot-always"], &["no-such-program"], 127, "was not started"),
        (&["-w", "/absent"], &["true"], 125, "was not started"),
        (&[], &["false"], 1, "--snapshot-always"),
        (&["--timeout", "100ms"], &["sleep", "1000"], 124, "--snapshot-always"),
    ] {
        let run = [&["run", "--snapshot", "one"], options, &["--"], command].concat();
        let output = try_adl(&home, &run);
        assert_eq!(output.status.code(), Some(code), "{run:?}: {output:?}");
        assert!(stderr(&output).contains("--snapshot one: there is none"), "{output:?}");
        assert!(stderr(&output).contains(told), "{output:?}");
        assert_eq!(names(&home), [""; 0], "{run:?}");
    }
    assert_eq!(on_disk(&home), 0);
    // The controls.
    let always = ["run", "--snapshot", "failed", "--snapshot-always", "--", "sh", "-c"];
    let output = try_adl(&home, &[&always[..], &["echo kept > /root/f; exit 3"]].concat());
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(3), ""));
    adl(&home, &["run", "--snapshot", "good", "--", "true"]);
    assert_eq!(names(&home), ["failed", "good"]);
    assert_eq!(adl(&home, &["run", "--image", "snapshot:failed", "cat", "/root/f"]), "kept\n");
    for option in ["--snapshot-always", "--replace"] {
        let output = try_adl(&home, &["run", option, "--", "true"]);
        assert_eq!(output.status.code(), Some(125));
        assert!(stderr(&output).contains("--snapshot <NAME>"), "{output:?}");
    }
}

#[test]
fn a_name_goes_on_to_what_was_made_on_top() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let run = |image: &str, name: &str, script: &str| {
        let options = ["run", "--image", image, "--snapshot", name, "--replace"];
        try_adl(&home, &[&options[..], &["--", "sh", "-c", script]].concat())
    };
    let cat = |name: &str| {
        let image = format!("snapshot:{name}");
        adl(&home, &["run", "--image", &image, "sh", "-c", "cat /root/log"])
    };
    adl(&home, &["run", "--snapshot", "base", "--", "sh", "-c", "echo 0 > /root/log"]);
    // A name that no one has.
    let first = run("snapshot:base", "hello", "echo 1 >> /root/log");
    assert_eq!((first.status.code(), stderr(&first).as_str()), (Some(0), ""));
    for number in 2..6 {
        let script = format!("echo {number} >> /root/log");
        let output = run("snapshot:hello", "hello", &script);
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
        assert_eq!(names(&home), ["base", "hello"]);
    }
    // Those below have no name, and are there.
    assert_eq!(cat("hello"), "0\n1\n2\n3\n4\n5\n");
    assert_eq!(on_disk(&home), 6);
    let busy = try_adl(&home, &["snapshot", "rm", "base"]);
    assert_eq!(busy.status.code(), Some(125), "{busy:?}");
    // What failed leaves all as it was.
    assert_eq!(run("snapshot:hello", "hello", "exit 1").status.code(), Some(1));
    assert_eq!(cat("hello"), "0\n1\n2\n3\n4\n5\n");
    // One that does not lie on it: it goes, and what it lay on without a name.
    assert_eq!(run("host", "hello", "echo new > /root/log").status.code(), Some(0));
    assert_eq!(cat("hello"), "new\n");
    assert_eq!(on_disk(&home), 2);
    adl(&home, &["snapshot", "rm", "base"]);
    assert_eq!(run("snapshot:hello", "hello", "echo newer > /root/log").status.code(), Some(0));
    // Changes are told as those to the one below.
    assert_eq!(adl(&home, &["snapshot", "changes", "hello"]), "C /root/log\n");
    adl(&home, &["snapshot", "rm", "hello"]);
    assert_eq!(on_disk(&home), 0);
}

#[test]
fn a_name_is_not_taken_from_what_others_lie_on() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let make = |name: Option<&str>, image: Image, text: &str| {
        let sandbox = Sandbox::create(Config { image, ..home.config() }).unwrap();
        shell(&sandbox, format!("echo {text} >> /root/log"));
        let name = name.map(str::to_owned);
        sandbox.snapshot_with(&SnapshotOptions { name, ..SnapshotOptions::default() }).unwrap()
    };
    let open = |name: &str| Snapshot::open(Some(&home.state()), name);
    let one = make(Some("one"), Image::host(), "1");
    drop(make(Some("two"), one.image(), "2"));
    drop(one);
    let image = || Image::snapshot("one");
    let replace = |snapshot: Snapshot| snapshot.replace("one").unwrap_err();
    let busy = replace(make(None, image(), "3"));
    assert!(matches!(&busy.error, Error::Busy { by, .. } if by.contains("two")), "{busy:?}");
    // It is as it was, and gets another name.
    drop(busy.snapshot.unwrap().replace("three").unwrap());
    assert_eq!(adl(&home, &["snapshot", "changes", "three"]), "C /root/log\n");
    open("three").unwrap().delete().unwrap();
    open("two").unwrap().delete().unwrap();
    // A sandbox of another process, as this one is of that.
    let mut other = adl_command(&home.state());
    other.args(["run", "--image", "snapshot:one", "--", "sh", "-c", "echo runs; cat"]);
    other.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut other = other.spawn().unwrap();
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();
    let busy = replace(make(None, Image::host(), "4"));
    assert!(matches!(&busy.error, Error::Busy { by, .. } if by == "a sandbox"), "{busy:?}");
    drop(busy);
    // A command whose work is done has it kept, and is told where.
    let options = ["run", "--snapshot", "one", "--replace", "--", "sh", "-c"];
    let output = try_adl(&home, &[&options[..], &["echo done > /root/log"]].concat());
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let kept = names(&home).into_iter().find(|name| name.starts_with("kept-")).unwrap();
    assert!(stderr(&output).contains(&format!("is the snapshot {kept:?}")), "{output:?}");
    let on_kept = format!("snapshot:{kept}");
    assert_eq!(adl(&home, &["run", "--image", &on_kept, "--", "cat", "/root/log"]), "done\n");
    open(&kept).unwrap().delete().unwrap();
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
    // One that has a name keeps it, and a sandbox of this process on it is in the way.
    let named = replace(make(Some("named"), Image::host(), "5"));
    assert!(matches!(&named.error, Error::NameInUse { name } if name == "named"), "{named:?}");
    drop(named);
    let sandbox = home.sandbox();
    let busy = replace(sandbox.snapshot().unwrap());
    assert!(matches!(&busy.error, Error::Busy { by, .. } if by.contains("process")), "{busy:?}");
    drop(busy);
    drop(sandbox);
    // All that was tried has left what there was.
    let log = |name: &str| {
        let config = Config { image: Image::snapshot(name), ..home.config() };
        shell(&Sandbox::create(config).unwrap(), "cat /root/log")
    };
    assert_eq!(log("one"), "1\n");
    let replaced = make(None, image(), "6").replace("one").unwrap();
    assert_eq!((replaced.name(), replaced.lies_on().is_some()), ("one", true));
    assert_eq!(log("one"), "1\n6\n");
    drop(replaced);
    for name in ["one", "named"] {
        open(name).unwrap().delete().unwrap();
    }
    assert_eq!(on_disk(&home), 0);
}

#[test]
fn snapshots_are_listed_with_what_they_lie_on_and_removed_in_any_order() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for (image, name) in [("host", "a"), ("snapshot:a", "b"), ("snapshot:b", "c"), ("host", "d")] {
        adl(&home, &["run", "--image", image, "--snapshot", name, "--", "touch", "/root/file"]);
    }
    let table = adl(&home, &["snapshot", "ls"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("NAME ") && lines[0].ends_with("LIES ON"), "{table}");
    for (line, (name, below)) in lines[1..].iter().zip([
        ("a", "its image"),
        ("b", "snapshot:a"),
        ("c", "snapshot:b"),
        ("d", "its image"),
    ]) {
        assert!(line.starts_with(&format!("{name} ")) && line.ends_with(below), "{table}");
        // A date of this century.
        assert!(line.contains(" 20") && line.matches(':').count() >= 2, "{table}");
    }
    assert_eq!(lines.len(), 5, "{table}");
    // What is in use by another that is not named stays, and the others go.
    let output = try_adl(&home, &["snapshot", "rm", "absent", "b", "d", "a"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let told = stderr(&output);
    assert!(told.contains("\"absent\"") && told.contains("the snapshot \"c\""), "{told}");
    assert_eq!(names(&home), ["a", "b", "c"]);
    adl(&home, &["snapshot", "rm", "a", "b", "a", "c"]);
    assert_eq!(names(&home), [""; 0]);
    for (image, name) in [("host", "z"), ("snapshot:z", "y"), ("snapshot:y", "x")] {
        adl(&home, &["run", "--image", image, "--snapshot", name, "--", "true"]);
    }
    assert_eq!(try_adl(&home, &["snapshot", "rm", "--all", "x"]).status.code(), Some(125));
    adl(&home, &["snapshot", "rm", "--all"]);
    adl(&home, &["snapshot", "rm", "--all"]);
    assert_eq!((names(&home).len(), on_disk(&home)), (0, 0));
    let again = ["run", "--snapshot", "one", "--", "true"];
    adl(&home, &again);
    let told = stderr(&try_adl(&home, &again));
    assert!(told.contains("`adl snapshot rm one`") && told.contains("--replace"), "{told}");
    adl(&home, &["snapshot", "rm", "one"]);
}
