//! What the host image shows of the host: what any user there may read.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use adl_runtime::{Config, HostImage, Network, Sandbox};

use crate::harness::{Home, Need, OrdinaryUser, needs, repository, shell, succeeds};
use crate::{helper, images};

/// Makes the root of a machine of one's own, with few programs, and becomes what is called there.
/// Its processes, devices and ids are those of this one.
const ENTER: &str = r#"
    set -e
    root=$1 tests=$2
    shift 2
    mount --bind "$root" "$root"
    cd "$root"
    for place in dev proc run sys; do
        mkdir $place
        mount --rbind /$place $place
    done
    mkdir -p ".${tests%/*}"
    : > ".$tests"
    mount --bind "$tests" ".$tests"
    mkdir outside
    pivot_root . outside
    cd /
    exec "$@""#;

/// Runs a part of a test where the host is one that it may change, and that is gone with it.
#[track_caller]
fn on_a_host_of_its_own(part: &str) {
    let home = Home::new();
    let root = home.path("host");
    images::small(&root);
    for directory in ["etc/ld.so.conf.d", "tmp", "usr/bin", "usr/local"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::set_permissions(root.join("usr/local"), fs::Permissions::from_mode(0o2775)).unwrap();
    let tests = std::env::current_exe().unwrap();
    let by = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"];
    let by = [&by[..], &[root.to_str().unwrap(), tests.to_str().unwrap()]].concat();
    let mut command = helper::command_by(&by, part, Path::new("/state"));
    succeeds(command.stdin(Stdio::null()));
}

/// A part, in a process of its own.
pub(crate) fn part(run: fn(&Path), state: &Path) {
    assert!(Path::new("/outside").is_dir(), "the machine itself is not to be changed");
    run(state);
    adl_runtime::finish_removals();
}

/// The sandbox of a part.
fn sandbox_in(state: &Path) -> Sandbox {
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    Sandbox::create(config).unwrap()
}

/// A file of the part's own host.
fn file(path: &str, content: &str, mode: u32) {
    fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_host_image_has_nothing_that_not_everyone_may_read() {
    if needs(&[Need::Root]) {
        on_a_host_of_its_own("has-private-files");
    }
}

/// The part of it where the host has them.
pub(crate) fn has_private_files(state: &Path) {
    let (public, private) = ("/usr/local/public", "/usr/local/private");
    file(public, "content\n", 0o644);
    file(private, "secret\n", 0o640);
    file("/usr/local/shut/file", "secret\n", 0o644);
    fs::set_permissions("/usr/local/shut", fs::Permissions::from_mode(0o700)).unwrap();

    let sandbox = sandbox_in(state);
    // The control: what everyone may read is there, and root inside may write where it lies.
    assert_eq!(shell(&sandbox, "cat /usr/local/public"), "content\n");
    for hidden in [private, "/usr/local/shut", "/usr/local/shut/file"] {
        let output = sandbox.command("cat").arg(hidden).output().unwrap();
        assert!(output.stdout.is_empty() && !output.status.success(), "{hidden}");
    }
    for directory in ["/usr", "/usr/local", "/usr/bin"] {
        let (inside, outside) =
            (sandbox.files().metadata(directory).unwrap(), fs::metadata(directory).unwrap());
        assert_eq!(inside.mode & 0o7777, outside.mode() & 0o7777, "{directory}");
        assert_eq!((inside.uid, inside.gid), (outside.uid(), outside.gid()), "{directory}");
    }
    shell(&sandbox, "echo new > /usr/local/new && cat /usr/local/new && ls /usr/bin > /dev/null");
    // Nor does a snapshot show it, or a sandbox that is made of one.
    let snapshot = sandbox.snapshot().unwrap();
    let fork = Sandbox::create(snapshot.config()).unwrap();
    for sandbox in [&sandbox, &fork] {
        assert!(!sandbox.files().exists(private).unwrap());
        assert_eq!(shell(sandbox, "cat /usr/local/new"), "new\n");
    }
}

#[test]
fn what_was_private_and_is_gone_is_in_no_ones_way() {
    if needs(&[Need::Root]) {
        on_a_host_of_its_own("had-private-files");
    }
}

/// The part of it where the host loses them.
pub(crate) fn had_private_files(state: &Path) {
    let (below, shut) = ("/usr/local/some/below", "/usr/local/some/below/shut");
    file(shut, "secret\n", 0o600);
    let sandbox = sandbox_in(state);
    assert!(sandbox.files().exists(below).unwrap() && !sandbox.files().exists(shut).unwrap());
    // Of what changes so deep nothing is seen from above.
    fs::remove_dir_all(below).unwrap();
    assert_eq!(shell(&sandbox_in(Path::new("/other")), "echo made"), "made\n");
}

/// The links in `/usr` that lead nowhere, through `/etc` or not.
const DANGLING: &str = "find /usr -xdev -xtype l 2>/dev/null | sort";

#[test]
fn what_programs_link_to_is_inside_or_the_image_says_why_not() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let outside = Command::new("sh").args(["-c", DANGLING]).output().unwrap().stdout;
    let outside = String::from_utf8(outside).unwrap();
    let image = HostImage::of(Path::new("/")).unwrap();
    for link in shell(&sandbox, DANGLING).lines() {
        if outside.lines().any(|other| other == link) {
            continue;
        }
        // What leads to /var and the like is no part of the promise.
        let target = fs::canonicalize(link).unwrap();
        let is_said = image.left_out.iter().any(|(path, _)| target.starts_with(path));
        assert!(is_said || !target.starts_with("/etc"), "{link} leads to {target:?}");
    }
    for (path, why) in &image.left_out {
        let is_there = format!("test -e {0:?} || test -L {0:?}", path);
        let own = ["/etc/os-release", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
        let is_own = own.iter().any(|own| path.starts_with(own));
        let status = sandbox.command("sh").args(["-c", &is_there]).status().unwrap();
        assert!(is_own || !status.success(), "{path:?} is inside, and left out: {why}");
    }
    // What is listed is what is there, with the content that it has outside.
    let is_file = |path: &&PathBuf| fs::symlink_metadata(path).unwrap().is_file();
    let files: Vec<_> = image.taken.iter().filter(is_file).collect();
    assert!(!files.is_empty(), "{:?}", image.taken);
    for path in files {
        let content = sandbox.files().read_file(path).unwrap();
        assert_eq!(content, fs::read(path).unwrap(), "{path:?}");
    }
}

#[test]
fn programs_find_what_they_read_in_etc() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let python = |script: &str| {
        let output = sandbox.command("python3").args(["-c", script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let here = |path: &str| Path::new(path).exists();
    if here("/etc/services") && here("/etc/protocols") {
        let script =
            "import socket; print(socket.getservbyname('https'), socket.getprotobyname('udp'))";
        assert_eq!(python(script), "443 17\n");
    }
    let count = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))";
    let outside = Command::new("python3").args(["-c", count]).output().unwrap();
    assert_eq!(python(count).as_bytes(), outside.stdout);
    if here("/etc/login.defs") {
        assert!(shell(&sandbox, "grep UID_MIN /etc/login.defs").contains("UID_MIN"));
    }
    // The programs that a name stands for.
    if here("/etc/alternatives/awk") {
        assert_eq!(shell(&sandbox, "awk 'BEGIN { print 6 * 7 }'"), "42\n");
    }
}

#[test]
fn no_secret_of_etc_is_inside_though_a_link_leads_to_it() {
    if needs(&[Need::Root]) {
        on_a_host_of_its_own("has-secrets");
    }
}

/// The part of it where the host has them.
pub(crate) fn has_secrets(state: &Path) {
    file("/etc/linked/public", "public\n", 0o644);
    symlink("/etc/linked", "/usr/local/linked").unwrap();
    file("/etc/linked/closed", "secret\n", 0o640);
    file("/etc/linked/key", "-----BEGIN PRIVATE KEY-----\nsecret\n", 0o644);
    file("/etc/linked/token", "export CI_TOKEN=secret\n", 0o644);
    file("/etc/linked/csh", "setenv CI_TOKEN secret\n", 0o644);
    file("/etc/linked/fish", "set -gx CI_TOKEN secret\n", 0o644);
    file("/etc/linked/lower", "db_pass=secret\n", 0o644);
    file("/etc/linked/speaks-of-one", "# set PASSWORD=foo\n", 0o644);
    let fifo = Path::new("/etc/linked/fifo");
    nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    file("/root/file", "secret\n", 0o644);
    file("/etc/shadow", "secret\n", 0o644);
    symlink("/root", "/etc/linked/root").unwrap();
    symlink("/etc/shadow", "/etc/linked/shadow").unwrap();
    let sandbox = sandbox_in(state);
    let seen = shell(&sandbox, "cd /usr/local/linked && ls && cat public");
    assert_eq!(seen, "public\nspeaks-of-one\npublic\n");
    assert!(!sandbox.files().exists("/etc/shadow").unwrap());
    assert!(!sandbox.files().exists("/root/file").unwrap());
}

#[test]
fn a_change_of_etc_is_seen_by_the_next_sandbox() {
    if needs(&[Need::Root]) {
        on_a_host_of_its_own("changes-etc");
    }
}

/// The part of it where the host changes.
pub(crate) fn changes_etc(state: &Path) {
    let new = "/etc/ld.so.conf.d/new.conf";
    assert!(!sandbox_in(state).files().exists(new).unwrap());
    file(new, "# new\n", 0o644);
    assert!(sandbox_in(state).files().exists(new).unwrap());
    fs::remove_file(new).unwrap();
    assert!(!sandbox_in(state).files().exists(new).unwrap());
}

#[test]
fn root_inside_writes_to_usr_local_whoever_made_the_sandbox() {
    if !needs(&[]) {
        return;
    }
    let user = OrdinaryUser::new();
    let script = "set -e; cd /usr/local; echo new > new; mkdir -p bin share/man/man1
        echo new > share/man/man1/new.1
        printf '#!/bin/sh\necho ran\n' > bin/adl-new; chmod 755 bin/adl-new; adl-new
        mv bin/adl-new bin/adl-other; rm new; ls -d new 2>/dev/null || adl-other";
    assert_eq!(user.run(&["sh", "-c", script]), "ran\nran\n");
    assert!(!Path::new("/usr/local/bin/adl-other").exists());
    // What is there is there still.
    let names = "ls /usr/local /usr/local/bin";
    let outside = Command::new("sh").args(["-c", names]).output().unwrap();
    assert_eq!(user.run(&["sh", "-c", names]).as_bytes(), outside.stdout);
}

#[test]
fn a_dangling_resolv_conf_is_none() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = Sandbox::create(Config { network: Network::Host, ..home.config() }).unwrap();
    // The host's may be a link, as that of systemd-resolved.
    if let Ok(content) = fs::read("/etc/resolv.conf") {
        assert_eq!(sandbox.files().read_file("/etc/resolv.conf").unwrap(), content);
    }
    assert_eq!(shell(&sandbox, "test -L /etc/resolv.conf && echo link || echo none"), "none\n");
}

#[test]
fn the_documents_have_the_rule_that_the_image_is_made_by() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let text = fs::read_to_string(repository().join("docs/host-image.md")).unwrap();
    let rule = HostImage::rule();
    let how = "cargo run --example host_image -- --rule";
    assert!(text.contains(&rule), "docs/host-image.md is without what this prints: {how}\n{rule}");
}
