//! Bad input gets an error that says what it is about, and leaves nothing behind.
//!
//! That nothing is left is what each test's [`Home`] makes sure of at its end, and
//! [`assert_unharmed`] of processes.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use adl_runtime::{Command, Config, Error, Image, Sandbox, Stage};

use crate::harness::{Home, Need, OrdinaryUser, needs, shell, stderr, within};
use crate::{census, images};

/// Makes sure that a sandbox still works, and that only its init runs in it.
#[track_caller]
fn assert_unharmed(sandbox: &Sandbox) {
    assert_eq!(shell(sandbox, "echo alive"), "alive\n");
    // What failed to start tells so before it ends.
    let tree = || census::tree(sandbox.init_pid());
    assert!(within(Duration::from_secs(5), || tree().len() == 1), "{:?}", tree());
}

/// Tries to make a sandbox that can't be, and makes sure that nothing of it is left.
#[track_caller]
fn refused(home: &Home, config: Config) -> Error {
    let error = Sandbox::create(config).expect_err("an error");
    assert_eq!(home.left(), [""; 0]);
    error
}

/// Tries to run what can't be, in both ways of running; the stage and kind of the failure.
#[track_caller]
fn start_error(sandbox: &Sandbox, mut command: Command) -> (Stage, ErrorKind, Option<i32>) {
    let of = |error: Error| match error {
        Error::Start { stage, source, .. } => (stage, source.kind(), source.raw_os_error()),
        other => panic!("{other:?}"),
    };
    let output = of(command.output().expect_err("an error"));
    let spawn = of(command.spawn().expect_err("an error"));
    assert_eq!(output, spawn);
    assert_unharmed(sandbox);
    output
}

#[track_caller]
fn assert_invalid(sandbox: &Sandbox, command: &mut Command, about: &str) {
    match command.output() {
        Err(Error::Invalid { what, .. }) if what == about => {}
        other => panic!("{about}: {other:?}"),
    }
    assert_unharmed(sandbox);
}

#[test]
fn an_image_that_is_missing_or_no_directory_is_named() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let file = home.path("file");
    fs::write(&file, "").unwrap();
    let missing = home.path("missing");
    for (image, kind) in [(&missing, ErrorKind::NotFound), (&file, ErrorKind::NotADirectory)] {
        match refused(&home, Config { image: Image::directory(image), ..home.config() }) {
            Error::Io { path, source, .. } if path == *image && source.kind() == kind => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_image_without_the_program_is_told_from_a_missing_directory() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let image = home.path("image");
    images::small(&image);
    let sandbox = home.sandbox_of(Image::directory(&image));
    let not_found = |stage| (stage, ErrorKind::NotFound, Some(2));
    for program in ["/bin/absent", "absent", "bin/absent", "/absent/sh"] {
        assert_eq!(start_error(&sandbox, sandbox.command(program)), not_found(Stage::Exec));
    }
    let mut command = sandbox.command("/bin/sh");
    command.current_dir("/absent");
    assert_eq!(start_error(&sandbox, command), not_found(Stage::Directory));
    let mut command = sandbox.command("/bin/sh");
    command.current_dir("/bin/sh");
    let not_a_directory = (Stage::Directory, ErrorKind::NotADirectory, Some(20));
    assert_eq!(start_error(&sandbox, command), not_a_directory);
}

#[test]
fn an_empty_image_makes_a_sandbox_in_which_nothing_can_be_run() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let image = home.path("image");
    fs::create_dir(&image).unwrap();
    let sandbox = home.sandbox_of(Image::directory(&image));
    for _ in 0..2 {
        match sandbox.shell("true").output() {
            Err(Error::Start { stage: Stage::Exec, source, .. }) => {
                assert_eq!(source.kind(), ErrorKind::NotFound);
            }
            other => panic!("{other:?}"),
        }
    }
    sandbox.delete().unwrap();
}

