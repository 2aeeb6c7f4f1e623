//! Trees and archives between the host and a sandbox.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use adl_runtime::{Error, FileKind, Sandbox};

use crate::harness::{Home, Need, adl_command, at_most, needs, patient_files, shell};
use crate::images::fingerprint;

/// A tree on the host with some of everything that can be copied.
fn everything(at: &Path) {
    fs::create_dir_all(at.join("dir/deep")).unwrap();
    fs::write(at.join("dir/file"), b"content").unwrap();
    fs::set_permissions(at.join("dir/file"), Permissions::from_mode(0o751)).unwrap();
    fs::write(at.join("dir/deep/empty"), b"").unwrap();
    fs::hard_link(at.join("dir/file"), at.join("link to file")).unwrap();
    symlink("/nowhere/at all", at.join("dangling")).unwrap();
    symlink("../..", at.join("dir/up")).unwrap();
    fs::write(at.join("large"), vec![7; 3_000_001]).unwrap();
    let sparse = fs::File::create(at.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(b"middle", 500 << 20).unwrap();
    fs::create_dir(at.join("read only")).unwrap();
    fs::write(at.join("read only/f"), b"x").unwrap();
    fs::set_permissions(at.join("read only"), Permissions::from_mode(0o555)).unwrap();
}

/// Names, kinds, modes, sizes, times and targets, one on each line, as find(1) tells them.
const LOOK: &str = "find . -mindepth 1 -printf '%P|%y|%m|%n|%l|' \\( -type d -printf '%T@' -o -printf '%s %T@' \\) -printf '\\n' | sort";

fn look_outside(at: &Path) -> String {
    let output = Command::new("sh").args(["-c", LOOK]).current_dir(at).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn look_inside(sandbox: &Sandbox, at: &str) -> String {
    let output = sandbox.shell(LOOK).current_dir(at).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether two trees hold the same, by diff(1).
fn same(one: &Path, other: &Path) -> bool {
    let diff = ["-r", "--no-dereference"];
    Command::new("diff").args(diff).args([one, other]).status().unwrap().success()
}

#[test]
fn a_tree_goes_in_and_comes_out_as_it_was() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = patient_files(&sandbox);
    let (source, back) = (home.path("source"), home.path("back"));
    everything(&source);
    let before = look_outside(&source);
    let report = files.copy_in(&source, "/tmp/copy").unwrap();
    assert_eq!((report.files, report.directories), (5, 4), "{report:?}");
    assert_eq!((report.symbolic_links, report.hard_links), (2, 1), "{report:?}");
    assert_eq!(look_inside(&sandbox, "/tmp/copy"), before);
    let blocks = shell(&sandbox, "stat -c %b /tmp/copy/sparse; stat -c %u /tmp/copy/dir/file");
    let blocks: Vec<u64> = blocks.lines().map(|line| line.parse().unwrap()).collect();
    assert!(blocks[0] < 2048 && blocks[1] == 0, "{blocks:?}");

    let report = files.copy_out("/tmp/copy", &back).unwrap();
    assert_eq!((report.files, report.hard_links), (5, 1), "{report:?}");
    assert_eq!(look_outside(&back), before);
    assert!(same(&source, &back));
    let [file, link] = ["dir/file", "link to file"].map(|n| fs::metadata(back.join(n)).unwrap());
    assert_eq!(file.ino(), link.ino());
    assert_eq!(file.uid(), nix::unistd::geteuid().as_raw());
    assert!(fs::metadata(back.join("sparse")).unwrap().blocks() < 2048);

    // Once more over both: what is there is replaced, and what is not of the copy stays.
    fs::write(source.join("dir/file"), b"other").unwrap();
    shell(&sandbox, "touch /tmp/copy/dir/mine; ln -sf /etc/passwd /tmp/copy/large");
    files.copy_in(&source, "/tmp/copy").unwrap();
    assert_eq!(
        shell(&sandbox, "cat /tmp/copy/dir/file; ls /tmp/copy/dir"),
        "otherdeep\nfile\nmine\nup\n"
    );
    fs::write(back.join("dir/other"), b"").unwrap();
    files.copy_out("/tmp/copy", &back).unwrap();
    fs::remove_file(back.join("dir/mine")).unwrap();
    fs::remove_file(back.join("dir/other")).unwrap();
    assert!(same(&source, &back));

    // Single files, under the name that was given.
    files.copy_in(source.join("dir/file"), "/tmp/one").unwrap();
    files.copy_out("/tmp/one", home.path("one")).unwrap();
    assert_eq!(fs::read(home.path("one")).unwrap(), b"other");
    assert_eq!(fs::metadata(home.path("one")).unwrap().mode() & 0o777, 0o751);
    for directory in [&source, &back] {
        fs::set_permissions(directory.join("read only"), Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn what_has_no_content_is_left_out_and_told() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = patient_files(&sandbox);
    const MAKE: &str = "import os, socket, sys
os.makedirs('t/d'); os.chdir('t'); os.mkfifo('d/fifo'); open('f', 'w')
socket.socket(socket.AF_UNIX).bind('socket')";
    let kinds = |report: &adl_runtime::CopyReport| {
        let mut all: Vec<_> =
            report.skipped.iter().map(|s| (s.path.display().to_string(), s.kind)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let expected = [("d/fifo".to_owned(), FileKind::Fifo), ("socket".to_owned(), FileKind::Socket)];
    let made = sandbox.command("python3").args(["-c", MAKE]).current_dir("/tmp").status().unwrap();
    assert!(made.success());
    let report = files.copy_out("/tmp/t", home.path("out")).unwrap();
    assert_eq!(kinds(&report), expected);
    assert_eq!(look_outside(&home.path("out")).lines().count(), 2);
    let made =
        Command::new("python3").args(["-c", MAKE]).current_dir(home.path("")).status().unwrap();
    assert!(made.success());
    let report = files.copy_in(home.path("t"), "/tmp/in").unwrap();
    assert_eq!(kinds(&report), expected);
    assert_eq!(shell(&sandbox, "ls -R /tmp/in | tr '\\n' ' '"), "/tmp/in: d f  /tmp/in/d: ");
    // What is mounted below is another file system's.
    let report = files.copy_out("/", home.path("root")).unwrap();
    let proc = report.skipped.iter().find(|skipped| skipped.path == Path::new("proc"));
    assert_eq!(proc.map(|skipped| skipped.kind), Some(FileKind::Mount));
    assert!(!home.path("root/proc").exists());
    assert!(home.path("root/etc/passwd").exists());
    let report = files.copy_out("/dev/null", home.path("null")).unwrap();
    assert_eq!(report.skipped[0].kind, FileKind::CharacterDevice);
    assert!(!home.path("null").exists());
}

#[test]
fn owners_and_set_user_id_bits_go_along_only_where_asked_for() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "mkdir /tmp/t; cd /tmp/t; touch f; chown 7:8 f; chmod 6755 f; chmod 1777 .");
    let files = patient_files(&sandbox);
    let mut keeping = sandbox.files();
    keeping.keep_owners(true).keep_set_ids(true);
    let told = |path: PathBuf| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    files.copy_out("/tmp/t", home.path("plain")).unwrap();
    assert_eq!(told(home.path("plain/f")), (0o755, 0, 0));
    assert_eq!(told(home.path("plain")).0, 0o1777);
    keeping.copy_out("/tmp/t", home.path("kept")).unwrap();
    assert_eq!(told(home.path("kept/f")), (0o6755, 7, 8));
    let stat = |path: &str| shell(&sandbox, format!("stat -c '%a %u %g' {path}"));
    files.copy_in(home.path("kept"), "/tmp/plain").unwrap();
    assert_eq!(stat("/tmp/plain/f"), "755 0 0\n");
    keeping.copy_in(home.path("kept"), "/tmp/kept").unwrap();
    assert_eq!(stat("/tmp/kept/f"), "6755 7 8\n");
    shell(&sandbox, "mkdir -m 777 /tmp/open");
    let mut user = sandbox.files();
    user.user("1000:5");
    user.copy_in(home.path("kept"), "/tmp/open/t").unwrap();
    assert_eq!(stat("/tmp/open/t/f"), "755 1000 5\n");
    let error = user.copy_in(home.path("kept"), "/usr/t").unwrap_err();
    assert!(matches!(&error, Error::File { path, .. } if path == Path::new("/usr/t")), "{error}");
    shell(&sandbox, "mkdir -p /tmp/open/half/t; chmod 755 /tmp/open/half/t");
    fs::create_dir_all(home.path("half/t")).unwrap();
    fs::write(home.path("half/t/g"), b"").unwrap();
    let error = user.copy_in(home.path("half"), "/tmp/open/half").unwrap_err();
    let at = Path::new("/tmp/open/half/t/g");
    assert!(matches!(&error, Error::File { path, .. } if path == at), "{error}");
    shell(&sandbox, "mkdir /tmp/t/closed; touch /tmp/t/closed/x; chmod 700 /tmp/t/closed");
    let error = user.copy_out("/tmp/t", home.path("refused")).unwrap_err();
    let at = Path::new("/tmp/t/closed");
    assert!(matches!(&error, Error::File { path, .. } if path == at), "{error}");
}

#[test]
fn trees_of_odd_names_and_any_depth_go_both_ways() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = patient_files(&sandbox);
    const MAKE: &str = "import os
os.mkdir('t'); os.chdir('t')
for name in [b'\\n', b'\\xff\\xfe', b'-rf', b'...', b' ', b'n' * 255, b'\\x80' * 255]: open(name, 'wb').write(name)
for i in range(20000): os.close(os.open(f'many-{i}', os.O_CREAT | os.O_WRONLY))
for i in range(2000):
    os.mkdir('d' * 200); os.chdir('d' * 200)
open('bottom', 'w').write('deep')";
    let made =
        Command::new("python3").args(["-c", MAKE]).current_dir(home.path("")).status().unwrap();
    assert!(made.success());
    let report = files.copy_in(home.path("t"), "/tmp/t").unwrap();
    assert_eq!((report.files, report.directories), (20_008, 2001), "{report:?}");
    const COUNT: &str = "find . -type f | wc -l; find . -type d | wc -l; find . -size +0c | wc -l";
    let count = sandbox.shell(COUNT).current_dir("/tmp/t").output().unwrap().stdout;
    let report = files.copy_out("/tmp/t", home.path("back")).unwrap();
    assert_eq!((report.files, report.directories), (20_008, 2001), "{report:?}");
    let of = |at: &str| {
        Command::new("sh").args(["-c", COUNT]).current_dir(home.path(at)).output().unwrap().stdout
    };
    assert_eq!(of("t"), count);
    assert_eq!(of("back"), count);
    files.remove_dir_all("/tmp/t").unwrap();
    assert_eq!(shell(&sandbox, "ls -A /tmp"), "");
    for directory in ["t", "back"] {
        // The standard library holds a descriptor for each level.
        let removed = Command::new("rm").arg("-rf").arg(home.path(directory)).status().unwrap();
        assert!(removed.success());
    }
}

#[test]
fn a_cloned_project_is_built_inside_and_comes_out_the_same() {
    if !needs(&[Need::Program("git"), Need::Program("gcc"), Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = patient_files(&sandbox);
    // A project of a size that is found in the world, with a history, and something to build.
    let origin = home.path("origin");
    let git = |directory: &Path, arguments: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main"])
            .args(arguments)
            .current_dir(directory)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    fs::create_dir(&origin).unwrap();
    git(&origin, &["init", "-q"]);
    for directory in 0..60 {
        let directory = origin.join(format!("src/part-{directory}"));
        fs::create_dir_all(&directory).unwrap();
        for file in 0..100 {
            let text = format!("/* {file} */ int f{file}(void) {{ return {file}; }}\n");
            fs::write(directory.join(format!("f{file}.c")), text).unwrap();
        }
    }
    fs::write(origin.join("main.c"), "int f7(void); int main(void) { return f7() != 7; }\n")
        .unwrap();
    let script = "#!/bin/sh\nset -e\ngcc -o /tmp/built main.c src/part-3/f7.c\n/tmp/built\n";
    fs::write(origin.join("test.sh"), script).unwrap();
    fs::set_permissions(origin.join("test.sh"), Permissions::from_mode(0o755)).unwrap();
    symlink("src/part-0", origin.join("first")).unwrap();
    git(&origin, &["add", "."]);
    git(&origin, &["commit", "-q", "-m", "all"]);
    git(&home.path(""), &["clone", "-q", "--no-hardlinks", "origin", "clone"]);

    let report = files.copy_in(home.path("clone"), "/tmp/project").unwrap();
    assert!(report.files > 6000, "{report:?}");
    let inside = |script: &str| {
        let mut command = sandbox.shell(script);
        command.current_dir("/tmp/project").env("GIT_OPTIONAL_LOCKS", "0");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(inside("git status --porcelain"), "");
    assert_eq!(inside("git fsck 2>/dev/null; git log --format=%s"), "all\n");
    inside("./test.sh");
    files.copy_out("/tmp/project", home.path("back")).unwrap();
    assert!(same(&home.path("clone"), &home.path("back")));
    git(&home.path("back"), &["diff", "--quiet", "HEAD"]);
}

#[test]
fn archives_are_those_of_tar() {
    if !needs(&[Need::Program("tar")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = patient_files(&sandbox);
    let source = home.path("source");
    everything(&source);
    fs::remove_file(source.join("sparse")).unwrap();
    let before = look_outside(&source);
    let tar = |arguments: &[&str]| {
        let status =
            Command::new("tar").args(arguments).current_dir(home.path("")).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    tar(&["--format=pax", "-C", "source", "-cf", "in.tar", "."]);
    let archive = fs::File::open(home.path("in.tar")).unwrap();
    let report = files.import_tar(archive, "/tmp/t").unwrap();
    assert_eq!((report.files, report.hard_links), (4, 1), "{report:?}");
    assert_eq!(look_inside(&sandbox, "/tmp/t"), before);
    let mut out = Vec::new();
    files.export_tar("/tmp/t", &mut out).unwrap();
    fs::write(home.path("out.tar"), &out).unwrap();
    fs::create_dir(home.path("unpacked")).unwrap();
    tar(&["-C", "unpacked", "-xpf", "out.tar"]);
    assert_eq!(look_outside(&home.path("unpacked")), before);
    assert!(same(&source, &home.path("unpacked")));

    // Into what is there, which keeps its own mode.
    shell(&sandbox, "chmod 1777 /tmp");
    files.import_tar(fs::File::open(home.path("in.tar")).unwrap(), "/tmp").unwrap();
    assert_eq!(shell(&sandbox, "stat -c %a /tmp; cat /tmp/dir/file"), "1777\ncontent");
    // What is cut or leads out is an error, as is an end of the disk that it is written to.
    let cut = files.import_tar(&out[..out.len() / 2], "/tmp/cut").unwrap_err();
    assert!(matches!(cut, Error::Invalid { .. }), "{cut}");
    let mut hostile = home.path("hostile");
    fs::create_dir(&hostile).unwrap();
    fs::write(home.path("victim"), b"x").unwrap();
    hostile.push("a");
    fs::write(&hostile, b"x").unwrap();
    tar(&["-P", "--transform", "s,hostile/a,../../etc/evil,", "-cf", "evil.tar", "hostile/a"]);
    let evil = fs::File::open(home.path("evil.tar")).unwrap();
    let error = files.import_tar(evil, "/tmp/t").unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(!files.exists("/etc/evil").unwrap());
    let error = files.export_tar("/tmp/t", Full).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
    fs::set_permissions(source.join("read only"), Permissions::from_mode(0o755)).unwrap();
    let unpacked = home.path("unpacked/read only");
    fs::set_permissions(unpacked, Permissions::from_mode(0o755)).unwrap();
}

/// A disk that is.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn copies_end_at_their_limits() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(
        &sandbox,
        "mkdir /tmp/t; cd /tmp/t; for i in $(seq 100); do echo $i > $i; done; head -c 1M /dev/zero > m",
    );
    let mut files = sandbox.files();
    files.limit(1 << 20);
    let too_large = |result: adl_runtime::Result<adl_runtime::CopyReport>| {
        matches!(result, Err(Error::TooLarge { .. }))
    };
    assert!(too_large(files.copy_out("/tmp/t", home.path("out"))));
    assert!(too_large(files.export_tar("/tmp/t", io::sink())));
    files.limit((1 << 20) + 1000).entry_limit(101);
    assert!(too_large(files.copy_out("/tmp/t", home.path("out"))));
    files.entry_limit(102);
    files.copy_out("/tmp/t", home.path("out")).unwrap();
    assert!(too_large(files.clone().entry_limit(101).copy_in(home.path("out"), "/tmp/in")));
    assert!(too_large(files.clone().limit(1 << 20).copy_in(home.path("out"), "/tmp/in")));
    files.copy_in(home.path("out"), "/tmp/in").unwrap();

    // One that does not come to an end by itself.
    let mut writer = sandbox.shell("cd /tmp/t; while :; do head -c 1G /dev/zero > big; done");
    let mut writer = writer.kill_on_drop(true).spawn().unwrap();
    let timeout = Duration::from_millis(300);
    let mut files = sandbox.files();
    files.timeout(timeout);
    let begin = Instant::now();
    let slow = files.import_tar(Endless(begin), "/tmp/endless");
    assert!(slow.is_err());
    let took = begin.elapsed();
    assert!(took < timeout + at_most(Duration::from_millis(50)), "{took:?}");
    assert!(matches!(slow, Err(Error::TimedOut { after, .. }) if after == timeout), "{slow:?}");
    writer.kill().unwrap();
    assert_eq!(shell(&sandbox, "ls /tmp/in | wc -l"), "101\n");
}

/// The archive of one file that goes on.
struct Endless(Instant);

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The first block is a header, and what follows is content.
        let mut header = [0_u8; 512];
        header[..1].copy_from_slice(b"f");
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(b"70000000000");
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        if self.0.elapsed() < Duration::from_secs(60) && buffer.len() == 512 {
            buffer.copy_from_slice(&header);
        } else {
            buffer.fill(1);
        }
        Ok(buffer.len())
    }
}

#[test]
fn the_host_is_read_and_written_as_the_caller_may_and_nothing_else_is_touched() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = patient_files(&sandbox);
    fs::create_dir_all(home.path("canary/d")).unwrap();
    fs::write(home.path("canary/f"), b"untouched").unwrap();
    let before = fingerprint(&home.path("canary"));
    // A copy that has put links to it where the next one goes.
    shell(
        &sandbox,
        format!(
            "mkdir -p /tmp/t/sub; cd /tmp/t; ln -s {0} link; ln -s {0}/f file; ln -s {0} sub/deep",
            home.path("canary").display()
        ),
    );
    files.copy_out("/tmp/t", home.path("out")).unwrap();
    assert_eq!(fs::read_link(home.path("out/link")).unwrap(), home.path("canary"));
    shell(
        &sandbox,
        "cd /tmp/t; rm link file sub/deep; mkdir link sub/deep; echo evil > link/f; echo evil > file
         echo evil > sub/deep/f; mkdir link/d; chmod 777 link",
    );
    let error = files.copy_out("/tmp/t", home.path("out")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    shell(&sandbox, "cd /tmp/t; rm -r link sub/deep");
    files.copy_out("/tmp/t", home.path("out")).unwrap();
    assert_eq!(fs::read(home.path("out/file")).unwrap(), b"evil\n");
    assert_eq!(fingerprint(&home.path("canary")), before);

    // A target that is a link is not followed; missing ones are told.
    symlink(home.path("canary"), home.path("to canary")).unwrap();
    assert!(matches!(files.copy_out("/tmp/t", home.path("to canary")), Err(Error::Io { .. })));
    symlink(home.path("canary/f"), home.path("to file")).unwrap();
    assert!(matches!(files.copy_out("/tmp/t/file", home.path("to file")), Err(Error::Io { .. })));
    assert!(matches!(files.copy_out("/tmp/t", home.path("no/where")), Err(Error::Io { .. })));
    assert!(matches!(files.copy_in(home.path("nothing"), "/tmp/x"), Err(Error::Io { .. })));
    assert!(matches!(files.copy_out("/nothing", home.path("x")), Err(Error::File { .. })));
    assert!(!home.path("x").exists());
    assert_eq!(fingerprint(&home.path("canary")), before);
}

#[test]
fn the_command_line_copies_in_before_and_out_after() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let (source, out) = (home.path("source"), home.path("out"));
    fs::create_dir_all(source.join("d")).unwrap();
    fs::write(source.join("d/f"), b"content\n").unwrap();
    fs::create_dir(&out).unwrap();
    let pair = |from: &Path, to: &str| format!("{}:{to}", from.display());
    let run = |options: &[&str], script: &str| {
        let mut command = adl_command(&home.state());
        command.arg("run").args(options).args(["--", "sh", "-c", script]).output().unwrap()
    };
    let copy_out = format!("/work:{}/", out.display());
    // The command fails; its results are wanted all the more.
    let script = "cat /work/in/d/f; echo result > /work/result; mkfifo /work/p; exit 7";
    let copy_in = pair(&source, "/work/in");
    let output = run(&["--copy-in", &copy_in, "--copy-out", &copy_out], script);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(output.stdout, b"content\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not copied: \"/work/p\", Fifo"));
    assert_eq!(fs::read(out.join("work/result")).unwrap(), b"result\n");
    assert_eq!(fs::read(out.join("work/in/d/f")).unwrap(), b"content\n");

    let copy_in = pair(&source, "/tmp/");
    let output = run(
        &[
            "--copy-in",
            &copy_in,
            "--timeout",
            "0.3",
            "--copy-out",
            &format!("/tmp/source:{}", out.join("late").display()),
        ],
        "touch /tmp/source/late; sleep 100",
    );
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert!(out.join("late/late").exists());
    let missing = format!("/nothing:{}", out.join("x").display());
    let output = run(&["--copy-out", &missing], "true");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"/nothing\""), "{output:?}");
    for wrong in [
        ["--copy-in", "no-colon"],
        ["--copy-out", ":/x"],
        ["--copy-in", "/x:"],
        ["--copy-in", "/:/x/"],
    ] {
        let output = run(&wrong, "true");
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(wrong[0]), "{output:?}");
    }
}

