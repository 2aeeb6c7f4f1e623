//! Layers in the state directory: what is published is whole, and what its digests say.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Head, Scratch, Tar, attribute, is_root, tree, unpack_as};
use crate::error::{Error, Result};
use crate::image::digest::{Digest, Hasher};
use crate::image::layer::{Blob, UnpackOptions, find, layer};
use crate::image::options::Caps;
use crate::image::unpack::{Form, Unpacked};
use crate::store::State;
use crate::wait::Deadline;

pub(super) fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::like(None);
    hasher.update(bytes);
    hasher.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn sample() -> Vec<u8> {
    Tar::new()
        .add(&Head::new(b'5', "./").mode("750"), "")
        .dir("etc")
        .file("etc/passwd", "root")
        .file("etc/.wh.shadow", "")
        .file("big", vec![b'x'; 600_000])
        .hard("same", "big")
        .end()
}

fn sample_tree() -> Vec<String> {
    [
        "big f644 600000 bytes",
        "d750",
        "etc d755",
        "etc/passwd f644 root",
        "etc/shadow whiteout",
        "same f644 600000 bytes",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// A state directory of its own.
struct Home {
    scratch: Scratch,
    state: State,
}

impl Home {
    fn new() -> Self {
        let scratch = Scratch::new();
        let state = State::open(Some(&scratch.path("state"))).unwrap();
        Self { scratch, state }
    }

    fn layer(&self, blob: &[u8], plain: &[u8]) -> Result<PathBuf> {
        self.layer_with(blob, plain, &UnpackOptions::default())
    }

    fn layer_with(
        &self,
        blob: &[u8],
        plain: &[u8],
        options: &UnpackOptions<'_>,
    ) -> Result<PathBuf> {
        layer(&self.state, of(blob, Some(digest(plain))), options)
    }

    /// The names of what is in the cache.
    fn images(&self) -> Vec<String> {
        let entries = fs::read_dir(self.scratch.path("state/images"));
        let names = entries.into_iter().flatten().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub(super) fn of(blob: &[u8], diff_id: Option<Digest>) -> Blob<'_> {
    let (digest, size) = (digest(blob), Some(blob.len() as u64));
    Blob { digest, size, diff_id, bytes: Box::new(blob) }
}

#[test]
fn a_layer_is_unpacked_however_it_is_compressed() {
    let plain = sample();
    let (first, second) = plain.split_at(plain.len() / 2);
    let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
    let mut chunked = zstd(first);
    chunked.extend_from_slice(&zstd(second));
    chunked.extend_from_slice(&skippable);
    for (name, blob) in [
        ("plain", plain.clone()),
        ("gzip", gzip(&plain)),
        ("members of gzip's", [gzip(first), gzip(second)].concat()),
        ("gzip, and an empty member", [gzip(&plain), gzip(b"")].concat()),
        ("gzip, filled up with zeros", [gzip(&plain), vec![0; 700]].concat()),
        ("zstd", zstd(&plain)),
        ("frames of zstd's, as zstd:chunked has them", chunked),
        ("zstd that begins with a frame to skip", [skippable, zstd(&plain)].concat()),
    ] {
        let home = Home::new();
        let diff_id = digest(&plain);
        assert_eq!(find(&home.state, &diff_id, None), None);
        let place = home.layer(&blob, &plain).unwrap();
        assert_eq!(tree(&place), sample_tree(), "{name}");
        assert_eq!(find(&home.state, &diff_id, None), Some(place.clone()));
        let name = format!("layer-{}", diff_id.file_name());
        assert_eq!(home.images(), [name.as_str()]);
        assert_eq!(place.file_name().unwrap(), name.as_str());
        // Where only its own digest is known, it comes to the same.
        let again = layer(&home.state, of(&blob, None), &UnpackOptions::default()).unwrap();
        assert_eq!(again, place);
        assert_eq!(home.images(), [name]);
    }
}

#[test]
fn what_is_there_is_not_read_again() {
    struct Never;
    impl Read for Never {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("it is read");
        }
    }
    let home = Home::new();
    let plain = sample();
    let place = home.layer(&plain, &plain).unwrap();
    let blob = Blob { bytes: Box::new(Never), ..of(&plain, Some(digest(&plain))) };
    assert_eq!(layer(&home.state, blob, &UnpackOptions::default()).unwrap(), place);
}

#[test]
fn a_layer_without_a_known_name_gets_that_of_its_content() {
    let home = Home::new();
    let plain = sample();
    let blob = gzip(&plain);
    let place = layer(&home.state, of(&blob, None), &UnpackOptions::default()).unwrap();
    assert_eq!(find(&home.state, &digest(&plain), None), Some(place));
}

#[test]
fn what_is_not_what_its_digests_say_is_not_kept() {
    let home = Home::new();
    let plain = sample();
    let blob = gzip(&plain);
    let other = digest(b"other");
    let invalid = |blob: Blob<'_>, word: &str| {
        let refused = layer(&home.state, blob, &UnpackOptions::default()).unwrap_err();
        let told = refused.to_string();
        assert!(matches!(refused, Error::Invalid { what: "image", .. }), "{told}");
        assert!(told.contains(word) && told.contains("layer sha256:"), "{word}: {told}");
        assert_eq!(home.images(), [""; 0], "{word}");
    };
    invalid(Blob { digest: other.clone(), ..of(&blob, Some(digest(&plain))) }, "its digest");
    invalid(of(&blob, Some(other)), "its diff id");
    invalid(Blob { size: Some(1), ..of(&blob, Some(digest(&plain))) }, "its size");
    // The whole blob counts, also what comes after the end of the archive.
    let longer = [plain.clone(), vec![7; 3000]].concat();
    invalid(Blob { size: None, digest: digest(&plain), ..of(&longer, None) }, "its digest");
    invalid(of(&longer, Some(digest(&plain))), "its diff id");
    let place = home.layer(&longer, &longer).unwrap();
    assert_eq!(tree(&place), sample_tree());
}

#[test]
fn what_is_cut_or_damaged_is_not_kept() {
    let home = Home::new();
    let plain = sample();
    for (by, whole) in [("plain", plain.clone()), ("gzip", gzip(&plain)), ("zstd", zstd(&plain))] {
        let mut tried = 0;
        for length in (0..whole.len()).step_by(whole.len() / 20 + 1).chain([whole.len() - 1]) {
            // Its own digest is right, as of one that was made so.
            let refused = home.layer(&whole[..length], &plain);
            assert!(matches!(refused, Err(Error::Invalid { .. })), "{by} {length}: {refused:?}");
            tried += 1;
        }
        for place in (0..whole.len()).step_by(whole.len() / 20 + 1) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x55;
            // Some of what gzip writes before its data means nothing.
            match home.layer(&damaged, &plain) {
                Ok(place) => {
                    assert_eq!(tree(&place), sample_tree());
                    fs::rename(&place, home.scratch.path(format!("{tried}"))).unwrap();
                }
                Err(Error::Invalid { .. } | Error::Refused { .. } | Error::TooLarge { .. }) => {}
                Err(other) => panic!("{by} {place}: {other:?}"),
            }
            tried += 1;
        }
        assert!(tried > 30, "{tried}");
    }
    assert_eq!(home.images(), [""; 0]);
    for garbage in [b"garbage".to_vec(), vec![1; 4096]] {
        let behind = [gzip(&plain), garbage].concat();
        let refused = home.layer(&behind, &plain);
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    let xz = [b"\xfd7zXZ\0".to_vec(), vec![0; 600]].concat();
    let told = home.layer(&xz, &xz).unwrap_err().to_string();
    assert!(told.contains("xz") && told.contains("unxz"), "{told}");
    assert_eq!(home.images(), [""; 0]);
}

#[test]
fn bombs_end_by_the_caps() {
    let home = Home::new();
    let zeros = |size: usize| Tar::new().file("zeros", vec![0; size]).end();
    let caps = Caps { size: 16 << 20, entries: 100, depth: 10, ratio: 100 };
    let small = UnpackOptions { caps, ..UnpackOptions::default() };
    let refused = |blob: &[u8], plain: &[u8], options: &UnpackOptions<'_>| {
        let result = home.layer_with(blob, plain, options);
        assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
        assert_eq!(home.images(), [""; 0]);
        result.unwrap_err().to_string()
    };
    // By the ratio, long before the size.
    let plain = zeros(12 << 20);
    for blob in [gzip(&plain), zstd(&plain)] {
        let told = refused(&blob, &plain, &small);
        assert!(told.contains("100"), "{told}");
    }
    // By the size: what is behind the end of the archive counts, too.
    let behind = [zeros(1), vec![0; 17 << 20]].concat();
    let loose = UnpackOptions { caps: Caps { ratio: 1 << 20, ..caps }, ..small };
    for plain in [zeros(17 << 20), behind] {
        let told = refused(&zstd(&plain), &plain, &loose);
        assert!(told.contains("16777216"), "{told}");
    }
    // Little pieces between holes, each of which takes a block of the disk.
    let map: Vec<String> = (0..20_000).map(|piece| format!("{},1", piece * 8192)).collect();
    let records = [("GNU.sparse.size", "200000000"), ("GNU.sparse.map", &map.join(","))];
    let pieces = Tar::new().pax(&records).file("x", vec![b'x'; 20_000]).end();
    let wide = UnpackOptions { caps: Caps { size: 400 << 20, ..caps }, ..small };
    home.layer_with(&pieces, &pieces, &wide).unwrap();
    fs::remove_dir_all(home.scratch.path("state/images")).unwrap();
    let narrow = UnpackOptions { caps: Caps { size: 70 << 20, ..caps }, ..small };
    refused(&pieces, &pieces, &narrow);
    // What is small is never a bomb.
    let fits = zeros(1 << 20);
    home.layer_with(&zstd(&fits), &fits, &small).unwrap();
}

