//! Archives that no honest tool makes: each is unpacked to the right result, or refused with a
//! typed error, and nothing beside the target is touched.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use super::layers::{digest, of};
use super::{
    Head, Scratch, Tar, attribute, base256, canary, fingerprint, is_root, seal, tree, unpack_as,
};
use crate::error::{Error, Result};
use crate::image::layer::{UnpackOptions, layer};
use crate::image::options::Caps;
use crate::image::unpack::Form;
use crate::store::State;
use crate::store::contents::remove_entry;

/// What becomes of an archive.
#[derive(Clone)]
pub(super) enum Outcome {
    /// It leads out, or can't be a tree.
    Refused,
    /// It is no archive.
    Invalid,
    /// It is above a cap.
    TooLarge,
    /// This is made, as [`tree`] tells it, beside the top.
    Made(Vec<String>),
}

use Outcome::{Invalid, Refused, TooLarge};

fn made(lines: &[&str]) -> Outcome {
    let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    lines.sort();
    Outcome::Made(lines)
}

fn is<T>(result: &Result<T>, lines: &[String], expected: &Outcome) -> bool {
    match (result, expected) {
        (Err(Error::Refused { .. }), Refused)
        | (Err(Error::Invalid { what: "archive" | "image", .. }), Invalid)
        | (Err(Error::TooLarge { .. }), TooLarge) => true,
        (Ok(_), Outcome::Made(expected)) => lines == expected,
        _ => false,
    }
}

const CAPS: Caps = Caps { size: 1 << 20, entries: 200, depth: 20, ratio: 1000 };

