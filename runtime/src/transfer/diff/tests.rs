//! What layers hold, as changes and as exports, against what a mount of them shows.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknod};

use super::super::tests::{OPTIONS, Scratch, at, soon, through};
use super::super::{CopyOptions, CopyReport, Incoming, from_tar, receive};
use super::*;

const EVERYTHING: CopyOptions = CopyOptions { owners: true, set_ids: true, ..OPTIONS };

/// Layers on disk, of one stack or more.
struct Layers {
    scratch: Scratch,
    stacks: Vec<(PathBuf, Vec<File>, Vec<File>, ChangeForm)>,
}

impl Layers {
    /// One stack at the root, with new directories.
    fn new(changed: &[&str], image: &[&str]) -> Self {
        let mut this = Self { scratch: Scratch::new(), stacks: Vec::new() };
        this.add("", changed, image, ChangeForm::Whiteouts);
        this
    }

    fn copy() -> Self {
        let mut this = Self { scratch: Scratch::new(), stacks: Vec::new() };
        this.add("", &["new"], &["image"], ChangeForm::WholeCopy);
        this
    }

    fn add(&mut self, at: &str, changed: &[&str], image: &[&str], kind: ChangeForm) {
        let open = |name: &&str| {
            let path = self.scratch.path(name);
            fs::create_dir_all(&path).unwrap();
            File::open(path).unwrap()
        };
        let (changed, image) =
            (changed.iter().map(open).collect(), image.iter().map(open).collect());
        self.stacks.push((at.into(), changed, image, kind));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    fn with<T>(&self, act: impl FnOnce(&[OpenedStack<'_>]) -> T) -> T {
        let stacks: Vec<_> = self
            .stacks
            .iter()
            .map(|(at, changed, image, kind)| OpenedStack {
                own: &[],
                at: at.clone(),
                changed: changed.iter().map(AsFd::as_fd).collect(),
                image: image.iter().map(AsFd::as_fd).collect(),
                kind: *kind,
            })
            .collect();
        act(&stacks)
    }

    fn changes(&self) -> String {
        let changes = self.with(|stacks| changes(stacks).unwrap());
        changes.iter().map(line).collect::<Vec<_>>().join(", ")
    }

    /// Makes a directory of what is sent.
    fn send(&self, what: Export, name: &str) -> (PathBuf, CopyReport) {
        let target = self.path(name);
        let mut report = CopyReport::default();
        // What stands for a deletion is root's.
        let options = CopyOptions { owners: is_root(), ..EVERYTHING };
        let (sent, received) = self.with(|stacks| {
            through(
                |to| send(stacks, what, to, &EVERYTHING, &mut report),
                |from| receive(from, &at(&target), &options, &mut CopyReport::default()),
            )
        });
        sent.and(received).unwrap();
        (target, report)
    }

    fn error(&self, what: Export) -> Error {
        let mut out = Vec::new();
        self.with(|stacks| export(stacks, what, &mut out, &OPTIONS, soon())).unwrap_err()
    }
}

fn line(change: &Change) -> String {
    let letter = match change.kind {
        ChangeKind::Added => 'A',
        ChangeKind::Modified => 'C',
        ChangeKind::Deleted => 'D',
    };
    format!("{letter} {}", change.path.display())
}

/// Makes what is described: `DIR/`, `FILE=CONTENT`, `LINK->TARGET`, `!WHITEOUT`, `DIR/!` for an
/// opaque one, `|FIFO`.
fn make(top: &Path, entries: &str) {
    for entry in entries.split_whitespace() {
        if let Some(name) = entry.strip_prefix('!') {
            whiteout(&top.join(name));
        } else if let Some(name) = entry.strip_prefix('|') {
            nix::unistd::mkfifo(&top.join(name), Mode::S_IRWXU).unwrap();
        } else if let Some(name) = entry.strip_suffix("/!") {
            let _ = fs::create_dir(top.join(name));
            set_opaque(&top.join(name), "y");
        } else if let Some((name, target)) = entry.split_once("->") {
            symlink(target, top.join(name)).unwrap();
        } else if let Some((name, content)) = entry.split_once('=') {
            fs::write(top.join(name), content).unwrap();
        } else {
            fs::create_dir(top.join(entry)).unwrap();
        }
    }
}

fn whiteout(path: &Path) {
    mknod(path, SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
}

fn set_opaque(path: &Path, value: &str) {
    let directory = File::open(path).unwrap();
    let name = c"user.overlay.opaque";
    crate::sys::set_extended_attribute(directory.as_fd(), name, value.as_bytes()).unwrap();
}

/// Every path with what there is to see of it; times of directories, which are no content, left
/// out.
fn look(top: &Path) -> BTreeMap<Vec<u8>, String> {
    let format = "%P\\0%y %m %U %G %l\\0%T@ %s\\0";
    let output = Command::new("find").arg(top).args(["-printf", format]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut fields = output.stdout.split(|byte| *byte == 0);
    let mut seen = BTreeMap::new();
    while let (Some(path), Some(what), Some(file)) = (fields.next(), fields.next(), fields.next()) {
        let mut what = what.escape_ascii().to_string();
        if what.starts_with('f') {
            let content = fs::read(top.join(std::ffi::OsStr::from_bytes(path))).unwrap();
            what.push_str(&format!("{} {}", file.escape_ascii(), content.escape_ascii()));
        }
        seen.insert(path.to_vec(), what);
    }
    seen
}

fn names(top: &Path) -> String {
    let names = look(top).into_keys().skip(1).map(|path| path.escape_ascii().to_string());
    names.collect::<Vec<_>>().join(" ")
}

fn content(top: &Path, name: &str) -> String {
    fs::read_to_string(top.join(name)).unwrap()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Does to a directory what an OCI layer, received as a directory, says.
fn apply(layer: &Path, target: &Path) {
    let mut names: Vec<_> =
        fs::read_dir(layer).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    if names.iter().any(|name| name == ".wh..wh..opq") {
        fs::remove_dir_all(target).unwrap();
        fs::create_dir(target).unwrap();
    }
    let remove = |path: &Path| match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    };
    for name in &names {
        if let Some(name) = name.to_str().unwrap().strip_prefix(".wh.") {
            remove(&target.join(name));
        }
    }
    for name in names.iter().filter(|name| !name.as_bytes().starts_with(b".wh.")) {
        let (from, to) = (layer.join(name), target.join(name));
        if from.symlink_metadata().unwrap().is_dir() {
            if !to.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                remove(&to);
                fs::create_dir(&to).unwrap();
            }
            apply(&from, &to);
            let mode = from.metadata().unwrap().permissions();
            fs::set_permissions(&to, mode).unwrap();
        } else {
            remove(&to);
            let copied = Command::new("cp").arg("-a").arg(&from).arg(&to).status().unwrap();
            assert!(copied.success());
        }
    }
}

#[test]
fn each_kind_of_change_is_told() {
    if !is_root() {
        return;
    }
    let layers = Layers::new(&["upper"], &["image"]);
    make(
        &layers.path("image"),
        "same= file=1 gone= dir dir/in= mode mode/in= gone_dir gone_dir/in= to_dir= to_file \
         to_file/in= fresh fresh/both= fresh/old= fresh/same fresh/sub fresh/sub/both= fresh/sub/old= \
         link->a",
    );
    make(
        &layers.path("upper"),
        "file=2 !gone !never dir dir/new= mode !gone_dir to_dir to_dir/in= to_file= fresh/! \
         fresh/both= fresh/new= fresh/same fresh/sub fresh/sub/both= link->b added added/sub \
         added/sub/file= |pipe",
    );
    set_opaque(&layers.path("upper/added"), "y");
    set_opaque(&layers.path("upper/dir"), "x");
    fs::set_permissions(layers.path("upper/mode"), Permissions::from_mode(0o700)).unwrap();
    assert_eq!(
        layers.changes(),
        "A /added, A /added/sub, A /added/sub/file, A /dir/new, C /file, C /fresh/both, \
         A /fresh/new, D /fresh/old, C /fresh/sub/both, D /fresh/sub/old, D /gone, \
         D /gone_dir, C /link, C /mode, A /pipe, C /to_dir, A /to_dir/in, C /to_file"
    );
    let (layer, report) = layers.send(Export::Layer, "layer");
    assert_eq!(
        names(&layer),
        ".wh.gone .wh.gone_dir added added/sub added/sub/file dir dir/new file fresh \
         fresh/.wh..wh..opq fresh/both fresh/new fresh/same fresh/sub fresh/sub/both link mode to_dir \
         to_dir/in to_file"
    );
    assert_eq!(report.skipped.len(), 1);
    let (tree, _) = layers.send(Export::Tree, "tree");
    assert_eq!(
        names(&tree),
        "added added/sub added/sub/file dir dir/in dir/new file fresh fresh/both fresh/new \
         fresh/same fresh/sub fresh/sub/both link mode mode/in same to_dir to_dir/in to_file"
    );
    assert_eq!(content(&tree, "file"), "2");
}

#[test]
fn an_upper_layer_hides_what_lower_changed_layers_have() {
    if !is_root() {
        return;
    }
    let layers = Layers::new(&["2", "1", "0"], &["image", "base"]);
    make(&layers.path("base"), "dir dir/base= base=");
    make(&layers.path("image"), "dir dir/image= dir/both=");
    make(
        &layers.path("0"),
        "passing= passing_dir passing_dir/in= dir dir/0= again again/0= cut cut/0=",
    );
    make(&layers.path("1"), "!passing !passing_dir !again dir !dir/0 dir/1= cut=");
    make(&layers.path("2"), "again again/2= !base cut cut/2= dir !dir/base");
    assert_eq!(
        layers.changes(),
        "A /again, A /again/2, D /base, A /cut, A /cut/2, A /dir/1, D /dir/base"
    );
    let (layer, _) = layers.send(Export::Layer, "layer");
    assert_eq!(names(&layer), ".wh.base again again/2 cut cut/2 dir dir/.wh.base dir/1");
    let (tree, _) = layers.send(Export::Tree, "tree");
    assert_eq!(names(&tree), "again again/2 cut cut/2 dir dir/1 dir/both dir/image");
}

/// If only the opaque directory of a lower layer hides the image, that must come out, too.
#[test]
fn a_lower_changed_layer_may_be_the_opaque_one() {
    if !is_root() {
        return;
    }
    let layers = Layers::new(&["1", "0"], &["image"]);
    make(&layers.path("image"), "dir dir/old= dir/sub dir/sub/old=");
    make(&layers.path("0"), "dir/! dir/mid= dir/sub dir/sub/new=");
    make(&layers.path("1"), "dir !dir/mid dir/new=");
    assert_eq!(layers.changes(), "A /dir/new, D /dir/old, A /dir/sub/new, D /dir/sub/old");
    let (layer, _) = layers.send(Export::Layer, "layer");
    assert_eq!(names(&layer), "dir dir/.wh..wh..opq dir/new dir/sub dir/sub/new");
}

#[test]
fn what_stands_for_a_deletion_is_not_taken_from_a_guest() {
    for name in [".wh.x=", ".wh..wh..opq=", ".wh.dir"] {
        let layers = Layers::new(&["upper"], &["image"]);
        make(&layers.path("image"), "sub");
        make(&layers.path("upper"), "sub");
        make(&layers.path("upper/sub"), name);
        assert!(matches!(layers.error(Export::Layer), Error::Refused { .. }), "{name}");
        let (tree, _) = layers.send(Export::Tree, "tree");
        assert_eq!(names(&tree), format!("sub sub/{}", name.trim_end_matches('=')));
    }
    if !is_root() {
        return;
    }
    let layers = Layers::new(&["upper"], &["image"]);
    make(&layers.path("image"), ".wh.x=");
    make(&layers.path("upper"), "!.wh.x");
    assert!(matches!(layers.error(Export::Layer), Error::Refused { .. }));
    assert_eq!(layers.changes(), "D /.wh.x");
    let long = "x".repeat(252);
    let layers = Layers::new(&["upper"], &["image"]);
    fs::write(layers.path("image").join(&long), "").unwrap();
    whiteout(&layers.path("upper").join(&long));
    assert!(matches!(layers.error(Export::Layer), Error::Refused { .. }));
}

#[test]
fn what_is_not_in_a_layer_still_hides_what_it_replaced() {
    let layers = Layers::new(&["upper"], &["image"]);
    make(&layers.path("image"), "file= dir dir/in=");
    make(&layers.path("upper"), "|file |dir |new");
    let (layer, report) = layers.send(Export::Layer, "layer");
    assert_eq!(names(&layer), ".wh.dir .wh.file");
    assert_eq!(report.skipped.len(), 3);
}

#[test]
fn hard_links_and_content_come_out() {
    let layers = Layers::new(&["upper"], &["image"]);
    make(&layers.path("image"), "a=old dir dir/one=image");
    fs::hard_link(layers.path("image/dir/one"), layers.path("image/dir/two")).unwrap();
    make(&layers.path("upper"), "a=new dir dir/one=upper");
    fs::hard_link(layers.path("upper/a"), layers.path("upper/dir/z")).unwrap();
    let (layer, report) = layers.send(Export::Layer, "layer");
    assert_eq!(names(&layer), "a dir dir/one dir/z");
    assert_eq!(report.hard_links, 1);
    assert_eq!(
        layer.join("a").metadata().unwrap().ino(),
        layer.join("dir/z").metadata().unwrap().ino()
    );
    let (tree, report) = layers.send(Export::Tree, "tree");
    assert_eq!(content(&tree, "dir/one"), "upper");
    assert_eq!(content(&tree, "dir/two"), "image");
    assert_eq!((report.hard_links, report.files), (1, 3));
}

#[test]
fn stacks_lie_below_one_another() {
    let mut layers = Layers::new(&["upper"], &["image"]);
    layers.add("usr", &["usr-upper"], &["usr-image"], ChangeForm::Whiteouts);
    layers.add("a/b/data", &["data-upper"], &["data-image"], ChangeForm::Whiteouts);
    layers.add("usr/share/x", &["x-upper"], &["x-image"], ChangeForm::Whiteouts);
    make(&layers.path("image"), "a a/b a/b/other= a/b/data z= usr");
    // What a mount lies on is not seen.
    make(&layers.path("upper"), "usr usr/hidden=");
    make(&layers.path("usr-image"), "bin bin/sh= share");
    make(&layers.path("usr-upper"), "bin bin/new=");
    make(&layers.path("data-image"), "old=");
    make(&layers.path("data-upper"), "old=1");
    make(&layers.path("x-upper"), "y=");
    assert_eq!(layers.changes(), "C /a/b/data/old, A /usr/bin/new, A /usr/share/x/y");
    let (layer, _) = layers.send(Export::Layer, "layer");
    assert_eq!(
        names(&layer),
        "a a/b a/b/data a/b/data/old usr usr/bin usr/bin/new usr/share usr/share/x \
         usr/share/x/y"
    );
    let (tree, _) = layers.send(Export::Tree, "tree");
    assert_eq!(
        names(&tree),
        "a a/b a/b/data a/b/data/old a/b/other usr usr/bin usr/bin/new usr/bin/sh usr/share \
         usr/share/x usr/share/x/y z"
    );
}

#[test]
fn a_stack_whose_place_is_gone_is_an_error() {
    let mut layers = Layers::new(&["upper"], &["image"]);
    layers.add("a/b/data", &["data-upper"], &["data-image"], ChangeForm::Whiteouts);
    make(&layers.path("upper"), "a a/b=no directory");
    let error = layers.with(|stacks| changes(stacks).unwrap_err());
    let Error::File { path, source, .. } = error else { panic!("{error:?}") };
    assert_eq!((path.to_str(), source.raw_os_error()), (Some("/a/b"), Some(libc::ENOENT)));
    assert!(matches!(layers.error(Export::Layer), Error::File { .. }));
    assert!(matches!(layers.error(Export::Tree), Error::File { .. }));
}

/// A hard link has the number and the times that a file of a btrfs snapshot has.
#[test]
fn a_copy_is_compared_by_number_and_time() {
    let layers = Layers::copy();
    make(
        &layers.path("image"),
        "same=1 changed=1 gone= gone_dir gone_dir/in= dir dir/same=1 dir/gone= to_file",
    );
    make(&layers.path("new"), "changed=1 dir dir/new= quiet to_file= .hidden=");
    make(&layers.path("image"), "quiet");
    for name in ["same", "dir/same"] {
        fs::hard_link(layers.path("image").join(name), layers.path("new").join(name)).unwrap();
    }
    let mut expected = "A /.hidden, C /changed, D /dir/gone, A /dir/new, D /gone, D /gone_dir, \
                        C /to_file"
        .to_owned();
    if is_root() {
        // There is no overlay to say what these mean.
        make(&layers.path("new"), "!z");
        set_opaque(&layers.path("new/dir"), "y");
        expected.push_str(", A /z");
    }
    assert_eq!(layers.changes(), expected);
    let (layer, _) = layers.send(Export::Layer, "layer");
    assert_eq!(
        names(&layer),
        ".hidden .wh.gone .wh.gone_dir changed dir dir/.wh.gone dir/new to_file"
    );
    let (tree, _) = layers.send(Export::Tree, "tree");
    assert_eq!(names(&tree), ".hidden changed dir dir/new dir/same quiet same to_file");
}

#[test]
fn more_than_can_be_told_is_an_error() {
    let layers = Layers::new(&["upper"], &["image"]);
    for number in 0..=MOST_CHANGES {
        File::create(layers.path("upper").join(number.to_string())).unwrap();
    }
    let error = layers.with(|stacks| changes(stacks).unwrap_err());
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
    let few = CopyOptions { entries: 1000, ..OPTIONS };
    let result =
        layers.with(|stacks| export(stacks, Export::Layer, &mut std::io::sink(), &few, soon()));
    assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(Errno::ENOSPC.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let result = layers.with(|stacks| export(stacks, Export::Tree, &mut Full, &OPTIONS, soon()));
    let Err(Error::Io { source, .. }) = &result else { panic!("{result:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
}

/// Directories come and go, move, and turn into links that lead out, while they are walked.
#[test]
fn what_changes_meanwhile_does_no_harm() {
    let layers = Layers::new(&["upper"], &["image"]);
    let upper = layers.path("upper");
    make(&layers.path("image"), "d0 d1 d2 d3");
    let outside = Scratch::new();
    fs::write(outside.path("secret"), "").unwrap();
    let is_over = AtomicBool::new(false);
    let mut results = Vec::new();
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            for turn in 0..400 {
                let path = upper.join(format!("d{}", turn % 4));
                let aside = upper.join("aside");
                let _ = fs::remove_dir_all(&aside).or_else(|_| fs::remove_file(&aside));
                let _ = fs::rename(path.join("a/b"), &aside);
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
                match turn % 3 {
                    0 => drop(symlink(&outside.0, &path)),
                    _ => {
                        let _ = fs::create_dir_all(path.join("a/b/c"));
                        let _ = fs::write(path.join("a/b/c/file"), "");
                    }
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        while !is_over.load(Ordering::Relaxed) && !guest.is_finished() {
            results.push(layers.with(changes));
        }
    });
    for result in &results {
        match result {
            Ok(changes) => {
                assert!(changes.iter().all(|change| !change.path.ends_with("secret")));
            }
            Err(Error::File { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(libc::ESTALE), "{source}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(results.iter().any(Result::is_ok), "{results:?}");
}

#[test]
fn depth_costs_no_descriptors_and_export_keeps_it() {
    let layers = Layers::new(&["1", "0"], &["image"]);
    for layer in ["1", "0", "image"] {
        let mut here = File::open(layers.path(layer)).unwrap();
        for level in 0..4000 {
            nix::sys::stat::mkdirat(&here, "d", Mode::S_IRWXU).unwrap();
            let next = nix::fcntl::openat(
                &here,
                "d",
                OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            );
            here = next.unwrap().into();
            if level % 1000 == 0 {
                let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                nix::fcntl::openat(&here, layer, flags, Mode::S_IRWXU).unwrap();
            }
        }
    }
    let changes = layers.changes();
    assert_eq!(changes.matches("A /").count(), 8);
    let mut archive = Vec::new();
    let report = layers
        .with(|stacks| export(stacks, Export::Tree, &mut archive, &EVERYTHING, soon()).unwrap());
    assert_eq!((report.directories, report.files), (4001, 12));
}

/// Not to be told by chance: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// A path of few, so that they meet.
    fn path(&mut self, top: &Path) -> PathBuf {
        let mut path = top.to_owned();
        for _ in 0..=self.below(4) {
            path.push(["a", "b", "c", "d"][self.below(4) as usize]);
        }
        path
    }
}

/// Does something to a tree, as a guest would. What makes no sense fails, and does nothing.
fn act(random: &mut Random, top: &Path) {
    let (path, other) = (random.path(top), random.path(top));
    match random.below(12) {
        0..=2 => drop(fs::create_dir_all(&path)),
        3 | 4 => drop(fs::write(&path, random.below(1000).to_string())),
        5 => drop(fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path))),
        6 => drop(Command::new("mv").arg("-T").args([&path, &other]).output()),
        7 => drop(symlink("a/b", &path)),
        8 => drop(fs::hard_link(&path, &other)),
        9 => {
            let _ = fs::remove_dir_all(&path);
            let _ = fs::create_dir(&path);
        }
        10 => {
            let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
            if !is_link {
                let mode = 0o700 | random.below(0o100) as u32;
                let _ = fs::set_permissions(&path, Permissions::from_mode(mode));
            }
        }
        _ => {
            if path.is_dir() {
                let _ = fs::remove_dir_all(&path);
                let _ = fs::write(&path, "was a directory");
            } else {
                let _ = fs::remove_file(&path);
                let _ = fs::create_dir(&path);
            }
        }
    }
}

/// An overlay, mounted as init does, in a mount namespace of the calling thread alone.
struct Overlay(PathBuf);

impl Overlay {
    fn new(target: &Path, upper: &Path, lower: &[&Path]) -> Self {
        let work = upper.with_extension("work");
        for directory in [upper, &work, target] {
            fs::create_dir_all(directory).unwrap();
        }
        let lower: Vec<_> = lower.iter().map(|path| path.to_str().unwrap()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},userxattr,redirect_dir=nofollow,metacopy=off,index=off",
            lower.join(":"),
            upper.display(),
            work.display()
        );
        let none = MsFlags::empty();
        mount(Some("adl"), target, Some("overlay"), none, Some(options.as_str())).unwrap();
        Self(target.to_owned())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Changes as the trees before and after tell them, without a look at the layers.
fn difference(
    before: &BTreeMap<Vec<u8>, String>,
    after: &BTreeMap<Vec<u8>, String>,
) -> BTreeMap<Vec<u8>, char> {
    let is_directory = |what: &String| what.starts_with('d');
    let mut changes = BTreeMap::new();
    for (path, what) in after {
        match before.get(path) {
            None => drop(changes.insert(path.clone(), 'A')),
            Some(old) if old != what => drop(changes.insert(path.clone(), 'C')),
            _ => {}
        }
    }
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let parent = slash.map_or(&[][..], |slash| &path[..slash]);
        if after.get(parent).is_some_and(is_directory) {
            changes.insert(path.clone(), 'D');
        }
    }
    changes
}

fn compare_with_a_mount(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let layers = Layers::new(&["2", "1"], &["image", "base"]);
    let path = |name: &str| layers.path(name);
    for image in ["base", "image"] {
        for _ in 0..60 {
            act(&mut random, &path(image));
        }
    }
    let changed_roots = [path("1"), path("2")];
    let (base, lower, view, plain) = (path("base"), path("image"), path("view"), path("plain"));
    let overlay = Overlay::new(&view, &path("unused"), &[&lower, &base]);
    let before = look(&view);
    let copied = Command::new("cp").arg("-a").args([&view, &plain]).status().unwrap();
    assert!(copied.success());
    drop(overlay);

    let overlay = Overlay::new(&view, &changed_roots[0], &[&lower, &base]);
    (0..40).for_each(|_| act(&mut random, &view));
    if seed == 1 {
        fs::create_dir_all(view.join("deep/".repeat(600))).unwrap();
    }
    drop(overlay);
    let overlay = Overlay::new(&view, &changed_roots[1], &[&changed_roots[0], &lower, &base]);
    (0..40).for_each(|_| act(&mut random, &view));
    let after = look(&view);

    let (tree, _) = layers.send(Export::Tree, "tree");
    assert_eq!(look(&tree), after, "seed {seed}");

    let expected = difference(&before, &after);
    let told: BTreeMap<Vec<u8>, char> = layers
        .with(|stacks| changes(stacks).unwrap())
        .into_iter()
        .map(|change| {
            let letter = line(&change).chars().next().unwrap();
            (change.path.as_os_str().as_bytes()[1..].to_vec(), letter)
        })
        .collect();
    for (name, kind) in &expected {
        assert_eq!(told.get(name), Some(kind), "seed {seed}: {}", name.escape_ascii());
    }
    for (name, kind) in &told {
        if !expected.contains_key(name) {
            // A file that was written to, and is as before.
            let is_in = |root: &PathBuf| {
                root.join(std::ffi::OsStr::from_bytes(name)).symlink_metadata().is_ok_and(
                    |metadata| !metadata.is_dir() && !metadata.file_type().is_char_device(),
                )
            };
            let is_touched = *kind == 'C' && changed_roots.iter().any(is_in);
            assert!(is_touched, "seed {seed}: {kind} {}", name.escape_ascii());
        }
    }

    let (layer, _) = layers.send(Export::Layer, "layer");
    apply(&layer, &plain);
    assert_eq!(look(&plain), after, "seed {seed}");

    // The same by way of an archive.
    let mut archive = Vec::new();
    layers.with(|stacks| export(stacks, Export::Tree, &mut archive, &EVERYTHING, soon()).unwrap());
    let unpacked = path("unpacked");
    let (sent, received) = through(
        |to| from_tar(&mut archive.as_slice(), to, &EVERYTHING, &mut CopyReport::default()),
        |from: &mut Incoming| {
            receive(from, &at(&unpacked), &EVERYTHING, &mut CopyReport::default())
        },
    );
    sent.and(received).unwrap();
    assert_eq!(look(&unpacked), after, "seed {seed}");
    drop(overlay);
}

#[test]
fn layers_are_what_a_mount_of_them_shows() {
    if !is_root() {
        return;
    }
    let test = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        (1..=16).for_each(compare_with_a_mount);
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}