/// A window that no one needs takes no memory.
#[test]
fn zstd_may_look_back_only_so_far() {
    let home = Home::new();
    let plain = sample();
    let packed = |window| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.window_log(window).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    home.layer(&packed(27), &plain).unwrap();
    fs::remove_dir_all(home.scratch.path("state/images")).unwrap();
    let refused = home.layer(&packed(28), &plain);
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
}

#[test]
fn a_deadline_ends_it_and_leaves_nothing() {
    /// Something that never ends.
    struct Endless(u64);
    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let header = Tar::new().file("endless", "").0;
            for byte in &mut *into {
                *byte = header[(self.0 % 512) as usize];
                self.0 += 1;
            }
            Ok(into.len())
        }
    }
    let home = Home::new();
    let deadline = Deadline::after(Duration::from_millis(200));
    let options = UnpackOptions {
        deadline,
        caps: Caps { size: u64::MAX, entries: u64::MAX, ..Caps::default() },
        ..UnpackOptions::default()
    };
    let blob = Blob { bytes: Box::new(Endless(0)), size: None, ..of(b"", None) };
    let late = layer(&home.state, blob, &options);
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    assert_eq!(home.images(), [""; 0]);
}

#[test]
fn a_failed_read_is_told_as_such_and_leaves_nothing() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
    let home = Home::new();
    let plain = sample();
    for whole in [plain.clone(), gzip(&plain), zstd(&plain)] {
        let bytes = Box::new(whole[..whole.len() / 2].chain(Broken));
        let blob = Blob { bytes, ..of(&whole, Some(digest(&plain))) };
        let failed = layer(&home.state, blob, &UnpackOptions::default());
        let Err(Error::Io { source, .. }) = &failed else { panic!("{failed:?}") };
        assert_eq!(source.raw_os_error(), Some(libc::EIO));
        assert_eq!(home.images(), [""; 0]);
    }
}