type Case = (&'static str, Tar, Outcome);

/// The archives; `out` is the path of what nothing may be done to.
pub(super) fn cases(out: &str) -> Vec<Case> {
    [
        paths(),
        links(out),
        hard_links(out),
        kinds(),
        attributes_of_others(),
        replaced(),
        marks(out),
        numbers(),
        forms(),
    ]
    .concat()
}

fn paths() -> Vec<Case> {
    let longest = "n".repeat(255);
    let line = format!("{longest} f644 x");
    vec![
        ("a file above the top", Tar::new().file("../canary/new", "x"), Refused),
        ("a file above the top, from below", Tar::new().file("a/../../canary/new", "x"), Refused),
        ("`..` that would stay inside", Tar::new().file("a/../b", "x"), Refused),
        ("the directory above the top", Tar::new().dir(".."), Refused),
        ("a link above the top", Tar::new().symlink("../canary/link", "x"), Refused),
        ("a FIFO above the top", Tar::new().add(&Head::new(b'6', "../fifo"), ""), Refused),
        ("a mark above the top", Tar::new().file("../canary/.wh.file", ""), Refused),
        (
            "an absolute path",
            Tar::new().file("/etc/passwd", "x"),
            made(&["etc d755", "etc/passwd f644 x"]),
        ),
        ("an absolute path that leads out", Tar::new().file("/../canary/file", "x"), Refused),
        ("many slashes and dots", Tar::new().file("//a//./b/", ""), made(&["a d755", "a/b d644"])),
        (
            "a name of 255 bytes",
            Tar::new().pax(&[("path", &longest)]).file("x", "x"),
            made(&[&line]),
        ),
        (
            "a name of 256 bytes",
            Tar::new().pax(&[("path", "n".repeat(256))]).file("x", "x"),
            Refused,
        ),
        (
            "names that are not UTF-8",
            Tar::new().dir(b"\xff\xfe").file(b"\xff\xfe/\x80\n", "x"),
            made(&["\\xff\\xfe d755", "\\xff\\xfe/\\x80\\n f644 x"]),
        ),
        ("a NUL in a path", Tar::new().pax(&[("path", b"a\0b")]).file("x", ""), Refused),
        ("no name", Tar::new().file("", "x"), Invalid),
        ("a file as the top", Tar::new().file(".", "x"), Invalid),
        ("a link as the top", Tar::new().symlink("./", "/etc"), Invalid),
        ("a long name that leads out", long(b'L', b"../canary/new").file("x", "x"), Refused),
        ("a pax name that leads out", Tar::new().pax(&[("path", "../x")]).file("x", "x"), Refused),
        ("deeper than the cap", Tar::new().file("d/".repeat(20) + "x", "x"), TooLarge),
        (
            "more than the cap",
            (0..201).fold(Tar::new(), |tar, number| tar.file(number.to_string(), "")),
            TooLarge,
        ),
        (
            "more by the directories that are not named",
            (0..101).fold(Tar::new(), |tar, number| tar.file(format!("{number}/x"), "")),
            TooLarge,
        ),
    ]
}

/// GNU's header for a long name or link.
fn long(kind: u8, name: &[u8]) -> Tar {
    Tar::new().add(&Head::new(kind, "././@LongLink").gnu(Vec::new()), name)
}

fn links(out: &str) -> Vec<Case> {
    let outward = |tar: Tar| tar.symlink("l", "../canary");
    let absolute = |tar: Tar| tar.symlink("l", out);
    let to_file = format!("{out}/file");
    let line = format!("l -> {out}");
    vec![
        ("a file through a link", outward(Tar::new()).file("l/new", "x"), Refused),
        ("a file through an absolute link", absolute(Tar::new()).file("l/new", "x"), Refused),
        ("a file over one behind a link", absolute(Tar::new()).file("l/file", "x"), Refused),
        ("a directory through a link", absolute(Tar::new()).dir("l/new"), Refused),
        ("a directory over one behind a link", absolute(Tar::new()).dir("l/directory"), Refused),
        ("a link through a link", absolute(Tar::new()).symlink("l/new", "x"), Refused),
        ("a FIFO through a link", absolute(Tar::new()).add(&Head::new(b'6', "l/new"), ""), Refused),
        (
            "a device through a link",
            absolute(Tar::new()).add(&Head::new(b'3', "l/new").device("1", "3"), ""),
            Refused,
        ),
        (
            "a hard link made through a link",
            absolute(Tar::new().file("a", "")).hard("l/n", "a"),
            Refused,
        ),
        (
            "a link to a directory of the archive",
            Tar::new().dir("d").symlink("l", "d").file("l/x", ""),
            Refused,
        ),
        (
            "a way through two links",
            outward(Tar::new()).symlink("m", "l").file("m/new", "x"),
            Refused,
        ),
        (
            "links in a circle",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", ""),
            Refused,
        ),
        (
            "a file in the place of a link",
            Tar::new().symlink("l", &to_file).file("l", "new"),
            made(&["l f644 new"]),
        ),
        (
            "a directory in the place of a link",
            absolute(Tar::new()).dir("l").file("l/new", "x"),
            made(&["l d755 opaque", "l/new f644 x"]),
        ),
        (
            "what is below a directory that became a link",
            Tar::new().file("l/a", "x").symlink("l", out).file("l/b", "x"),
            Refused,
        ),
        ("a link that stays one", absolute(Tar::new()), made(&[&line])),
        (
            "the host's directories as links",
            ["dev", "proc", "sys", "etc"]
                .iter()
                .fold(Tar::new(), |tar, name| tar.symlink(name, "/")),
            made(&["dev -> /", "proc -> /", "sys -> /", "etc -> /"]),
        ),
        (
            "what is below /etc as a link",
            Tar::new().symlink("etc", out).file("etc/passwd", ""),
            Refused,
        ),
        ("a link to nothing", Tar::new().symlink("l", ""), Refused),
        (
            "a link that is too long",
            Tar::new().pax(&[("linkpath", "x".repeat(4096))]).symlink("l", "x"),
            Refused,
        ),
        (
            "a link of 4095 bytes",
            Tar::new().pax(&[("linkpath", "x".repeat(4095))]).symlink("l", "x"),
            made(&[&format!("l -> {}", "x".repeat(4095))]),
        ),
        (
            "the owner and mode of a link are not those of what it leads to",
            Tar::new().add(&Head::new(b'2', "l").link(out).mode("777").owner(0, 0), ""),
            made(&[&line]),
        ),
    ]
}

fn hard_links(out: &str) -> Vec<Case> {
    let to_file = format!("{out}/file");
    vec![
        ("a hard link outward", Tar::new().hard("h", "../canary/file"), Refused),
        ("a hard link by an absolute path", Tar::new().hard("h", &to_file), Refused),
        ("a hard link to what comes later", Tar::new().hard("h", "x").file("x", ""), Refused),
        ("a hard link to itself", Tar::new().hard("h", "h"), Refused),
        ("a hard link to the top", Tar::new().hard("h", "."), Refused),
        ("a hard link to a directory", Tar::new().dir("d").hard("h", "d"), Refused),
        ("a hard link through a link", Tar::new().symlink("l", out).hard("h", "l/file"), Refused),
        (
            "a hard link through a link inside",
            Tar::new().file("d/x", "").symlink("l", "d").hard("h", "l/x"),
            Refused,
        ),
        ("a hard link through a file", Tar::new().file("f", "").hard("h", "f/x"), Refused),
        ("a hard link to a mark", Tar::new().file(".wh.x", "").hard("h", "x"), Refused),
        (
            "a hard link to a link, and a file in its place",
            Tar::new().symlink("l", &to_file).hard("h", "l").file("h", "new"),
            made(&[&format!("l -> {to_file}"), "h f644 new"]),
        ),
        (
            "a hard link again",
            Tar::new().file("f", "x").hard("h", "f").hard("h", "f").hard("f", "h"),
            made(&["f f644 x", "h f644 x"]),
        ),
        (
            "a hard link in the place of the directory it leads into",
            Tar::new().file("a/b", "x").hard("a", "a/b"),
            Refused,
        ),
        (
            "a hard link across directories, with a size",
            Tar::new()
                .file("a/f", "x")
                .dir("b")
                .add(&Head::new(b'1', "b/h").link("a/f").size("5"), "")
                .file("c", ""),
            made(&["a d755", "a/f f644 x", "b d755", "b/h f644 x", "c f644 "]),
        ),
        ("a long hard link outward", long(b'K', b"../canary/file").hard("h", "x"), Refused),
    ]
}

/// Those that an image may not set.
fn attributes_of_others() -> Vec<Case> {
    let attributes = |tar: Tar| {
        tar.pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", "y"),
            ("SCHILY.xattr.user.overlay.opaque", "y"),
            ("SCHILY.xattr.user.overlay.redirect", "/etc"),
            ("SCHILY.xattr.trusted.overlay.metacopy", "y"),
            ("SCHILY.xattr.user.overlay.whiteout", "y"),
            ("SCHILY.xattr.security.selinux", "system_u:object_r:shadow_t:s0"),
            ("SCHILY.xattr.security.ima", "x"),
        ])
    };
    vec![(
        "attributes of overlays, and of the host's modules",
        attributes(attributes(Tar::new()).dir("d")).file("d/x", "x"),
        made(&["d d755", "d/x f644 x"]),
    )]
}

