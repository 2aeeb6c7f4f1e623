//! Commands do inside what they do outside, and what they change stays inside.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use adl_runtime::{Config, Image, Scope, Stdio, Upper};

use crate::harness::{Home, Need, OrdinaryUser, at_most, needs, shell};
use crate::{census, images};

const COMPILE: &str = "cd /tmp && printf '#include <stdio.h>\\nint main(void)\
    { puts(\"compiled\"); return 0; }\\n' > a.c && gcc -o a a.c && ./a";

#[test]
fn the_host_image_runs_python() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let output = sandbox.command("python3").args(["-c", "print(6 * 7)"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"42\n");
}

#[test]
fn the_host_image_runs_git() {
    if !needs(&[Need::Program("git")]) {
        return;
    }
    let home = Home::new();
    let output = home.sandbox().command("git").arg("--version").output().unwrap();
    assert!(output.stdout.starts_with(b"git version "), "{output:?}");
}

#[test]
fn the_host_image_compiles_and_runs_a_program() {
    if !needs(&[Need::Program("gcc")]) {
        return;
    }
    let home = Home::new();
    assert_eq!(shell(&home.sandbox(), COMPILE), "compiled\n");
}

#[test]
fn the_host_image_can_be_searched_to_its_end() {
    if !needs(&[Need::Program("find")]) {
        return;
    }
    let home = Home::new();
    let count = shell(&home.sandbox(), "set -o pipefail; find / -xdev | wc -l");
    assert!(count.trim().parse::<u32>().unwrap() > 20, "{count}");
}

#[test]
fn the_host_image_shows_nothing_of_the_hosts_data() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    assert_eq!(
        shell(&sandbox, "ls -A /home /root /var/lib /mnt /srv /opt"),
        "/home:\n\n/mnt:\n\n/opt:\n\n/root:\n\n/srv:\n\n/var/lib:\n"
    );
    let passwd = shell(&sandbox, "cat /etc/passwd; ls /etc");
    assert_eq!(passwd.lines().filter(|line| line.contains(':')).count(), 2, "{passwd}");
    assert!(!passwd.contains("shadow"), "{passwd}");
    let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
    assert_ne!(shell(&sandbox, "uname -n").trim(), host.trim());
}

#[test]
fn an_ordinary_user_runs_the_same() {
    if !needs(&[]) {
        return;
    }
    let user = OrdinaryUser::new();
    assert_eq!(user.run(&["echo", "hello"]), "hello\n");
    assert_eq!(user.run(&["id", "-u"]), "0\n");
    let count = user.run(&["sh", "-ec", "find / -xdev > /tmp/found; wc -l < /tmp/found"]);
    assert!(count.trim().parse::<u32>().unwrap() > 20, "{count}");
}

#[test]
fn programs_run_for_an_ordinary_user_too() {
    if !needs(&[Need::Program("python3"), Need::Program("git"), Need::Program("gcc")]) {
        return;
    }
    let user = OrdinaryUser::new();
    assert_eq!(user.run(&["python3", "-c", "print(6 * 7)"]), "42\n");
    assert!(user.run(&["git", "--version"]).starts_with("git version "));
    assert_eq!(user.run(&["sh", "-c", COMPILE]), "compiled\n");
}

#[test]
fn a_debian_directory_runs_and_no_write_reaches_it() {
    if !needs(&[Need::Debian]) {
        return;
    }
    let debian = images::debian().unwrap();
    let before = images::fingerprint(&debian);

    let home = Home::new();
    let sandbox = home.sandbox_of(Image::directory(&debian));
    assert!(shell(&sandbox, "apt-get --version").starts_with("apt "));
    let installed: u32 = shell(&sandbox, "dpkg -l | wc -l").trim().parse().unwrap();
    assert!(installed > 50, "{installed} lines");
    assert_eq!(shell(&sandbox, "python3 -c 'print(6 * 7)'"), "42\n");

    if nix::unistd::geteuid().is_root() {
        // Someone else's files can be written only with the ids that they have.
        shell(
            &sandbox,
            "set -e; echo new > /etc/new; echo changed >> /etc/debian_version; rm /etc/issue
             chmod 0600 /etc/hostname || chmod 0600 /etc/passwd; chown 1000:1000 /etc/group
             rm -r /usr/share/doc; mv /usr/share/man /usr/share/moved; mkdir -p /a/b/c
             touch -d @0 /etc/profile; ln -s /etc /a/link; mkfifo /a/fifo
             cat /etc/new; test ! -e /etc/issue; test ! -e /usr/share/doc",
        );
        // A second one of the same image starts from the image.
        let other = home.sandbox_of(Image::directory(&debian));
        shell(&other, "test -e /etc/issue; test -d /usr/share/doc && test ! -e /etc/new");
    }
    drop(sandbox);
    home.assert_settled();
    let after = images::fingerprint(&debian);
    let changed: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).take(5).collect();
    assert!(before == after, "the image has changed: {changed:?}");
}