#[test]
fn a_copy_out_to_a_directory_takes_its_old_name_there() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    fs::create_dir_all(home.path("out/taken")).unwrap();
    fs::create_dir(home.path("secret")).unwrap();
    std::os::unix::fs::symlink("../secret", home.path("out/link")).unwrap();
    let run = |from: &str, to: &str| {
        let mut adl = adl_command(&home.state());
        adl.current_dir(home.path("out")).args(["run", "--copy-out", &format!("{from}:{to}")]);
        let script = "mkdir /d; echo f >/d/f; echo f >/f; ln -s /f /l; ln -s /d /m; mkfifo /p; \
                      ln /f /taken";
        adl.args(["--", "sh", "-c", script]).output().unwrap()
    };
    for (from, to, made) in [
        ("/f", ".", "f"),
        ("/f", "./", "f"),
        ("/f", "taken", "taken/f"),
        ("/f", "taken/", "taken/f"),
        ("/f", "taken/g", "taken/g"),
        ("/f", "../secret/../out", "f"),
        // In the place of a directory there is none.
        ("/taken", ".", "taken/taken"),
        // As a directory that is there is added to.
        ("/d", ".", "f"),
        ("/d", "taken", "taken/f"),
        ("/m", "taken", "taken/f"),
        ("/l", ".", "l"),
    ] {
        if to == "." && from == "/taken" {
            // It would be called as the directory is.
            assert_eq!(run(from, to).status.code(), Some(125));
            continue;
        }
        let output = run(from, to);
        assert_eq!(output.status.code(), Some(0), "{from} {to}: {output:?}");
        let made = home.path("out").join(made);
        assert_eq!(fs::read_to_string(&made).unwrap(), "f\n", "{from} {to}");
        fs::remove_file(made).unwrap();
    }
    // Through a link, only where the caller has made it: as the path of a directory.
    let output = run("/f", "link");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(fs::read_to_string(home.path("secret/f")).unwrap(), "f\n");
    // What has nothing to be copied is no copy.
    let output = run("/p", "p");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Fifo"), "{output:?}");
    for (option, value) in [("--copy-out", "/f:-"), ("--copy-in", "-:/f")] {
        let mut adl = adl_command(&home.state());
        let output = adl.args(["run", option, value, "--", "echo", "ran"]).output().unwrap();
        assert_eq!((output.status.code(), &*output.stdout), (Some(125), &b""[..]), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("tar -cf -"), "{output:?}");
    }
}