fn kinds() -> Vec<Case> {
    let with = |root: &[&str]| if is_root() { made(root) } else { made(&[]) };
    vec![
        (
            "a device",
            Tar::new().add(&Head::new(b'3', "null").mode("666").device("1", "3"), ""),
            with(&["null c666 1:3"]),
        ),
        (
            "a disk",
            Tar::new().add(&Head::new(b'4', "sda").mode("660").device("10", "0"), ""),
            with(&["sda b660 8:0"]),
        ),
        (
            "what overlays take for a mark",
            Tar::new().file("x", "x").add(&Head::new(b'3', "x").device("0", "0"), ""),
            made(&[]),
        ),
        (
            "a device of a negative number",
            Tar::new()
                .add(&Head::new(b'3', "x").device(b"\xff\xff\xff\xff\xff\xff\xff\xff", "0"), ""),
            Invalid,
        ),
        ("a FIFO", Tar::new().add(&Head::new(b'6', "p").mode("640"), ""), made(&["p p640"])),
        (
            "what no one knows",
            Tar::new().add(&Head::new(b'Q', "what"), [7; 600]).file("x", "x"),
            made(&["x f644 x"]),
        ),
        (
            "set-id bits of root",
            Tar::new().add(&Head::new(b'0', "su").mode("6755"), "x"),
            made(&["su f6755 x"]),
        ),
        (
            "set-id bits of others",
            Tar::new().add(&Head::new(b'0', "at").mode("6755").owner(1, 1), "x"),
            if is_root() { made(&["at f6755 x"]) } else { made(&["at f755 x"]) },
        ),
        (
            "more than a mode has",
            Tar::new().add(&Head::new(b'0', "x").mode("7777777"), ""),
            made(&["x f7777 "]),
        ),
        (
            "a directory that no one may enter",
            Tar::new()
                .add(&Head::new(b'5', "d").mode("0"), "")
                .file("d/x", "x")
                .dir("e")
                .file("d/y", "y"),
            made(&["d d0", "d/x f644 x", "d/y f644 y", "e d755"]),
        ),
        (
            "an owner that no file can have",
            Tar::new().add(&Head::new(b'0', "x").owner(u64::from(u32::MAX), 0), ""),
            Refused,
        ),
        (
            "an owner above all",
            Tar::new().add(&Head::new(b'0', "x").owner(1 << 32, 0), ""),
            Invalid,
        ),
    ]
}

