//! Extended attributes, access control lists and capabilities of files come along, wherever files
//! are copied, kept or unpacked.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use adl_runtime::{Config, Error, Export, Image, Sandbox, Upper};

use crate::file_systems::Mounted;
use crate::harness::{Home, Need, needs, shell, succeeds};

const PYTHON: Need = Need::Program("python3");

/// Makes a tree whose files have all kinds of them, any bytes among their values.
const MAKE: &str = r#"
import os, struct
def acl(group, *named):
    entries = [(1, 7, -1), *[(2, bits, uid) for uid, bits in named], (4, 5, -1), (16, 7, -1), (32, group, -1)]
    return struct.pack('<I', 2) + b''.join(struct.pack('<HHi', *entry) for entry in entries)
os.makedirs('tree/directory/below')
for name in ['tree/note', 'tree/program', 'tree/listed', 'tree/directory/below/plain', 'tree/none']:
    open(name, 'w').write(name)
os.symlink('note', 'tree/link')
os.link('tree/note', 'tree/other-name')
os.setxattr('tree/note', 'user.note', b'any\0bytes\n=\xff')
os.setxattr('tree/note', 'user.empty', b'')
os.setxattr('tree/directory', 'user.directory', b'd' * 1000)
os.setxattr('tree/listed', 'system.posix_acl_access', acl(4, (7, 6), (9, 4)))
os.setxattr('tree/directory', 'system.posix_acl_default', acl(0, (8, 5)))
os.chmod('tree/program', 0o755)
os.setxattr('tree/program', 'security.capability', struct.pack('<IIIII', 0x02000001, 1 << 10, 0, 0, 0))
"#;

/// Prints them.
const SHOW: &str = r#"
import os, sys
for directory, below, files in os.walk('tree'):
    below.sort()
    for path in [directory] + [os.path.join(directory, name) for name in sorted(files)]:
        if not os.path.islink(path):
            for name in sorted(os.listxattr(path)):
                print(path, oct(os.stat(path).st_mode), name, os.getxattr(path, name).hex())
"#;

fn python(at: &Path, script: &str) -> String {
    succeeds(Command::new("python3").args(["-c", script]).current_dir(at))
}

fn made(home: &Home, name: &str) -> PathBuf {
    let path = home.path(name);
    fs::create_dir(&path).unwrap();
    path
}

/// What is shown of a tree inside.
fn inside(sandbox: &Sandbox) -> String {
    shell(sandbox, format!("cd /srv && python3 -c \"{SHOW}\""))
}

fn only<'a>(text: &'a str, words: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.contains(words)).collect()
}

#[test]
fn copies_in_and_out_keep_attributes_as_far_as_they_are_asked_to() {
    if !needs(&[Need::Root, PYTHON]) {
        return;
    }
    let home = Home::new();
    let from = made(&home, "from");
    python(&from, MAKE);
    let all = python(&from, SHOW);
    assert_eq!((all.lines().count(), only(&all, "capability").len()), (8, 1), "{all}");
    assert_eq!((only(&all, "acl_").len(), only(&all, "user.").len()), (2, 5), "{all}");
    let sandbox = home.sandbox();
    sandbox
        .files()
        .keep_owners(true)
        .keep_set_ids(true)
        .copy_in(from.join("tree"), "/srv/tree")
        .unwrap();
    assert_eq!(inside(&sandbox), all);
    let to = made(&home, "to");
    sandbox
        .files()
        .keep_owners(true)
        .keep_set_ids(true)
        .copy_out("/srv/tree", to.join("tree"))
        .unwrap();
    assert_eq!(python(&to, SHOW), all);
    // Rights and owners are left out where they were not asked for.
    let plain = made(&home, "plain");
    sandbox.files().copy_out("/srv/tree", plain.join("tree")).unwrap();
    let shown = python(&plain, SHOW);
    assert_eq!((only(&shown, "user.").len(), shown.lines().count()), (5, 5), "{shown}");
    let owners = made(&home, "owners");
    sandbox.files().keep_owners(true).copy_out("/srv/tree", owners.join("tree")).unwrap();
    assert_eq!(only(&python(&owners, SHOW), "capability"), [""; 0]);
    // What is an overlay's own is no file's.
    python(&from, "import os; os.setxattr('tree/directory', 'user.overlay.opaque', b'y')");
    sandbox.files().copy_in(from.join("tree/directory"), "/srv/opaque").unwrap();
    let names = "import os; print(os.listxattr('/srv/opaque'))";
    assert_eq!(shell(&sandbox, format!("python3 -c \"{names}\"")), "['user.directory']\n");
    // By archives, too.
    let archive = home.path("out.tar");
    let mut files = sandbox.files();
    files.keep_owners(true).keep_set_ids(true);
    files.export_tar("/srv/tree", File::create(&archive).unwrap()).unwrap();
    shell(&sandbox, "mkdir /srv/again");
    files.import_tar(File::open(&archive).unwrap(), "/srv/again/tree").unwrap();
    let again = shell(&sandbox, format!("cd /srv/again && python3 -c \"{SHOW}\""));
    assert_eq!(again, all);
}

