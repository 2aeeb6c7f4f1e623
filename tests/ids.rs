//! How many user and group ids there are inside, and who they are outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use adl_runtime::{Access, Config, Error, Mount, Sandbox, WriteOptions};

use crate::harness::{Home, Need, OrdinaryUser, needs, shell, stderr, succeeds};

/// An owner above those that a sandbox has by default.
const LARGE: u32 = 150_000;

#[test]
fn a_sandbox_has_as_many_ids_as_were_asked_for() {
    if !needs(&[Need::Root, Need::Program("tar")]) {
        return;
    }
    let home = Home::new();
    let volume = home.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "of one with a large number\n").unwrap();
    chown(volume.join("file"), Some(LARGE), Some(LARGE)).unwrap();
    let archive = home.path("archive.tar");
    succeeds(
        std::process::Command::new("tar")
            .arg("-C")
            .arg(&volume)
            .arg("-cf")
            .arg(&archive)
            .arg("file"),
    );
    let create = |ids| {
        let mounts = vec![Mount::volume(&volume, "/volume", Access::CopyOnWrite)];
        Sandbox::create(Config { ids, mounts, ..home.config() }).unwrap()
    };
    let unpack = "cd /tmp && tar --numeric-owner -xf archive.tar && stat -c '%u %g' file";
    let remove = "rm /volume/file && ls /volume";

    let sandbox = create(Some(200_000));
    assert_eq!(sandbox.id_range().unwrap().1, 200_000);
    let map = shell(&sandbox, "cat /proc/self/uid_map /proc/self/gid_map");
    let fields: Vec<&str> = map.split_whitespace().collect();
    let base = sandbox.id_range().unwrap().0.to_string();
    assert_eq!(fields, ["0", &base, "200000", "0", &base, "200000"]);
    sandbox.files().copy_in(&archive, "/tmp/archive.tar").unwrap();
    assert_eq!(shell(&sandbox, unpack), "150000 150000\n");
    assert_eq!(shell(&sandbox, "stat -c %u /volume/file"), "150000\n");
    assert_eq!(shell(&sandbox, remove), "");
    let id = sandbox.command("id").arg("-u").uid(LARGE).output().unwrap();
    assert_eq!(id.stdout, b"150000\n");
    sandbox.files().chown("/tmp/file", Some(199_999), None).unwrap();
    // All of it stays so.
    let ids = sandbox.id_range();
    sandbox.reset().unwrap();
    assert_eq!(sandbox.id_range(), ids);
    let fork = Sandbox::create(sandbox.snapshot().unwrap().config()).unwrap();
    assert_eq!(fork.id_range().unwrap().1, 200_000);

    // The control: by default there are fewer, and who asks for one beyond is told what to do.
    let sandbox = create(None);
    assert_eq!(sandbox.id_range().unwrap().1, 65_536);
    sandbox.files().copy_in(&archive, "/tmp/archive.tar").unwrap();
    assert!(!sandbox.shell(unpack).status().unwrap().success());
    assert!(!sandbox.shell(remove).status().unwrap().success());
    let errors = [
        sandbox.command("true").uid(65_536).status().unwrap_err(),
        sandbox.command("true").user(LARGE.to_string()).status().unwrap_err(),
        sandbox.command("true").groups([LARGE]).status().unwrap_err(),
        sandbox.files().chown("/tmp/archive.tar", Some(LARGE), None).unwrap_err(),
        sandbox.files().write_with("/tmp/x", "", WriteOptions::new().owner(0, LARGE)).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains("--ids"), "{error}");
    }
    assert!(sandbox.command("true").uid(65_535).status().unwrap().success());
    // The volume is as it was.
    assert_eq!(fs::metadata(volume.join("file")).unwrap().uid(), LARGE);
}

#[test]
fn a_number_of_ids_that_can_not_be_is_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for ids in [0, 1, 65_535, 0x6000_0000, u32::MAX] {
        let error = Sandbox::create(Config { ids: Some(ids), ..home.config() }).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    }
    let user = OrdinaryUser::new();
    let mut adl = user.command(user.adl());
    let output = adl.args(["run", "--ids", "100000", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = stderr(&output);
    assert!(said.contains("make the sandbox as root"), "{said}");
}

#[test]
fn the_one_id_of_an_ordinary_user_is_the_number_that_was_asked_for() {
    if !needs(&[]) {
        return;
    }
    let user = OrdinaryUser::new();
    let run = |who: &str, script: &str| {
        let mut adl = user.command(user.adl());
        succeeds(adl.args(["run", "--user", who, "--", "sh", "-c", script]))
    };
    let me = "id -u; id -g; id -G; echo $HOME; echo new > /tmp/file; stat -c '%u %g' /tmp/file
        grep -c . /proc/self/uid_map; grep CapEff /proc/self/status";
    assert_eq!(run("1000", me), "1000\n1000\n1000\n/\n1000 1000\n1\nCapEff:\t0000000000000000\n");
    assert_eq!(run("70000:5", "id -u; id -g"), "70000\n5\n");
    assert_eq!(run("0", "id -u"), "0\n");
    assert_eq!(user.run(&["id", "-u"]), "0\n");
    // init is out of its reach.
    let reach =
        "kill -9 1 2>/dev/null; cat /proc/1/environ 2>/dev/null; ls /proc/1/fd 2>/dev/null | wc -l
        echo 1000 > /proc/1/oom_score_adj 2>/dev/null || echo refused";
    assert_eq!(run("1000", reach), "0\nrefused\n");
    // Its copies are its own, too.
    let mut adl = user.command(user.adl());
    let copy = ["run", "--user", "1000", "--copy-in", "/etc/passwd:/tmp/passwd", "--"];
    let owner = succeeds(adl.args(copy).args(["stat", "-c", "%u", "/tmp/passwd"]));
    assert_eq!(owner, "1000\n");
    // There is no one else.
    for who in ["nobody", "1000:nogroup"] {
        let mut adl = user.command(user.adl());
        let output = adl.args(["run", "--user", who, "--", "true"]).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{who}");
        let said = stderr(&output);
        assert!(said.contains("by number"), "{who}: {said}");
    }
}
