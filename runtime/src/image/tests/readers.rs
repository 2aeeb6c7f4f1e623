//! Archives that two readers might see two trees in.

use std::fs;

use super::{Head, Scratch, Tar, unpack_as};
use crate::error::Error;
use crate::image::options::Caps;
use crate::image::unpack::Form;

#[test]
fn what_has_no_content_has_none_whatever_its_size_says() {
    let scratch = Scratch::new();
    // What follows it, by its size its content, is a file to Go's reader.
    let inner = Tar::new().file("seen", "x").0;
    for kind in *b"123456" {
        let name = format!("of-{}", char::from(kind));
        let link = Head::new(kind, "it").link("first").device("1", "3");
        let tar = Tar::new().file("first", "").raw(&link.block(inner.len()));
        let target = scratch.path(&name);
        unpack_as(&tar.raw(&inner).end(), &target, Form::Layer, Caps::default()).unwrap();
        assert_eq!(fs::read(target.join("seen")).unwrap(), b"x", "{name}");
    }
}

#[test]
fn nothing_follows_the_end_of_an_archive() {
    let scratch = Scratch::new();
    let unpack = |name: &str, bytes: &[u8]| {
        let target = scratch.path(name);
        unpack_as(bytes, &target, Form::Layer, Caps::default())
    };
    let one = Tar::new().file("one", "x").0;
    let hidden = [&one[..], &[0; 512], &Tar::new().file("two", "x").end()].concat();
    let refused = unpack("hidden", &hidden);
    assert!(
        matches!(&refused, Err(Error::Invalid { why, .. }) if why.contains("follows")),
        "{refused:?}"
    );
    // One block is the end where nothing is behind it, and so is what is behind two.
    for (name, end) in
        [("bare", 0), ("short", 512), ("cut", 700), ("usual", 1024), ("long", 10_240)]
    {
        unpack(name, &[&one[..], &vec![0; end]].concat()).unwrap();
        assert!(scratch.path(name).join("one").exists());
    }
}