#[test]
fn what_can_not_be_executed_says_why() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(
        &sandbox,
        "cd /tmp; echo 'echo hi' > text; chmod 755 text; echo > plain; : > empty; chmod 755 empty
         printf '#!/absent\\n' > script; printf '#!/tmp/loop\\n' > loop; chmod 755 script loop
         printf '\\177ELF' > broken; chmod 755 broken; mkfifo fifo; chmod 755 fifo",
    );
    let denied = (Stage::Exec, ErrorKind::PermissionDenied, Some(13));
    for (program, expected) in
        [("/tmp", denied), ("/tmp/plain", denied), ("/tmp/fifo", denied), ("/dev/null", denied)]
    {
        assert_eq!(start_error(&sandbox, sandbox.command(program)), expected, "{program}");
    }
    for (program, errno) in [
        ("/tmp/text", 8),
        ("/tmp/empty", 8),
        ("/tmp/broken", 8),
        ("/tmp/script", 2),
        ("/tmp/loop", 40),
    ] {
        let (stage, _, actual) = start_error(&sandbox, sandbox.command(program));
        assert_eq!((stage, actual), (Stage::Exec, Some(errno)), "{program}");
    }
}

#[test]
fn names_that_are_no_file_names_are_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let long = "a".repeat(65);
    for name in
        ["", "a/b", "/", "..", ".", "../x", ".hidden", "-x", "a b", "a\0b", "a\nb", "é", &long]
    {
        let named = Config { name: Some(name.to_owned()), ..home.config() };
        let hosted = Config { hostname: Some(name.to_owned()), ..home.config() };
        for (config, about) in [(named, "name"), (hosted, "hostname")] {
            match refused(&home, config) {
                Error::Invalid { what, .. } if what == about => {}
                other => panic!("{name:?}: {other:?}"),
            }
        }
    }
    // Control.
    let name = "a".repeat(64);
    let config = Config { name: Some(name.clone()), ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    assert_eq!(shell(&sandbox, "uname -n"), format!("{name}\n"));
}

#[test]
fn a_name_is_taken_until_its_sandbox_is_deleted() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let config = || Config { name: Some("taken".to_owned()), ..home.config() };
    let first = Sandbox::create(config()).unwrap();
    match Sandbox::create(config()) {
        Err(Error::NameInUse { name }) => assert_eq!(name, "taken"),
        other => panic!("{other:?}"),
    }
    assert_unharmed(&first);
    shell(&first, "echo > /root/of-the-first");
    first.delete().unwrap();
    let second = Sandbox::create(config()).unwrap();
    shell(&second, "test ! -e /root/of-the-first");
}

#[test]
fn a_nul_byte_is_refused_wherever_it_is() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    assert_invalid(&sandbox, sandbox.command("echo").arg("a\0b"), "argument");
    assert_invalid(&sandbox, &mut sandbox.command("ec\0ho"), "program");
    assert_invalid(&sandbox, sandbox.command("echo").env("A", "b\0c"), "environment");
    assert_invalid(&sandbox, sandbox.command("echo").env("A\0B", "c"), "environment");
    assert_invalid(&sandbox, sandbox.command("echo").current_dir("/t\0mp"), "directory");
    assert_invalid(&sandbox, sandbox.command("echo").env("A=B", "c"), "environment");
    assert_invalid(&sandbox, sandbox.command("echo").env("", "c"), "environment");
}

#[test]
fn an_empty_program_is_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    match sandbox.command("").arg("a").output() {
        Err(Error::Invalid { .. }) => {}
        Err(Error::Start { stage: Stage::Exec, source, .. }) => {
            assert_eq!(source.kind(), ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
    assert_unharmed(&sandbox);
}

#[test]
fn the_id_that_means_no_change_is_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    assert_invalid(&sandbox, sandbox.command("id").uid(u32::MAX), "user");
    assert_invalid(&sandbox, sandbox.command("id").gid(u32::MAX), "user");
    // An id that the sandbox does not have is no way to root either. That can be told before
    // anything is asked of init.
    let output = sandbox.command("id").uid(1 << 20).output();
    assert!(matches!(output, Err(Error::Unsupported { .. })), "{output:?}");
    assert_unharmed(&sandbox);
}

#[test]
fn more_arguments_than_the_kernel_takes_are_an_error_and_no_end() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let too_big = (Stage::Exec, ErrorKind::ArgumentListTooLong, Some(7));
    let hundred = "x".repeat(99);
    let many = |count: usize| {
        let mut command = sandbox.command("true");
        command.args(std::iter::repeat_n(&hundred, count));
        command
    };
    // 3 MiB in arguments of 100 bytes, then in short ones, then 200 KiB and 3 MiB in one.
    assert_eq!(start_error(&sandbox, many((3 << 20) / 100)), too_big);
    let mut command = sandbox.command("true");
    command.args(std::iter::repeat_n("x", 400_000));
    assert_eq!(start_error(&sandbox, command), too_big);
    for length in [200 << 10, 3 << 20] {
        let mut command = sandbox.command("true");
        command.arg("x".repeat(length));
        assert_eq!(start_error(&sandbox, command), too_big);
        let mut command = sandbox.command("true");
        command.env("X", "x".repeat(length));
        assert_eq!(start_error(&sandbox, command), too_big);
    }
    // More than a frame holds, and more than a list does.
    for (length, count) in [(9 << 20, 1), (0, 600_000)] {
        let mut command = sandbox.command("true");
        command.args(std::iter::repeat_n("x".repeat(length), count));
        let error = command.output().expect_err("an error");
        let typed =
            matches!(error, Error::Invalid { .. } | Error::Start { stage: Stage::Exec, .. });
        assert!(typed, "{error:?}");
        assert_unharmed(&sandbox);
    }
    // Control: a megabyte is fine.
    assert!(many((1 << 20) / 100).status().unwrap().success());
}

