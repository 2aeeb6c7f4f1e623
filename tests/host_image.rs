//! What the host image shows of the host: what any user there may read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use adl_runtime::{Config, HostImage, LeftOut, Network, Sandbox};

use crate::harness::{Home, Need, OrdinaryUser, alone, needs, repository, shell, within};

/// A file of the host's programs, until this is dropped.
struct OfHost(PathBuf);

impl OfHost {
    fn new(name: &str, mode: u32) -> Self {
        let path = Path::new("/usr/local").join(format!("adl-test-{}-{name}", std::process::id()));
        fs::write(&path, format!("content of {name}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Self(path)
    }
}

impl Drop for OfHost {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn the_host_image_has_nothing_that_not_everyone_may_read() {
    if !needs(&[Need::Root]) {
        return;
    }
    // Other tests look through /usr while it changes.
    let _alone = alone();
    let home = Home::new();
    let (public, private) = (OfHost::new("public", 0o644), OfHost::new("private", 0o640));
    let directory = Path::new("/usr/local").join(format!("adl-test-{}-shut", std::process::id()));
    fs::create_dir(&directory).unwrap();
    let _removed = removed_in_the_end(&directory);
    fs::write(directory.join("file"), "secret\n").unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();

    let cat = |sandbox: &Sandbox, path: &Path| {
        let output = sandbox.command("cat").arg(path).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.success())
    };
    // A process that has looked a moment ago does not look again.
    let mut sandbox = home.sandbox();
    within(Duration::from_secs(5), || {
        sandbox = home.sandbox();
        !cat(&sandbox, &private.0).1
    });
    // The control: what everyone may read is there, and root inside may write where it lies.
    assert_eq!(cat(&sandbox, &public.0), ("content of public\n".to_owned(), true));
    for hidden in [&private.0, &directory, &directory.join("file")] {
        assert_eq!(cat(&sandbox, hidden), (String::new(), false), "{hidden:?}");
    }
    let mode = "stat -c '%a %u %g' /usr /usr/local /usr/bin";
    let outside = Command::new("sh").args(["-c", mode]).output().unwrap();
    assert_eq!(shell(&sandbox, mode).as_bytes(), outside.stdout);
    shell(&sandbox, "echo new > /usr/local/new && cat /usr/local/new && ls /usr/bin > /dev/null");
    // Nor does a snapshot show it, or a sandbox that is made of one.
    let snapshot = sandbox.snapshot().unwrap();
    let fork = Sandbox::create(snapshot.config()).unwrap();
    for sandbox in [&sandbox, &fork] {
        assert_eq!(cat(sandbox, &private.0), (String::new(), false));
        assert_eq!(cat(sandbox, Path::new("/usr/local/new")).0, "new\n");
    }
}

#[test]
fn what_was_private_and_is_gone_is_in_no_ones_way() {
    if !needs(&[Need::Root]) {
        return;
    }
    // Other tests look through /usr while it changes.
    let _alone = alone();
    let directory = Path::new("/usr/local").join(format!("adl-test-{}-some", std::process::id()));
    let (below, shut) = (directory.join("below"), directory.join("below/shut"));
    fs::create_dir_all(&below).unwrap();
    let _removed = removed_in_the_end(&directory);
    fs::write(&shut, "secret\n").unwrap();
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o600)).unwrap();
    let home = Home::new();
    let sandbox = home.sandbox();
    assert!(sandbox.files().exists(&below).unwrap() && !sandbox.files().exists(&shut).unwrap());
    // Of what changes so deep nothing is seen from above.
    fs::remove_dir_all(&below).unwrap();
    let other = Home::new();
    assert_eq!(shell(&other.sandbox(), "echo made"), "made\n");
}

/// The links in `/usr` that lead nowhere, through `/etc` or not.
const DANGLING: &str = "find /usr -xdev -xtype l 2>/dev/null | sort";