#[test]
fn what_is_kept_exported_and_unpacked_again_keeps_attributes() {
    if !needs(&[Need::Root, PYTHON]) {
        return;
    }
    let home = Home::new();
    let from = made(&home, "from");
    python(&from, MAKE);
    let all = python(&from, SHOW);
    let image = made(&home, "image");
    crate::images::small(&image);
    let sandbox = home.sandbox_of(Image::directory(&image));
    let out = |sandbox: &Sandbox, name: &str| {
        let to = made(&home, name);
        let mut files = sandbox.files();
        files.keep_owners(true).keep_set_ids(true);
        files.copy_out("/srv/tree", to.join("tree")).unwrap();
        python(&to, SHOW)
    };
    let mut files = sandbox.files();
    files.keep_owners(true).keep_set_ids(true).create_dir_all("/srv").unwrap();
    files.copy_in(from.join("tree"), "/srv/tree").unwrap();
    let snapshot = sandbox.snapshot().unwrap();
    assert_eq!(out(&Sandbox::create(snapshot.config()).unwrap(), "forked"), all);
    for what in [Export::Tree, Export::Layer] {
        let archive = home.path("exported.tar");
        snapshot.export(what, File::create(&archive).unwrap()).unwrap();
        let unpacked = home.path("unpacked");
        fs::create_dir(&unpacked).unwrap();
        // What other programs make of it.
        let mut tar = Command::new("tar");
        tar.args(["--xattrs", "--xattrs-include=*", "-C"]).arg(&unpacked).arg("-xpf").arg(&archive);
        succeeds(&mut tar);
        assert_eq!(python(&unpacked.join("srv"), SHOW), all, "{what:?}");
        fs::remove_dir_all(&unpacked).unwrap();
        if what == Export::Tree {
            let of_archive = home.sandbox_of(Image::archive(&archive));
            assert_eq!(out(&of_archive, "to"), all);
        }
        fs::remove_file(&archive).unwrap();
    }
}

#[test]
fn a_copy_that_btrfs_needs_keeps_attributes() {
    if !needs(&[Need::Root, Need::Btrfs, PYTHON]) {
        return;
    }
    let home = Home::new();
    let disk = Mounted::btrfs(&home);
    let image = made(&home, "image");
    crate::images::small(&image);
    fs::create_dir(image.join("srv")).unwrap();
    python(&image.join("srv"), MAKE);
    let all = python(&image.join("srv"), SHOW);
    let upper = Upper::Btrfs { size: None };
    let config = Config { image: Image::directory(&image), upper, ..disk.config() };
    let sandbox = Sandbox::create(config).unwrap();
    let to = made(&home, "to");
    sandbox
        .files()
        .keep_owners(true)
        .keep_set_ids(true)
        .copy_out("/srv/tree", to.join("tree"))
        .unwrap();
    assert_eq!(python(&to, SHOW), all);
}

#[test]
fn more_attributes_than_a_file_may_have_and_a_full_disk_are_told_apart() {
    let mkfs = Need::Program("mkfs.ext4");
    if !needs(&[Need::Root, PYTHON, mkfs]) {
        return;
    }
    let home = Home::new();
    // Written as text: the file system of the test's place may take no such file either.
    let much = home.path("much.tar");
    let script = r#"
import io, sys, tarfile
with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as archive:
    for number in range(int(sys.argv[2])):
        info = tarfile.TarInfo(f'file-{number}')
        info.pax_headers = {f'SCHILY.xattr.user.note-{n}': chr(65 + number % 26) * 2000 + str(number)
                            for n in range(int(sys.argv[3]))}
        archive.addfile(info)
"#;
    let make = |path: &Path, files: &str, each: &str| {
        let mut python = Command::new("python3");
        succeeds(python.args(["-c", script]).arg(path).args([files, each]));
    };
    make(&much, "1", "3");
    let many = home.path("many.tar");
    make(&many, "6000", "1");
    let disk = Mounted::small_ext4(&home);
    let refused = |archive: &Path| {
        let config = Config { image: Image::archive(archive), ..disk.config() };
        Sandbox::create(config).map(drop).unwrap_err()
    };
    let error = refused(&much);
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    for words in ["file-0", "the disk is not full", "xfs or btrfs", "ea_inode"] {
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    let error = refused(&many);
    assert!(matches!(error, Error::Io { operation: "setxattr", .. }), "{error}");
    for words in ["the disk is full: free room", "adl image prune"] {
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    // Where there is room and few of them, they are there.
    make(&much, "1", "1");
    let config = Config { image: Image::archive(&much), upper: Upper::default(), ..disk.config() };
    drop(Sandbox::create(config).unwrap());
}
