//! Bounds of time and memory, whatever an archive holds.

use std::fs;
use std::io::Cursor;
use std::time::Duration;

use super::{Scratch, Tar, unpack_as};
use crate::error::Error;
use crate::image::layer::{UnpackOptions, flat};
use crate::image::layout;
use crate::image::options::Caps;
use crate::image::place::Place;
use crate::image::unpack::Form;
use crate::wait::Deadline;

fn is_late<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::TimedOut { .. }))
}

#[test]
fn few_bytes_that_are_much_work_end_by_the_deadline() {
    let scratch = Scratch::new();
    let deadline = Deadline::after(Duration::from_millis(100));
    let options = UnpackOptions { deadline, ..UnpackOptions::default() };
    let archive = (0..100).fold(Tar::new(), |tar, number| tar.file(format!("{number}/x"), ""));
    // All of it has been read by then.
    let wait = |_: &[u8]| {
        while !deadline.passed() {
            std::thread::yield_now();
        }
        Ok(())
    };
    let target = scratch.path("target");
    fs::create_dir(&target).unwrap();
    assert!(is_late(flat(&target, Box::new(Cursor::new(archive.end())), &options, wait)));
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}

#[test]
fn what_is_read_of_an_image_is_read_by_the_deadline() {
    let scratch = Scratch::new();
    let archive = scratch.path("x.tar");
    fs::write(&archive, Tar::new().file("index.json", "{}").end()).unwrap();
    let place = |path: &std::path::Path, deadline| {
        Place::open(&path.into(), &scratch.path(""), Caps::default(), deadline)
    };
    let passed = || Deadline::after(Duration::ZERO);
    assert!(is_late(place(&archive, passed())));
    let opened = place(&scratch.path(""), passed()).unwrap();
    assert!(is_late(layout::images(&opened)));
    // Also one that passes while it is read.
    let soon = Deadline::after(Duration::from_secs(2));
    let opened = place(&archive, soon).unwrap();
    let mut content = opened.file("index.json").unwrap().unwrap();
    while !soon.passed() {
        std::thread::yield_now();
    }
    let failed = content.bytes.read(&mut [0; 8]).unwrap_err();
    assert!(is_late::<()>(Err(opened.failed("index.json", failed))));
}

fn is_too_large<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::TooLarge { .. }))
}

#[test]
fn what_is_kept_of_directories_in_one_another_is_bounded() {
    let scratch = Scratch::new();
    // 2 MiB for each, of which most file systems take none: what is tried is what is remembered.
    let unpack = |name: &str, depth: usize, is_deep: bool| {
        let value = "v".repeat(60 << 10);
        let names: Vec<String> = (0..15).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
        let records: Vec<(&str, &str)> = names.iter().map(|name| (&**name, &*value)).collect();
        let tar = (1..=depth).fold(Tar::new(), |tar, depth| {
            let path = if is_deep { "d/".repeat(depth) } else { format!("{depth}/") };
            tar.pax(&records).dir(path)
        });
        let target = scratch.path(name);
        unpack_as(&tar.end(), &target, Form::Root, Caps::default())
    };
    assert!(is_too_large(unpack("deep", 12, true)));
    // Beside one another, they are as many as one likes.
    assert!(!is_too_large(unpack("flat", 12, false)));
}

#[test]
fn names_of_an_archive_of_images_are_kept_up_to_a_bound() {
    let scratch = Scratch::new();
    let place = |count: usize, length: usize| {
        let long = |number: usize| format!("{number:0length$}");
        let add = |tar: Tar, number| tar.pax(&[("path", &*long(number))]).file("x", "content");
        let archive = scratch.path("x.tar");
        fs::write(&archive, (0..count).fold(Tar::new(), add).end()).unwrap();
        let place =
            Place::open(&(&archive).into(), &scratch.path(""), Caps::default(), Deadline::NEVER)?;
        Ok::<_, Error>(place.read(&long(0), 100)?.is_some())
    };
    assert!(place(2, 4000).unwrap());
    // No one can ask for it.
    assert!(!place(2, 5000).unwrap());
    assert!(is_too_large(place(5000, 4000)));
}
