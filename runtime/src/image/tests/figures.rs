//! What unpacking takes, beside tar(1) on the same disk.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Head, Scratch};
use crate::image::digest::{Digest, Digesting, Hasher};
use crate::image::layer::{Blob, UnpackOptions, layer};
use crate::store::State;

const FILES: usize = 50_000;
const ALL: usize = 1 << 30;
const ROUNDS: usize = 4;

/// A layer of 1 GiB in 50,000 files, that compresses as programs and texts do.
fn make(path: &Path) {
    let mut out =
        GzEncoder::new(BufWriter::new(File::create(path).unwrap()), Compression::default());
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut content = Vec::with_capacity(ALL / FILES + 8);
    for number in 0..FILES {
        if number % 25 == 0 {
            let head = Head::new(b'5', format!("usr/share/{}", number / 25));
            out.write_all(&head.block(0)).unwrap();
        }
        content.clear();
        while content.len() < ALL / FILES {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Of eight bytes, some are always the same.
            content.extend_from_slice(&(random & 0x0000_ffff_00ff_ffff).to_le_bytes());
            content.extend_from_slice(b"the same");
        }
        content.truncate(ALL / FILES);
        let head = Head::new(b'0', format!("usr/share/{}/{number}", number / 25));
        out.write_all(&head.block(content.len())).unwrap();
        content.resize(content.len().next_multiple_of(super::BLOCK), 0);
        out.write_all(&content).unwrap();
    }
    out.write_all(&[0; 1024]).unwrap();
    out.finish().unwrap().flush().unwrap();
}

fn digest(mut from: impl std::io::Read) -> Digest {
    let mut reader = Digesting::new(&mut from, Hasher::like(None));
    std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
    reader.finish().unwrap()
}

/// The most memory that this process has had, in KiB, since it was set back.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
#[ignore = "measures: for a release build on an idle machine"]
fn a_large_layer_takes_no_longer_than_tar_does_and_little_memory() {
    let scratch = Scratch::new();
    let blob = scratch.path("layer.tar.gz");
    make(&blob);
    let of_blob = digest(File::open(&blob).unwrap());
    let diff_id = digest(flate2::read::GzDecoder::new(File::open(&blob).unwrap()));
    let (mut ours, mut tars) = (Vec::new(), Vec::new());
    let mut most = 0;
    let mut unpack_by_tar = |round: usize| {
        nix::unistd::sync();
        let target = scratch.path(format!("tar-{round}"));
        fs::create_dir(&target).unwrap();
        let begin = Instant::now();
        let tar = Command::new("tar").arg("-xzf").arg(&blob).arg("-C").arg(&target).status();
        tars.push(begin.elapsed());
        assert!(tar.unwrap().success());
        fs::remove_dir_all(target).unwrap();
    };
    let mut unpack_layer = |round: usize| {
        nix::unistd::sync();
        let state = State::open(Some(&scratch.path(format!("state-{round}")))).unwrap();
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let begin = Instant::now();
        let blob = Blob {
            digest: of_blob.clone(),
            size: None,
            diff_id: Some(diff_id.clone()),
            bytes: Box::new(File::open(&blob).unwrap()),
        };
        layer(&state, blob, &UnpackOptions::default()).unwrap();
        ours.push(begin.elapsed());
        most = most.max(peak());
        fs::remove_dir_all(state.path()).unwrap();
    };
    // In turns, each first as often: a disk may be fast for a while, and then slow.
    for round in 0..ROUNDS {
        match round % 2 == 0 {
            true => (unpack_by_tar(round), unpack_layer(round)),
            false => (unpack_layer(round), unpack_by_tar(round)),
        };
    }
    println!("layer {ours:.2?}, tar -xzf {tars:.2?}, memory {most} KiB");
    let (ours, tars) = (median(ours), median(tars));
    assert!(ours <= tars.mul_f64(1.1), "{ours:?} beside {tars:?}");
    assert!(most <= 64 << 10, "{most} KiB");
}