fn replaced() -> Vec<Case> {
    vec![
        (
            "the later one of two files",
            Tar::new().file("a", "old").add(&Head::new(b'0', "a").mode("600"), "new"),
            made(&["a f600 new"]),
        ),
        (
            "a file in the place of a directory",
            Tar::new().file("a/b/c", "x").file("a", "new"),
            made(&["a f644 new"]),
        ),
        (
            "a directory in the place of a file",
            Tar::new().file("a", "old").dir("a").file("a/b", "x"),
            made(&["a d755 opaque", "a/b f644 x"]),
        ),
        ("a path through a file", Tar::new().file("a", "").file("a/b", "x"), Refused),
        (
            "a path through a FIFO",
            Tar::new().add(&Head::new(b'6', "a"), "").file("a/b", ""),
            Refused,
        ),
        (
            "a directory that was a file, and a file again",
            Tar::new().file("a", "1").dir("a").file("a", "2"),
            made(&["a f644 2"]),
        ),
        (
            "a link in the place of a directory",
            Tar::new().file("a/b", "x").symlink("a", "c"),
            made(&["a -> c"]),
        ),
        (
            "a FIFO in the place of a directory",
            Tar::new().file("a/b", "x").add(&Head::new(b'6', "a"), ""),
            made(&["a p644"]),
        ),
        (
            "the later one of two directories",
            Tar::new().dir("d").file("d/x", "x").add(&Head::new(b'5', "d").mode("700"), ""),
            made(&["d d700", "d/x f644 x"]),
        ),
        (
            "the later one of two tops",
            Tar::new().dir("./").file("x", "").add(&Head::new(b'5', "./").mode("711"), ""),
            made(&["x f644 "]),
        ),
    ]
}

