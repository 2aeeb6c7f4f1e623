//! An archive as image is unpacked once, whole, and below nothing but itself.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use adl_runtime::{Config, Error, Image, Sandbox};

use crate::harness::{Home, Need, adl_command, needs, shell};
use crate::images;

/// Packs a small root file system.
fn pack(home: &Home, name: &str) -> std::path::PathBuf {
    let root = home.path(format!("{name}-root"));
    images::small(&root);
    fs::write(root.join("who"), name).unwrap();
    let archive = home.path(format!("{name}.tar"));
    tar(&root, &archive, &["."]);
    archive
}

fn tar(directory: &Path, archive: &Path, what: &[&str]) {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(directory).arg("-cPf").arg(archive).args(what);
    assert!(tar.status().unwrap().success());
}

/// What there is of archives in the state directory.
fn unpacked(home: &Home) -> Vec<String> {
    let Ok(entries) = fs::read_dir(home.state().join("images")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.contains("host-")).collect();
    names.sort();
    names
}

/// Whether there is one archive, and what tells who uses it.
fn is_one(unpacked: &[String]) -> bool {
    matches!(unpacked, [used, tar] if tar.starts_with("tar-") && *used == format!(".used-{tar}"))
}

#[test]
fn an_archive_is_unpacked_once_for_all_and_again_when_it_changes() {
    if !needs(&[Need::Program("tar")]) {
        return;
    }
    let home = Home::new();
    let archive = pack(&home, "one");
    let make = || home.sandbox_of(Image::archive(&archive));
    // Many at once.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let sandbox = make();
                assert_eq!(shell(&sandbox, "cat /who; id -u; echo > /who"), "one0\n");
            });
        }
    });
    assert!(is_one(&unpacked(&home)), "{:?}", unpacked(&home));
    let sandbox = make();
    shell(&sandbox, "echo changed > /who");
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, "cat /who"), "one");
    // As `adl run` names it.
    let mut adl = adl_command(&home.state());
    let output = adl.args(["run", "--image"]).arg(&archive).args(["--", "cat", "/who"]).output();
    assert_eq!(output.unwrap().stdout, b"one");
    assert!(is_one(&unpacked(&home)), "{:?}", unpacked(&home));

    fs::rename(pack(&home, "two"), &archive).unwrap();
    assert_eq!(shell(&make(), "cat /who"), "two");
    // That which is in use stays as it was.
    assert_eq!(shell(&sandbox, "cat /who"), "one");
}

#[test]
fn what_is_no_archive_or_leads_out_of_itself_leaves_nothing() {
    if !needs(&[Need::Program("tar")]) {
        return;
    }
    let home = Home::new();
    let make = |path: &Path| {
        let image = Image::archive(path);
        Sandbox::create(Config { image, ..home.config() }).map(|sandbox| sandbox.name().to_owned())
    };
    fs::create_dir(home.path("inner")).unwrap();
    fs::write(home.path("secret"), "outside").unwrap();
    let out = home.path("out.tar");
    tar(&home.path("inner"), &out, &["../secret"]);
    let refused = make(&out);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");

    let garbage = home.path("garbage");
    fs::write(&garbage, vec![b'x'; 4096]).unwrap();
    let cut = home.path("cut.tar");
    fs::copy(pack(&home, "whole"), &cut).unwrap();
    File::options().write(true).open(&cut).unwrap().set_len(100_000).unwrap();
    for path in [&garbage, &cut, &home.path("inner")] {
        let invalid = make(path);
        assert!(matches!(invalid, Err(Error::Invalid { .. })), "{path:?}: {invalid:?}");
    }
    assert!(matches!(make(&home.path("missing")), Err(Error::Io { .. })));
    assert_eq!(unpacked(&home), [""; 0]);
    assert_eq!(fs::read(home.path("secret")).unwrap(), b"outside");
}

#[test]
fn a_link_in_an_archive_leads_nothing_to_the_host() {
    if !needs(&[Need::Program("tar")]) {
        return;
    }
    let home = Home::new();
    let root = home.path("root");
    images::small(&root);
    let outside = home.path("outside");
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
    let archive = home.path("link.tar");
    tar(&root, &archive, &["."]);
    // A file through that link, as no tar packs it, but any may be told to.
    let extra = home.path("extra");
    fs::create_dir_all(extra.join("link")).unwrap();
    fs::write(extra.join("link/planted"), "x").unwrap();
    let mut append = Command::new("tar");
    append.arg("-C").arg(&extra).arg("-rf").arg(&archive).arg("./link/planted");
    assert!(append.status().unwrap().success());
    let made = Sandbox::create(Config { image: Image::archive(&archive), ..home.config() });
    drop(made);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}