#[test]
fn who_asks_hears_how_far_it_is_and_what_was_made() {
    let home = Home::new();
    let plain = Tar::new()
        .add(&Head::new(b'0', "a").owner(7, 8), "x")
        .add(&Head::new(b'3', "zero").device("0", "0"), "")
        .pax(&[("SCHILY.xattr.security.selinux", "x")])
        .file("b", "x")
        .end();
    let (heard, made) = (Cell::new(0), Cell::new(Unpacked::default()));
    let progress = |bytes: u64| heard.set(bytes);
    let report = |unpacked: &Unpacked| made.set(*unpacked);
    let options = UnpackOptions {
        progress: Some(&progress),
        report: Some(&report),
        ..UnpackOptions::default()
    };
    let blob = gzip(&plain);
    home.layer_with(&blob, &plain, &options).unwrap();
    assert_eq!(heard.get(), blob.len() as u64);
    let squashed = u64::from(!is_root());
    let expected = Unpacked { entries: 3, squashed, left_out: 1, attributes_left_out: 1 };
    assert_eq!(made.get(), expected);
}

#[test]
fn owners_modes_and_times_are_those_of_the_archive() {
    let scratch = Scratch::new();
    let archive = Tar::new()
        .pax(&[("mtime", "1234567890.987654321")])
        .add(&Head::new(b'5', "./").mode("1777").owner(0, 0), "")
        .pax(&[("mtime", "1.5")])
        .add(&Head::new(b'5', "d").mode("2750").owner(3, 4), "")
        .pax(&[("mtime", "-1.25")])
        .add(&Head::new(b'0', "d/f").mode("4711").owner(70_000, 80_000), "x")
        .pax(&[("mtime", "2.25")])
        .add(&Head::new(b'2', "l").link("d").owner(5, 6), "")
        .add(&Head::new(b'6', "p").owner(9, 10).modified("7"), "")
        // After others: the time of the directory stays what the archive says.
        .file("d/later", "x")
        .file("implied/x", "x")
        .end();
    let target = scratch.path("target");
    unpack_as(&archive, &target, Form::Layer, Caps::default()).unwrap();
    let of = |path: &str| {
        let of = fs::symlink_metadata(target.join(path)).unwrap();
        ((of.uid(), of.gid()), of.mode() & 0o7777, (of.mtime(), of.mtime_nsec()))
    };
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let owner = |ids: (u32, u32)| if is_root() { ids } else { own };
    let mode = |mode: u32| if is_root() { mode } else { mode & 0o1777 };
    assert_eq!(of(""), (owner((0, 0)), 0o1777, (1_234_567_890, 987_654_321)));
    assert_eq!(of("d"), (owner((3, 4)), mode(0o2750), (1, 500_000_000)));
    assert_eq!(of("d/f"), (owner((70_000, 80_000)), mode(0o4711), (-2, 750_000_000)));
    assert_eq!(of("l"), (owner((5, 6)), 0o777, (2, 250_000_000)));
    assert_eq!(of("p"), (owner((9, 10)), 0o644, (7, 0)));
    // 0o1000: what the headers of the others say.
    assert_eq!(of("implied"), (owner((0, 0)), 0o755, (0o1000, 0)));
}