fn marks(out: &str) -> Vec<Case> {
    vec![
        ("a mark", Tar::new().file("a/.wh.b", ""), made(&["a d755", "a/b whiteout"])),
        ("a mark for no name", Tar::new().file(".wh.", ""), Refused),
        ("a mark for `.`", Tar::new().file("a/.wh..", ""), Refused),
        ("a mark for `..`", Tar::new().file("a/.wh...", ""), Refused),
        // There is nothing to hide: what was below is hidden by the link.
        (
            "a mark through a link",
            Tar::new().symlink("l", out).file("l/.wh.file", ""),
            made(&[&format!("l -> {out}")]),
        ),
        ("a mark below a file", Tar::new().file("f", "x").file("f/.wh.a", ""), made(&["f f644 x"])),
        (
            "an opaque mark through a link",
            Tar::new().symlink("l", out).file("l/.wh..wh..opq", ""),
            made(&[&format!("l -> {out}")]),
        ),
        ("a file below a mark", Tar::new().file(".wh.a/b", "x"), Refused),
        ("a mark that is a directory", Tar::new().dir(".wh.a"), made(&["a whiteout"])),
        ("a mark after the file", Tar::new().file("a", "x").file(".wh.a", ""), made(&["a f644 x"])),
        (
            "a mark after the link",
            Tar::new().symlink("a", out).file(".wh.a", ""),
            made(&[&format!("a -> {out}")]),
        ),
        (
            "a mark before the file",
            Tar::new().file(".wh.a", "").file("a", "x"),
            made(&["a f644 x"]),
        ),
        (
            "a mark after the directory",
            Tar::new().file("a/b", "x").file(".wh.a", ""),
            made(&["a d755 opaque", "a/b f644 x"]),
        ),
        (
            "a mark before the directory",
            Tar::new().file(".wh.a", "").dir("a").file("a/b", "x"),
            made(&["a d755 opaque", "a/b f644 x"]),
        ),
        (
            "a mark before a directory that is not named",
            Tar::new().file(".wh.a", "").file("a/b", "x"),
            made(&["a d755 opaque", "a/b f644 x"]),
        ),
        ("a mark twice", Tar::new().file(".wh.a", "").file(".wh.a", ""), made(&["a whiteout"])),
        (
            "an opaque mark of the top",
            Tar::new().file(".wh..wh..opq", "").file("a", "x"),
            made(&["a f644 x", "d755 opaque"]),
        ),
        (
            "an opaque mark of the top that has a mode",
            Tar::new().file(".wh..wh..opq", "").add(&Head::new(b'5', "./").mode("711"), ""),
            made(&["d711 opaque"]),
        ),
        (
            "an opaque mark of what is above the top",
            Tar::new().file("../.wh..wh..opq", ""),
            Refused,
        ),
        (
            "an opaque mark first",
            Tar::new().dir("a").file("a/.wh..wh..opq", "").file("a/b", "x"),
            made(&["a d755 opaque", "a/b f644 x"]),
        ),
        (
            "an opaque mark last",
            Tar::new().dir("a").file("a/b", "x").file("c", "").file("a/.wh..wh..opq", ""),
            made(&["a d755 opaque", "a/b f644 x", "c f644 "]),
        ),
        (
            "an opaque mark in a directory that is described again",
            Tar::new().dir("a").file("a/.wh..wh..opq", "").file("c", "").dir("a"),
            made(&["a d755 opaque", "c f644 "]),
        ),
        (
            "marks of aufs",
            Tar::new()
                .dir(".wh..wh.plnk")
                .file(".wh..wh.plnk/1.2", "x")
                .file(".wh..wh.aufs", "")
                .file("x", ""),
            made(&["x f644 "]),
        ),
        (
            "a mark for a name of 251 bytes",
            Tar::new().pax(&[("path", format!(".wh.{}", "n".repeat(251)))]).file("x", ""),
            made(&[&format!("{} whiteout", "n".repeat(251))]),
        ),
    ]
}