#[test]
fn a_copy_removes_nothing_for_a_directory_and_no_file_for_its_own_name() {
    if !needs(&[Need::Program("tar")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = patient_files(&sandbox);
    shell(&sandbox, "mkdir /r /usr-lib; echo plain > /plain; ln -s usr-lib /r/lib; ln -s r /link");
    let source = home.path("source");
    fs::create_dir_all(source.join("lib")).unwrap();
    fs::write(source.join("lib/file"), "x").unwrap();
    for (to, at) in [("/r", "/r/lib"), ("/plain", "/plain")] {
        match files.copy_in(&source, to) {
            Err(Error::File { path, source, .. }) => {
                assert_eq!(path, Path::new(at));
                assert_eq!(source.raw_os_error(), Some(nix::errno::Errno::ENOTDIR as i32));
            }
            other => panic!("{to}: {other:?}"),
        }
    }
    assert_eq!(shell(&sandbox, "cat /plain; readlink /r/lib; ls /usr-lib"), "plain\nusr-lib\n");
    // The top may be a link to one, as any path.
    fs::remove_dir_all(source.join("lib")).unwrap();
    fs::write(source.join("file"), "x").unwrap();
    files.copy_in(&source, "/link").unwrap();
    assert_eq!(shell(&sandbox, "readlink /link; ls /r"), "r\nfile\nlib\n");

    // As GNU tar packs a file that it is told of twice.
    let packed = std::process::Command::new("tar")
        .args(["-cf", "-", "file", "file"])
        .current_dir(&source)
        .output()
        .unwrap();
    assert!(packed.status.success());
    files.import_tar(packed.stdout.as_slice(), "/twice").unwrap();
    assert_eq!(shell(&sandbox, "cat /twice/file"), "x");

    // A file of /proc has no content to copy.
    let copied = files.copy_out("/proc/meminfo", home.path("meminfo"));
    assert!(matches!(copied, Err(Error::NotRegular { .. })), "{copied:?}");
    assert!(!home.path("meminfo").exists());
    let copied = files.copy_in("/proc/meminfo", "/meminfo");
    assert!(matches!(copied, Err(Error::Invalid { .. })), "{copied:?}");
    assert!(!files.exists("/meminfo").unwrap());
}

#[test]
fn paths_of_the_command_line_are_relative_to_its_directory() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    fs::write(home.path("in"), "content").unwrap();
    let mut adl = crate::harness::adl_command(&home.state());
    adl.args(["run", "-w", "/tmp", "--copy-in"]);
    adl.arg(format!("{}:in", home.path("in").display())).arg("--copy-out");
    adl.arg(format!("out:{}", home.path("out").display()));
    let output = adl.args(["--", "cp", "in", "out"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(home.path("out")).unwrap(), "content");
}
