//! What the host image shows of the host: what any user there may read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use adl_runtime::Sandbox;

use crate::harness::{Home, Need, alone, needs, shell};

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

    let mut sandbox = home.sandbox();
    let cat = |sandbox: &Sandbox, path: &Path| {
        let output = sandbox.command("cat").arg(path).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.success())
    };
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
fn what_is_gone_from_the_host_since_it_was_found_private_stops_no_sandbox() {
    if !needs(&[Need::Root]) {
        return;
    }
    // Other tests look through /usr while it changes.
    let _alone = alone();
    let directory = Path::new("/usr/local/lib").join(format!("adl-test-{}", std::process::id()));
    let (gone, replaced) = (directory.join("gone"), directory.join("replaced"));
    let secret = |below: &Path| {
        fs::create_dir_all(below).unwrap();
        fs::write(below.join("secret"), "secret\n").unwrap();
        fs::set_permissions(below.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    };
    secret(&gone);
    let _removed = removed_in_the_end(&directory);
    secret(&replaced);
    let list = format!("cat {}/*/secret 2>&1 | grep -c '^secret$'", directory.display());
    let there = |home: &Home| {
        let output = home.sandbox().shell(list.as_str()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let home = Home::new();
    assert_eq!(there(&home), "0\n");
    // Nothing that tells of an installation changes; and who comes next has no layer yet.
    fs::remove_dir_all(&gone).unwrap();
    fs::rename(&replaced, directory.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &replaced).unwrap();
    fs::set_permissions(directory.join("elsewhere/secret"), fs::Permissions::from_mode(0o644))
        .unwrap();
    assert_eq!(there(&Home::new()), "2\n");
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