#[test]
fn what_a_sandbox_writes_is_its_own() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let image = home.path("image");
    images::small(&image);
    fs::write(image.join("kept"), "from the image\n").unwrap();
    fs::create_dir(image.join("directory")).unwrap();
    fs::write(image.join("directory/file"), "").unwrap();
    let before = images::fingerprint(&image);
    for upper in [Upper::default(), Upper::Memory { size: 16 << 20 }] {
        let config = || Config { image: Image::directory(&image), upper, ..home.config() };
        let sandbox = adl_runtime::Sandbox::create(config()).unwrap();
        let other = adl_runtime::Sandbox::create(config()).unwrap();
        assert_eq!(
            shell(&sandbox, "cat kept; echo more >> kept; cat kept; echo new > new"),
            "from the image\nfrom the image\nmore\n"
        );
        assert_eq!(
            shell(&sandbox, "set -e; > directory/other; cat new; ls directory"),
            "new\nfile\nother\n"
        );
        assert_eq!(
            shell(&other, "cat kept; ls directory; test ! -e new"),
            "from the image\nfile\n"
        );
        sandbox.delete().unwrap();
    }
    assert_eq!(images::fingerprint(&image), before);
}

#[test]
fn an_upper_in_memory_is_bounded() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let upper = Upper::Memory { size: 4 << 20 };
    let sandbox = adl_runtime::Sandbox::create(Config { upper, ..home.config() }).unwrap();
    let output = sandbox.shell("head -c 8000000 /dev/zero > /root/big").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("No space left on device"), "{stderr}");
    // Control: what fits, fits.
    shell(&sandbox, "rm /root/big; head -c 1000000 /dev/zero > /root/small");
}

#[test]
fn output_status_environment_and_directory_are_those_of_the_command() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut command = sandbox.command("/bin/sh");
    command.args(["-c", "echo $A; pwd; echo $HOME$UNSET; echo err >&2; exit 7"]);
    let output = command.env("A", "b c").current_dir("/tmp").output().unwrap();
    assert_eq!(output.stdout, b"b c\n/tmp\n/root\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!((output.status.code(), output.status.signal()), (Some(7), None));
    let status = sandbox.shell("kill -TERM $$").status().unwrap();
    assert_eq!((status.code(), status.signal()), (None, Some(15)));
    // Nothing of the caller's environment is inside.
    let environment = sandbox.command("env").output().unwrap().stdout;
    let environment = String::from_utf8(environment).unwrap();
    let mut names: Vec<_> =
        environment.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    names.sort_unstable();
    assert_eq!(names, ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"], "{environment}");
}

#[test]
fn arguments_reach_the_program_byte_for_byte() {
    if !needs(&[]) {
        return;
    }
    use std::os::unix::ffi::OsStrExt;
    let home = Home::new();
    let sandbox = home.sandbox();
    let odd = std::ffi::OsStr::from_bytes(b"\xff\n $(id) ' \" \\ *");
    let mut command = sandbox.command("printf");
    let output = command.arg("[%s]").args([odd, "".as_ref(), "-x".as_ref()]).output().unwrap();
    assert_eq!(output.stdout, [b"[", odd.as_bytes(), b"][][-x]"].concat());
}

#[test]
fn a_large_output_is_kept_whole_and_a_larger_one_at_both_ends() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let output = sandbox.shell("seq 1000000; echo end >&2").output().unwrap();
    let expected: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert!(output.stdout == expected.as_bytes(), "{} bytes", output.stdout.len());
    assert_eq!((output.stdout_dropped, &*output.stderr), (0, &b"end\n"[..]));
    let output = sandbox.shell("echo first; head -c 40m /dev/zero; echo last").output().unwrap();
    assert!(output.stdout.starts_with(b"first\n") && output.stdout.ends_with(b"last\n"));
    let all = 6 + (40 << 20) + 5;
    assert_eq!(output.stdout.len() as u64 + output.stdout_dropped, all);
    assert!(output.stdout_dropped > 0);
}