#[test]
fn what_programs_link_to_is_inside_or_the_image_says_why_not() {
    if !needs(&[]) {
        return;
    }
    // Other tests change /usr.
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let outside = Command::new("sh").args(["-c", DANGLING]).output().unwrap().stdout;
    let outside = String::from_utf8(outside).unwrap();
    let image = HostImage::of(Path::new("/")).unwrap();
    let mut links = 0;
    for link in shell(&sandbox, DANGLING).lines() {
        if outside.lines().any(|other| other == link) {
            continue;
        }
        // What leads to /var and the like is no part of the promise.
        let target = fs::canonicalize(link).unwrap();
        let is_said = image.left_out.iter().any(|(path, _)| target.starts_with(path));
        assert!(is_said || !target.starts_with("/etc"), "{link} leads to {target:?}");
        links += 1;
    }
    assert!(links < 50, "{links} links lead nowhere inside only");
    for (path, why) in &image.left_out {
        assert!(*why != LeftOut::TooLarge, "{path:?}");
        let is_there = format!("test -e {0:?} || test -L {0:?}", path);
        let own = ["/etc/os-release", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
        let is_own = own.iter().any(|own| path.starts_with(own));
        let status = sandbox.command("sh").args(["-c", &is_there]).status().unwrap();
        assert!(is_own || !status.success(), "{path:?} is inside, and left out: {why}");
    }
    // What is listed is what is there, with the content that it has outside.
    assert!(image.taken.len() > 20, "{:?}", image.taken);
    for path in &image.taken {
        if fs::symlink_metadata(path).unwrap().is_file() {
            let content = sandbox.files().read_file(path).unwrap();
            assert_eq!(content, fs::read(path).unwrap(), "{path:?}");
        }
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

/// A directory of a test's own in `/etc`, and a link to it in `/usr/local`.
struct OfEtc {
    directory: PathBuf,
    link: PathBuf,
}

impl OfEtc {
    fn new() -> Self {
        let name = format!("adl-test-{}", std::process::id());
        let this = Self {
            directory: Path::new("/etc").join(&name),
            link: Path::new("/usr/local").join(&name),
        };
        fs::create_dir(&this.directory).unwrap();
        std::os::unix::fs::symlink(&this.directory, &this.link).unwrap();
        this
    }

    fn file(&self, name: &str, content: &str, mode: u32) {
        let path = self.directory.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for OfEtc {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).unwrap();
        fs::remove_file(&self.link).unwrap();
    }
}

#[test]
fn no_secret_of_etc_is_inside_though_a_link_leads_to_it() {
    if !needs(&[Need::Root]) {
        return;
    }
    // Other tests look through /usr while it changes.
    let _alone = alone();
    let etc = OfEtc::new();
    etc.file("public", "public\n", 0o644);
    etc.file("closed", "secret\n", 0o640);
    etc.file("key", "-----BEGIN PRIVATE KEY-----\nsecret\n", 0o644);
    etc.file("token", "export CI_TOKEN=secret\n", 0o644);
    etc.file("csh", "setenv CI_TOKEN secret\n", 0o644);
    etc.file("fish", "set -gx CI_TOKEN secret\n", 0o644);
    etc.file("lower", "db_pass=secret\n", 0o644);
    etc.file("speaks-of-one", "# set PASSWORD=foo\n", 0o644);
    let fifo = etc.directory.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    std::os::unix::fs::symlink("/root", etc.directory.join("root")).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", etc.directory.join("shadow")).unwrap();
    let home = Home::new();
    let mut sandbox = home.sandbox();
    // A process that has looked a moment ago does not look again.
    within(Duration::from_secs(5), || {
        sandbox = home.sandbox();
        sandbox.files().exists(etc.link.join("public")).unwrap()
    });
    let seen = shell(&sandbox, format!("cd {:?} && ls && cat public", etc.link));
    assert_eq!(seen, "public\nspeaks-of-one\npublic\n");
    let found = shell(&sandbox, "grep -rl secret /etc/adl-test-* || true");
    assert_eq!(found, "");
}

#[test]
fn a_change_of_etc_is_seen_by_the_next_sandbox() {
    if !needs(&[Need::Root]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    drop(home.sandbox());
    let etc = Path::new("/etc/ld.so.conf.d").join(format!("adl-test-{}.conf", std::process::id()));
    if !Path::new("/etc/ld.so.conf.d").is_dir() {
        return;
    }
    struct Removed<'a>(&'a Path);
    impl Drop for Removed<'_> {
        fn drop(&mut self) {
            let _ = fs::remove_file(self.0);
        }
    }
    let _removed = Removed(&etc);
    fs::write(&etc, "# new\n").unwrap();
    fs::set_permissions(&etc, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(home.sandbox().files().exists(&etc).unwrap());
}

#[test]
fn root_inside_writes_to_usr_local_whoever_made_the_sandbox() {
    if !needs(&[]) {
        return;
    }
    // Other tests change /usr/local.
    let _alone = alone();
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

/// Removes a directory in the end.
fn removed_in_the_end(directory: &Path) -> impl Drop {
    struct Guard(PathBuf);
    impl Drop for Guard {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
    Guard(directory.to_owned())
}
