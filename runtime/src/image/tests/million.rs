//! Very many archives, put together of what hurts and then damaged: none leads out, or makes the
//! unpacker panic.

use std::fs;
use std::path::Path;

use super::hostile::cases;
use super::{BLOCK, Head, Scratch, Tar, base256, seal};
use crate::error::Error;
use crate::fuzzing::tests::Random;
use crate::image::fuzzing::{AS_ROOT, Arena, COMPRESSED, WITH_END};

/// Few names, so that they meet.
const NAMES: [&str; 30] = [
    "a",
    "b",
    "l",
    "a/b",
    "a/l",
    "l/a",
    "b/a/l",
    "a/b/l/a",
    "./",
    ".",
    "",
    "..",
    "../canary/file",
    "../canary/directory",
    "/a",
    "a/",
    "l/",
    ".wh.a",
    "a/.wh.b",
    ".wh.l",
    ".wh..wh..opq",
    "a/.wh..wh..opq",
    "l/.wh.file",
    ".wh..",
    ".wh...",
    "l/file",
    "l/directory/file",
    "a/../l",
    ".wh.a/b",
    "l/new",
];

const KINDS: &[u8] = b"00000111222234556DLKxgSVM7\0Q";

const VALUES: [(&str, &str); 14] = [
    ("path", "../canary/new"),
    ("path", "l/new"),
    ("linkpath", "../canary"),
    ("size", "3"),
    ("size", "9223372036854775807"),
    ("mtime", "-1.5"),
    ("uid", "4294967294"),
    ("SCHILY.xattr.user.overlay.opaque", "y"),
    ("SCHILY.xattr.user.x", "y\nz"),
    ("SCHILY.xattr.system.posix_acl_default", "x"),
    ("GNU.sparse.size", "99"),
    ("GNU.sparse.map", "1,1,5,1"),
    ("GNU.sparse.major", "1"),
    ("GNU.sparse.name", "l/sparse"),
];

/// An archive of entries that may fit together, or not.
fn entries(random: &mut Random, out: &str) -> Vec<u8> {
    let mut tar = Tar::new();
    for _ in 0..random.below(12) + 1 {
        if random.below(6) == 0 {
            tar = tar.pax(&[*random.of(&VALUES), *random.of(&VALUES)]);
        }
        let link = if random.below(3) == 0 { out } else { random.of(&NAMES) };
        let mut head = Head::new(*random.of(KINDS), random.of(&NAMES)).link(link);
        if random.below(4) == 0 {
            head = head.mode(["0", "7777", "500", "x"][random.below(4)]).device("1", "3");
        }
        if random.below(20) == 0 {
            head = head.size(base256(1 << random.below(63), 12));
        }
        tar = tar.add(&head, random.of(&["", "x", "1\n0\n1\n", "12 path=../x\n"]));
    }
    tar.end()
}

/// Changes some bytes, mostly so that checksums are right all the same.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        if bytes.len() < BLOCK {
            return;
        }
        let block = random.below(bytes.len() / BLOCK) * BLOCK;
        let place = block + random.below(BLOCK);
        match random.below(8) {
            0 => bytes.truncate(place),
            1 => {
                let other = random.below(bytes.len() / BLOCK) * BLOCK;
                let copy = bytes[other..other + BLOCK].to_vec();
                bytes.splice(block..block, copy);
            }
            2 => drop(bytes.drain(block..block + BLOCK)),
            3 => bytes[block + 156] = *random.of(KINDS),
            4 => bytes[block + 124..block + 136].fill(*random.of(b"07\xff\x80\0x")),
            _ => bytes[place] = *random.of(b"/.\0\xff97\x80 lx\n="),
        }
        if let Some(block) = bytes.get_mut(block..block + BLOCK)
            && random.below(8) != 0
        {
            seal(block);
        }
    }
}

/// How many were made, refused, and no archives.
type Counts = [u64; 3];