fn numbers() -> Vec<Case> {
    let absurd = |size: u64| Tar::new().add(&Head::new(b'0', "x").size(base256(size, 12)), "");
    let pax =
        |key: &'static str, value: &'static str| Tar::new().pax(&[(key, value)]).file("x", "abc");
    let sparse = |size: &str, map: &str| {
        let records = [("GNU.sparse.size", size), ("GNU.sparse.map", map)];
        Tar::new().pax(&records).file("x", "abcd")
    };
    // Four pieces, whether there are more, and the size.
    let gnu = |pieces: &[u8], more: u8, size: &[u8]| {
        let mut rest = vec![0; 41];
        rest.extend_from_slice(pieces);
        rest.resize(41 + 96, 0);
        rest.push(more);
        rest.extend_from_slice(size);
        Tar::new().add(&Head::new(b'S', "x").gnu(rest), "abcd")
    };
    let piece = |offset: u64, length: u64| [base256(offset, 12), base256(length, 12)].concat();
    vec![
        ("a file of 8 EiB", absurd((1 << 63) - 1), TooLarge),
        ("a file above the cap", absurd((1 << 20) + 1), TooLarge),
        (
            "a file of a negative size",
            Tar::new().add(&Head::new(b'0', "x").size([0xff; 12]), ""),
            Invalid,
        ),
        (
            "a size above all numbers",
            Tar::new().add(
                &Head::new(b'0', "x").size([0x80, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]),
                "",
            ),
            Invalid,
        ),
        ("a size that is none", Tar::new().add(&Head::new(b'0', "x").size("12x"), ""), Invalid),
        (
            "a directory of 8 EiB, which has no content",
            Tar::new().add(&Head::new(b'5', "x").size(base256((1 << 63) - 1, 12)), ""),
            made(&["x d755"]),
        ),
        ("a size of pax that is absurd", pax("size", "9223372036854775807"), TooLarge),
        ("a size of pax above all numbers", pax("size", "99999999999999999999"), Invalid),
        ("a size of pax that is negative", pax("size", "-1"), Invalid),
        ("a time of pax that is none", pax("mtime", "x"), Invalid),
        ("a time of pax above all numbers", pax("mtime", "9223372036854775808"), Invalid),
        (
            "a time after all",
            Tar::new().add(&Head::new(b'0', "x").modified(base256(u64::MAX >> 1, 12)), ""),
            made(&["x f644 "]),
        ),
        (
            "a time before all",
            Tar::new().add(&Head::new(b'0', "x").modified([0xff; 12]), ""),
            made(&["x f644 "]),
        ),
        ("an owner of pax above all", pax("uid", "4294967296"), Invalid),
        (
            "an extension above its cap",
            Tar::new().add(&Head::new(b'x', "pax").size(base256((1 << 20) + 1, 12)), ""),
            TooLarge,
        ),
        (
            "an extension of 8 EiB",
            Tar::new().add(&Head::new(b'x', "pax").size(base256((1 << 63) - 1, 12)), ""),
            TooLarge,
        ),
        (
            "a long name above its cap",
            Tar::new().add(&Head::new(b'L', "x").size(base256(1 << 40, 12)), ""),
            TooLarge,
        ),
        (
            "what is said of all, above its cap",
            Tar::new().add(&Head::new(b'g', "x").size(base256(1 << 40, 12)), ""),
            TooLarge,
        ),
        (
            "a record of pax that is too long",
            Tar::new().add(&Head::new(b'x', "p"), "99 path=x\n").file("x", ""),
            Invalid,
        ),
        (
            "a record of pax without a length",
            Tar::new().add(&Head::new(b'x', "p"), "path=x\n").file("x", ""),
            Invalid,
        ),
        (
            "a record of pax without a value",
            Tar::new().add(&Head::new(b'x', "p"), "7 path\n").file("x", ""),
            Invalid,
        ),
        ("holes of 8 EiB", sparse("9223372036854775807", "9223372036854775803,4"), TooLarge),
        ("holes above all numbers", sparse("18446744073709551615", "0,4"), Invalid),
        ("pieces that overlap", sparse("9", "0,2,1,2"), Invalid),
        ("pieces out of order", sparse("9", "5,2,0,2"), Invalid),
        ("pieces beyond the end", sparse("9", "7,4"), Invalid),
        ("pieces that are not there", sparse("9", "0,5"), Invalid),
        ("a sum of pieces above all numbers", sparse("9", "0,18446744073709551615,0,5"), Invalid),
        (
            "pieces and holes",
            sparse("9", "1,2,4,2"),
            made(&["x f644 \\x00ab\\x00cd\\x00\\x00\\x00"]),
        ),
        ("very many pieces", sparse("99", &"0,0,".repeat(70_000)), Invalid),
        ("GNU's holes of 8 EiB", gnu(&piece(0, 4), 0, &base256((1 << 63) - 1, 12)), TooLarge),
        ("GNU's pieces that overlap", gnu(&[piece(4, 2), piece(0, 2)].concat(), 0, b"10"), Invalid),
        (
            "a map of GNU's without an end",
            (0..9).fold(gnu(&piece(0, 4), 1, b"10"), |tar, _| tar.raw(&[b'\x01'; 512])),
            Invalid,
        ),
        (
            "a map of GNU's of nothing",
            (0..9).fold(gnu(&piece(0, 4), 1, b"10"), |tar, _| {
                let mut block = [0; 512];
                block[504] = 1;
                tar.raw(&block)
            }),
            Invalid,
        ),
        (
            "a map in lines without an end",
            Tar::new()
                .pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")])
                .file("x", [b'1'; 2048]),
            Invalid,
        ),
        (
            "a map in lines of absurdly many",
            Tar::new()
                .pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")])
                .file("x", format!("99999999999\n{}", "0\n".repeat(200_000))),
            Invalid,
        ),
    ]
}