/// `security.capability` of a program that may bind any port, as setcap(8) sets it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// `system.posix_acl_access`: rw- for the owner, r-- for user 7, r-- for the group and as the mask.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255,
    255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

#[test]
fn capabilities_and_access_control_lists_are_kept_by_root() {
    let scratch = Scratch::new();
    let target = scratch.path("target");
    let archive = Tar::new()
        .pax(&[("SCHILY.xattr.security.capability", CAPABILITY)])
        .add(&Head::new(b'0', "ping").owner(1, 2).mode("755"), "x")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", ACL)])
        .add(&Head::new(b'0', "listed").mode("640"), "x")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", ACL)])
        .dir("d")
        .file("other", "x")
        .file("d/not-listed", "x")
        .end();
    let unpacked = unpack_as(&archive, &target, Form::Layer, Caps::default()).unwrap();
    let has = |path: &str, name: &str| attribute(&target.join(path), name);
    if !is_root() {
        assert_eq!(unpacked.attributes_left_out, 3);
        return;
    }
    assert_eq!(unpacked.attributes_left_out, 0);
    assert_eq!(has("ping", "security.capability").as_deref(), Some(&CAPABILITY[..]));
    assert_eq!(has("listed", "system.posix_acl_access").as_deref(), Some(&ACL[..]));
    assert_eq!(has("d", "system.posix_acl_default").as_deref(), Some(&ACL[..]));
    // Made in a directory with a list for what is made in it; the archive has none for it.
    assert_eq!(has("d/not-listed", "system.posix_acl_access"), None);
    assert_eq!(fs::metadata(target.join("d/not-listed")).unwrap().mode() & 0o777, 0o644);
}

/// An overlay as inits mount it.
fn merged(scratch: &Scratch, layers: &[&Path]) -> Option<Vec<String>> {
    let options: Vec<_> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
    let options = format!(
        "lowerdir={},userxattr,redirect_dir=nofollow,metacopy=off,index=off",
        options.join(":")
    );
    let place = scratch.path("merged");
    fs::create_dir(&place).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c"])
        .arg("mount -t overlay overlay -o \"$1\" \"$0\" && cd \"$0\" && find . -mindepth 1 | sort")
        .arg(&place)
        .arg(options)
        .output()
        .unwrap();
    fs::remove_dir(&place).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| text.lines().map(|line| line[2..].to_owned()).collect())
}