#[test]
fn a_path_may_hold_any_byte() {
    if !needs(&[]) {
        return;
    }
    let names: [&[u8]; 6] = [
        b"a:b,c",
        b"new\nline",
        b"\xff\xfe",
        b"back\\slash",
        b"quote\"'",
        b"=lowerdir=,upperdir= ",
    ];
    for name in names {
        let home = Home::new();
        let odd = home.path(OsStr::from_bytes(name));
        let image = odd.join("image");
        images::small(&image);
        fs::write(image.join("file"), "found\n").unwrap();
        let sandbox = home.sandbox_of(Image::directory(&image));
        assert_eq!(shell(&sandbox, "cat file; echo > new"), "found\n", "{odd:?}");
        assert!(!image.join("new").exists());
        sandbox.delete().unwrap();
        // Where the writes go may have such a name, too.
        let state_directory = Some(odd.join("state"));
        let sandbox = Sandbox::create(Config { state_directory, ..Config::default() }).unwrap();
        shell(&sandbox, "echo > /root/new");
        sandbox.delete().unwrap();
        adl_runtime::finish_removals();
        assert_eq!(fs::read_dir(odd.join("state/sandboxes")).unwrap().count(), 0);
    }
}

#[test]
fn a_relative_image_is_found_from_the_callers_directory() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    images::small(&home.path("image"));
    let mut adl = crate::harness::adl_command(&home.state());
    adl.args(["run", "--image", "./image", "sh", "-c", "echo hi"]).current_dir(home.path(""));
    assert_eq!(crate::harness::succeeds(&mut adl), "hi\n");
}

#[test]
fn a_state_directory_that_others_can_enter_is_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    fs::create_dir(home.state()).unwrap();
    fs::set_permissions(home.state(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = refused(&home, home.config());
    assert!(matches!(error, Error::Invalid { what: "state directory", .. }), "{error:?}");
}

#[test]
fn where_namespaces_are_refused_the_error_names_the_remedy() {
    if !needs(&[Need::Program("unshare")]) {
        return;
    }
    let user = OrdinaryUser::new();
    // In a user namespace, in which no further one may be made.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" run -- true";
    let mut command = user.command("unshare");
    command.args(["--user", "--map-current-user", "--keep-caps", "sh", "-c", script]);
    let output = command.arg(user.adl()).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(stderr(&output).contains("user.max_user_namespaces"), "{}", stderr(&output));
    // Control: without that, it works.
    assert_eq!(user.run(&["echo", "hi"]), "hi\n");
}

#[test]
fn who_is_root_of_a_user_namespace_only_is_told_so_or_served() {
    if !needs(&[Need::Program("unshare")]) {
        return;
    }
    let user = OrdinaryUser::new();
    for refuse in ["true", "echo 0 > /proc/sys/user/max_user_namespaces"] {
        let script = format!("{refuse} && exec \"$0\" run -- echo served");
        let mut command = user.command("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c", &script]).arg(user.adl());
        let output = command.output().unwrap();
        let told = stderr(&output);
        let served = output.stdout == b"served\n";
        assert!(served || told.contains("is not available here"), "{refuse}: {told}");
    }
}