fn try_many(inputs: u64, seed: u64) -> Counts {
    let scratch = Scratch::new();
    let arena = Arena::new(scratch.path(""));
    let path = arena.out().to_str().unwrap().to_owned();
    let known: Vec<_> = cases(&path).into_iter().map(|(_, archive, _)| archive.0).collect();
    let small: Vec<_> = known.into_iter().filter(|archive| archive.len() < 64 << 10).collect();
    let mut random = Random(seed);
    let mut counts = Counts::default();
    for number in 0..inputs {
        let input = input(&mut random, &small, &path);
        let at = format!("input {number} of seed {seed}");
        match arena.unpack(&input) {
            Ok(_) => counts[0] += 1,
            Err(Error::Refused { .. } | Error::TooLarge { .. }) => counts[1] += 1,
            Err(Error::Invalid { .. }) => counts[2] += 1,
            Err(_) => {}
        }
        if number % 16 == 0 {
            arena.check(&format!("{at}, or one of the fifteen before it"));
        }
    }
    arena.check("the last ones");
    counts
}

/// One as the fuzz target takes it: how it is unpacked, and an archive, damaged.
fn input(random: &mut Random, known: &[Vec<u8>], out: &str) -> Vec<u8> {
    let mut bytes = match random.below(3) {
        0 => random.of(known).clone(),
        _ => entries(random, out),
    };
    damage(random, &mut bytes);
    let mut how = 0;
    for bit in [AS_ROOT, WITH_END] {
        how |= if random.below(4) == 0 { bit } else { 0 };
    }
    if random.below(32) == 0 {
        bytes = compressed(random, &bytes);
        how |= COMPRESSED;
    }
    bytes.insert(0, how);
    bytes
}

/// Compresses bytes, and damages what comes of that, mostly.
fn compressed(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut packed = if random.below(2) == 0 {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    } else {
        zstd::encode_all(bytes, 1).unwrap()
    };
    for _ in 0..random.below(4) {
        let place = random.below(packed.len());
        packed[place] = random.below(256) as u8;
    }
    packed.truncate(random.below(2 * packed.len()) + 1);
    packed
}

/// Makes what the fuzz target begins with: `fuzz/README.md`.
#[test]
#[ignore = "writes to fuzz/corpus"]
fn the_corpus_of_the_fuzz_target_is_made() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/unpack");
    fs::create_dir_all(&corpus).unwrap();
    let mut random = Random(1);
    for (number, (_, archive, _)) in cases("../canary").into_iter().enumerate() {
        let archive = archive.0;
        if archive.len() > 16 << 10 {
            continue;
        }
        let write = |kind: &str, how: u8, bytes: &[u8]| {
            fs::write(corpus.join(format!("{kind}-{number}")), [&[how], bytes].concat()).unwrap();
        };
        write("layer", 0, &archive);
        write("root", AS_ROOT | WITH_END, &[&archive[..], &[0; 1024]].concat());
        if number % 8 == 0 {
            write("packed", COMPRESSED, &compressed(&mut random, &archive));
        }
    }
}

fn check(counts: Counts) {
    let all: u64 = counts.iter().sum();
    println!("made, refused, no archives: {counts:?}");
    // Each kind is there: else they would test little.
    assert!(counts.iter().all(|count| count * 20 > all), "{counts:?}");
}

#[test]
fn archives_that_were_put_together_at_random_lead_nowhere() {
    check(try_many(1000, 0x2545_f491_4f6c_dd1d));
}

/// As many as `ADL_FUZZ_INPUTS` says, a million without, of the seed `ADL_FUZZ_SEED`.
#[test]
#[ignore = "takes minutes"]
fn a_million_archives_lead_nowhere() {
    let of =
        |name, default| std::env::var(name).map_or(default, |value| value.parse::<u64>().unwrap());
    let (inputs, seed) = (of("ADL_FUZZ_INPUTS", 1_000_000), of("ADL_FUZZ_SEED", 1));
    const THREADS: u64 = 2;
    let counts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || try_many(inputs / THREADS, seed * 1000 + thread + 1)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let sum = |kind: usize| counts.iter().map(|counts| counts[kind]).sum();
    check([sum(0), sum(1), sum(2)]);
}