#[test]
fn an_overlay_of_layers_shows_what_the_image_has() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let below = Tar::new()
        .file("etc/removed", "")
        .file("etc/kept", "")
        .file("opaque/old", "")
        .file("gone/old", "")
        .file("anew/old", "")
        .file("later/old", "")
        .file("was-file", "")
        .file("was-directory/old", "")
        .file("replaced/old", "");
    let above = Tar::new()
        .file("etc/.wh.removed", "")
        .file("opaque/new", "")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.gone", "")
        .file(".wh.anew", "")
        .dir("anew")
        .file("anew/new", "")
        .file("later/new", "")
        .file(".wh.later", "")
        .file("was-file/new", "")
        .file("was-directory", "")
        .symlink("replaced", "etc")
        .dir("replaced")
        .file("replaced/new", "");
    let (low, high) = (scratch.path("low"), scratch.path("high"));
    unpack_as(&below.end(), &low, Form::Layer, Caps::default()).unwrap();
    unpack_as(&above.end(), &high, Form::Layer, Caps::default()).unwrap();
    let shown = merged(&scratch, &[&high, &low]).expect("an overlay");
    let expected = [
        "anew",
        "anew/new",
        "etc",
        "etc/kept",
        "later",
        "later/new",
        "opaque",
        "opaque/new",
        "replaced",
        "replaced/new",
        "was-directory",
        "was-file",
        "was-file/new",
    ];
    assert_eq!(shown, expected);
}

/// The variable that tells a child of a test where the state directory is.
const STATE: &str = "ADL_TEST_LAYER_STATE";

/// Not a test: what children of the tests below do.
#[test]
fn a_child_that_unpacks() {
    let Some(state) = std::env::var_os(STATE) else { return };
    let state = State::open(Some(Path::new(&state))).unwrap();
    let plain = many();
    let blob = gzip(&plain);
    let made = |_: &Unpacked| println!("made it");
    let options = UnpackOptions { report: Some(&made), ..UnpackOptions::default() };
    println!("begins");
    layer(&state, of(&blob, Some(digest(&plain))), &options).unwrap();
}

/// A layer that takes some time.
fn many() -> Vec<u8> {
    (0..1500)
        .fold(Tar::new().dir("d"), |tar, number| {
            tar.file(format!("d/{}/{number}", number % 50), format!("{number}").repeat(500))
        })
        .end()
}

fn child(home: &Home) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image::tests::layers::a_child_that_unpacks", "--nocapture"])
        .env(STATE, home.scratch.path("state"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn many_processes_at_once_unpack_a_layer_once() {
    let home = Home::new();
    let children: Vec<_> = (0..8).map(|_| child(&home)).collect();
    let mut made = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        made += String::from_utf8_lossy(&output.stdout).matches("made it").count();
    }
    assert_eq!(made, 1);
    assert_eq!(home.images().len(), 1);
    let place = find(&home.state, &digest(&many()), None).unwrap();
    let alone = home.scratch.path("alone");
    unpack_as(&many(), &alone, Form::Layer, Caps::default()).unwrap();
    assert_eq!(tree(&place), tree(&alone));
}

#[test]
fn what_a_killed_process_has_left_the_next_one_completes() {
    let home = Home::new();
    let alone = home.scratch.path("alone");
    unpack_as(&many(), &alone, Form::Layer, Caps::default()).unwrap();
    let whole = tree(&alone);
    let diff_id = digest(&many());
    let (mut unfinished, mut next) = (0, 0x9e37_79b9_u32);
    for _ in 0..10 {
        let mut child = child(&home);
        // From the beginning of its work, a moment that differs: killed in the middle, mostly.
        let mut told = [0; 1];
        let stdout = child.stdout.as_mut().unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"begins\n") && stdout.read(&mut told).unwrap() == 1 {
            line.push(told[0]);
        }
        next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_micros(u64::from(next >> 8) % 300_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let left = home.images();
        unfinished += usize::from(left.iter().any(|name| name.starts_with(".making-")));
        // What has its name is whole.
        if let Some(place) = find(&home.state, &diff_id, None) {
            assert_eq!(tree(&place), whole);
            fs::rename(place, home.scratch.path(format!("done-{next}"))).unwrap();
        }
    }
    assert!(unfinished > 0, "positive control: none was killed in the middle");
    let plain = many();
    let place = home.layer(&gzip(&plain), &plain).unwrap();
    assert_eq!(tree(&place), whole);
    assert_eq!(home.images().len(), 1);
    // Without a next one, the collector removes it.
    fs::create_dir(home.scratch.path("state/images/.making-layer-sha256-0")).unwrap();
    let collected = crate::garbage::collect(&home.state).unwrap();
    assert_eq!(collected, [".making-layer-sha256-0"]);
    assert_eq!(home.images().len(), 1);
}