#[test]
fn a_background_process_neither_delays_the_result_nor_loses_a_byte() {
    if !needs(&[Need::Program("pgrep")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let begin = Instant::now();
    let output = sandbox.shell("sleep 1000 & yes > /dev/null & echo done").output().unwrap();
    assert_eq!(output.stdout, b"done\n");
    assert!(output.stdio_open);
    assert!(begin.elapsed() < at_most(Duration::from_secs(5)), "{:?}", begin.elapsed());
    // It lives on, and the next command sees it.
    assert_eq!(shell(&sandbox, "pgrep -x sleep | wc -l").trim(), "1");
    let output = sandbox.command("true").output().unwrap();
    assert!(!output.stdio_open);
}

#[test]
fn a_child_can_be_talked_to_and_signalled() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut cat = sandbox.command("cat");
    let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
    assert_eq!(child.try_wait().unwrap(), None);
    assert!(child.wait().unwrap().success());

    let mut child = sandbox.command("sleep").arg("1000").spawn().unwrap();
    child.signal(15, Scope::Process).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    // To one that has ended, it is no error, and no other process is hit.
    child.signal(9, Scope::Group).unwrap();

    let mut group = sandbox.shell("sleep 1000 & sleep 1000 & wait").spawn().unwrap();
    group.kill().unwrap();
    assert_eq!(group.wait().unwrap().signal(), Some(9));
    let gone = || census::tree(sandbox.init_pid()).len() == 1;
    assert!(crate::harness::within(Duration::from_secs(5), gone));
}

#[test]
fn a_file_of_the_callers_can_be_a_stream() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let (input, output) = (home.path("in"), home.path("out"));
    fs::write(&input, "from a file").unwrap();
    let mut command = sandbox.shell("cat; echo err >&2");
    command.stdin(fs::File::open(&input).unwrap());
    command.stdout(fs::File::create(&output).unwrap()).stderr(Stdio::same_as_stdout());
    assert!(command.status().unwrap().success());
    assert_eq!(fs::read_to_string(output).unwrap(), "from a fileerr\n");
    // But not a directory: it would lead out.
    let directory = OwnedFd::from(fs::File::open("/").unwrap());
    let refused = sandbox.command("true").stdin(directory).status();
    assert!(matches!(refused, Err(adl_runtime::Error::Invalid { .. })), "{refused:?}");
}

#[test]
fn a_directory_image_without_proc_and_dev_works() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let image: PathBuf = home.path("image");
    images::small(&image);
    let sandbox = home.sandbox_of(Image::directory(&image));
    assert_eq!(shell(&sandbox, "read name < /proc/1/comm; echo $name"), "adl-init\n");
    assert_eq!(shell(&sandbox, "echo gone > /dev/null; ls /dev/zero"), "/dev/zero\n");
    // It has no bash, and no /tmp either; in /etc are files of the sandbox's own.
    assert_eq!(shell(&sandbox, "ls / | cat"), "bin\ndev\netc\nlib\nlib64\nproc\n");
    assert!(!image.join("proc").exists());
}

#[test]
fn sixty_four_jobs_at_once_from_sixteen_threads_are_never_mixed() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let all_run = Barrier::new(16);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (sandbox, all_run) = (&sandbox, &all_run);
            scope.spawn(move || {
                let start = |job: u32| {
                    let nonce = format!("{thread}-{job}-{}", thread * 7919 + job * 104_729);
                    let mut cat = sandbox.shell("cat; cat >&2 <<< $0; exit $1");
                    cat.arg(&nonce).arg((job + thread).to_string());
                    cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                    (nonce, job + thread, cat.spawn().unwrap())
                };
                let jobs: Vec<_> = (0..4).map(start).collect();
                all_run.wait();
                for (nonce, code, mut job) in jobs {
                    job.stdin.as_mut().unwrap().write_all(nonce.as_bytes()).unwrap();
                    let output = job.wait_with_output().unwrap();
                    assert_eq!(output.stdout, nonce.as_bytes());
                    assert_eq!(output.stderr, format!("{nonce}\n").as_bytes());
                    assert_eq!(output.status.code().map(u32::from), Some(code));
                }
            });
        }
    });
}

#[test]
fn sandboxes_are_made_from_many_threads_at_once() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let home = &home;
            scope.spawn(move || {
                for round in 0..5 {
                    let text = format!("{thread}.{round}");
                    let sandbox = home.sandbox();
                    let output = sandbox.command("echo").arg(&text).output().unwrap();
                    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), text);
                    sandbox.delete().unwrap();
                }
            });
        }
    });
}