fn forms() -> Vec<Case> {
    let mut wrong = Tar::new().file("x", "x");
    wrong.0[0] = b'y';
    let mut signed = Tar::new().file(b"\xff", "x");
    signed.0[148..156].copy_from_slice(b"000000\0 ");
    let mut resealed = Tar::new().file("x", "x");
    seal(&mut resealed.0[..512]);
    let mut cut = Tar::new().file("x", [b'x'; 2000]);
    cut.0.truncate(1000);
    let mut half = Tar::new().file("x", "x");
    half.0.extend_from_slice(&[b'x'; 100]);
    vec![
        ("nothing", Tar::new(), made(&[])),
        ("a header with a wrong sum", wrong, Invalid),
        ("a header without a sum", signed, Invalid),
        ("a header that is sealed again", resealed, made(&["x f644 x"])),
        ("content that is cut", cut, Invalid),
        ("a header that is cut", half, Invalid),
        ("a name for nothing", long(b'L', b"x"), Invalid),
        ("a part of another archive", Tar::new().add(&Head::new(b'M', "x"), ""), Invalid),
        ("no archive", Tar(vec![b'x'; 4096]), Invalid),
        (
            "what is said of all",
            Tar::new().add(&Head::new(b'g', "g"), "9 path=x\n").file("y", ""),
            made(&["y f644 "]),
        ),
    ]
}

#[test]
fn hostile_archives_have_the_right_result_or_a_typed_error_and_touch_nothing_else() {
    let scratch = Scratch::new();
    let around = scratch.path("around");
    canary(&around.join("canary"));
    let out = around.join("canary");
    let cases = cases(out.to_str().unwrap());
    assert!(cases.len() >= 100, "{}", cases.len());
    let state = State::open(Some(&around.join("state"))).unwrap();
    let cache = state.images().unwrap();
    let in_cache = || fs::read_dir(&cache).unwrap().count();
    let options = UnpackOptions { caps: CAPS, ..UnpackOptions::default() };
    let before = fingerprint(&out);
    let mut wrong = Vec::new();
    for (number, (name, archive, expected)) in cases.into_iter().enumerate() {
        let target = around.join(number.to_string());
        // Without the mark of its end, so that an archive may be cut.
        let result = unpack_as(&archive.0, &target, Form::Layer, CAPS);
        let lines = below_top(&target);
        if !is(&result, &lines, &expected) {
            wrong.push(format!("{name}: {result:?}, {lines:?}"));
        }
        assert_eq!(fingerprint(&out), before, "{name}");
        // In the cache, it is whole, or nothing of it is there.
        let blob = of(&archive.0, Some(digest(&archive.0)));
        let result = layer(&state, blob, &options);
        let lines = result.as_ref().map_or(Vec::new(), |place| below_top(place));
        if !is(&result, &lines, &expected) {
            wrong.push(format!("{name}, in the cache: {result:?}, {lines:?}"));
        }
        assert_eq!(in_cache(), usize::from(result.is_ok()), "{name}");
        assert_eq!(fingerprint(&out), before, "{name}");
        if let Ok(place) = result {
            remove_entry(File::open(&cache).unwrap().as_fd(), place.file_name().unwrap()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What [`tree`] tells, without a top of which there is but a mode to tell.
fn below_top(top: &Path) -> Vec<String> {
    let mut lines = tree(top);
    lines.retain(|line| !(line.starts_with("d7") && line.len() == "d755".len()));
    lines
}

#[test]
fn attributes_of_overlays_and_of_the_hosts_modules_are_not_an_images_to_set() {
    let scratch = Scratch::new();
    let target = scratch.path("target");
    let [.., (name, archive, _)] = &attributes_of_others()[..] else { unreachable!() };
    let unpacked = unpack_as(&archive.0, &target, Form::Layer, CAPS).unwrap();
    assert!(unpacked.attributes_left_out >= 14, "{name}: {unpacked:?}");
    for path in ["", "d", "d/x"] {
        let file = File::open(target.join(path)).unwrap();
        let names = crate::sys::extended_attributes(file.as_fd()).unwrap();
        let names: Vec<_> = names.iter().map(|name| name.to_str().unwrap()).collect();
        // What adl itself says of layers.
        let of_others = |name: &&&str| !name.starts_with("user.overlay.adl-");
        let left: Vec<_> = names.iter().filter(of_others).collect();
        assert!(left.iter().all(|name| **name == "security.selinux"), "{path}: {names:?}");
        // Where the host has such a module, the label is the host's own.
        assert_ne!(
            attribute(&target.join(path), "security.selinux").as_deref(),
            Some(&b"system_u:object_r:shadow_t:s0"[..])
        );
    }
}

/// What the cases lean on: who follows links writes to where the canary is.
#[test]
fn who_follows_links_is_led_out() {
    let scratch = Scratch::new();
    canary(&scratch.path("canary"));
    fs::create_dir(scratch.path("target")).unwrap();
    std::os::unix::fs::symlink("../canary", scratch.path("target/l")).unwrap();
    let before = fingerprint(&scratch.path("canary"));
    fs::write(scratch.path("target/l/new"), "x").unwrap();
    assert_ne!(fingerprint(&scratch.path("canary")), before);
}

#[test]
fn in_a_root_file_system_names_are_names() {
    let scratch = Scratch::new();
    let target = scratch.path("target");
    let archive = Tar::new()
        .file(".wh.a", "1")
        .file("d/.wh..wh..opq", "2")
        .file(".wh..wh.plnk", "3")
        .file(".wh.x/y", "4")
        .file("f", "5")
        .dir("f");
    unpack_as(&archive.end(), &target, Form::Root, CAPS).unwrap();
    let expected = [
        ".wh..wh.plnk f644 3",
        ".wh.a f644 1",
        ".wh.x d755",
        ".wh.x/y f644 4",
        "d d755",
        "d/.wh..wh..opq f644 2",
        "d755",
        "f d755",
    ];
    assert_eq!(tree(&target), expected);
    // Here nothing but the mark tells that it is whole.
    let cut = Tar::new().file("x", "x").0;
    let result = unpack_as(&cut, &scratch.path("cut"), Form::Root, CAPS);
    assert!(matches!(result, Err(Error::Invalid { what: "archive", .. })), "{result:?}");
}

#[test]
fn attributes_of_an_archive_are_kept_to_the_byte() {
    let scratch = Scratch::new();
    let target = scratch.path("target");
    let value: Vec<u8> = (0..=255).collect();
    let archive = Tar::new()
        .pax(&[("SCHILY.xattr.user.directory", &b"a\nb"[..])])
        .dir("d")
        .pax(&[("SCHILY.xattr.user.bytes", value.as_slice())])
        .file("d/x", "x")
        .pax(&[("SCHILY.xattr.user.other", &b"new"[..])])
        .dir("e")
        // Of a directory that comes twice, the later one's.
        .pax(&[("SCHILY.xattr.user.again", &b"new"[..])])
        .dir("d");
    let unpacked = unpack_as(&archive.end(), &target, Form::Layer, CAPS).unwrap();
    assert_eq!(unpacked.attributes_left_out, 0);
    assert_eq!(attribute(&target.join("d/x"), "user.bytes"), Some(value));
    assert_eq!(attribute(&target.join("e"), "user.other").as_deref(), Some(&b"new"[..]));
    assert_eq!(attribute(&target.join("d"), "user.again").as_deref(), Some(&b"new"[..]));
    assert_eq!(attribute(&target.join("d"), "user.directory"), None);
}
