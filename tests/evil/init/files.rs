//! File tasks that are not done, and lies about files.

use std::fs::File;
use std::io::Write;

use adl_protocol::{
    Attributes, Chunk, Entry, FileKind, FileTask, JobEvent, Listing, Metadata, Stage, Strings, Time,
};

use crate::job::{Job, exited};
use crate::wire::{forever, frame, frame_of};

const NOTHING: Attributes =
    Attributes { mode: 0o6777, uid: 0, gid: 0, modified: Time { seconds: 0, nanoseconds: 0 } };

pub(crate) fn answer(way: &str, _task: &FileTask<'_>, job: &Job) {
    let stdout = job.stdout.as_ref().map(|fd| File::from(fd.try_clone().unwrap()));
    // Who does not want more closes it: no error here.
    let tell = |bytes: &[u8]| stdout.as_ref().map(|mut out| out.write_all(bytes).is_ok());
    let name = |name: &'static [u8]| Strings::new(name).unwrap();
    let top = Entry::Directory { name: name(b"\0"), attributes: Some(NOTHING) };
    let file = |name, size| Entry::File { name, attributes: NOTHING, size };
    let link = |name, target| Entry::SymbolicLink { name, target, attributes: NOTHING };
    let tree = |entries: &[Entry<'_>]| {
        tell(&frame(&top));
        for entry in entries {
            tell(&frame(entry));
        }
    };
    let list = |names: &'static [u8], kinds: &[u8], next| {
        tell(&frame(&Listing { names: name(names), kinds, next }));
    };
    match way {
        "file-silent" => forever(),
        "file-more" => drop(tell(&[b'x'; 200])),
        "file-for-ever" => while tell(&[b'x'; 65536]) == Some(true) {},
        "file-nothing" => {}
        "file-garbage" => drop(tell(&[0xff; 100])),
        "file-longer-than-said" => drop(tell(&[&200_u32.to_le_bytes()[..], b"x"].concat())),
        "file-two-answers" => drop(tell(&[frame(&metadata()), frame(&metadata())].concat())),
        "file-lies" => drop(tell(&frame(&metadata()))),
        "file-failed-0" => {
            job.say(&frame(&JobEvent::Failed { stage: Stage::File, errno: 0 }));
            return;
        }
        "file-failed-minus" => {
            job.say(&frame(&JobEvent::Failed { stage: Stage::Copy, errno: i32::MIN }));
            return;
        }
        "list-slash" => list(b"a/b\0", &[0], None),
        "list-parent" => list(b"..\0", &[0], None),
        "list-empty-name" => list(b"\0", &[0], None),
        "list-kind" => list(b"a\0", &[250], None),
        "list-fewer-kinds" => list(b"a\0b\0", &[0], None),
        "list-for-ever" => list(b"a\0", &[0], Some(1)),
        "list-nothing-for-ever" => list(b"", &[], Some(1)),
        "tree-parent" => tree(&[file(name(b"..\0"), 1)]),
        "tree-up" => tree(&[file(name(b"../stolen\0"), 1)]),
        "tree-absolute" => tree(&[file(name(b"/tmp/stolen\0"), 1)]),
        "tree-dot" => tree(&[Entry::Directory { name: name(b".\0"), attributes: Some(NOTHING) }]),
        "tree-two-names" => tree(&[file(name(b"a\0b\0"), 1)]),
        "tree-no-name" => tree(&[file(name(b""), 1)]),
        "tree-long-name" => {
            let long = [&[b'n'; 256][..], b"\0"].concat();
            tree(&[file(Strings::new(&long).unwrap(), 1)]);
        }
        "tree-leave-top" => {
            tree(&[Entry::Leave, Entry::Leave, Entry::Leave]);
            tell(&frame(&file(name(b"stolen\0"), 0)));
        }
        "tree-through-link" => {
            let below = Entry::Directory { name: name(b"way\0"), attributes: None };
            tree(&[link(name(b"way\0"), name(b"..\0")), below, file(name(b"stolen\0"), 0)]);
            tell(&Chunk::End.encode());
        }
        "tree-over-link" => {
            tree(&[link(name(b"way\0"), name(b"../stolen\0")), file(name(b"way\0"), 0)]);
            tell(&Chunk::End.encode());
            tell(&frame(&Entry::Leave));
        }
        "tree-link-outside" => {
            let target = name(b"..\0canary\0");
            tree(&[Entry::HardLink { name: name(b"stolen\0"), target }]);
        }
        "tree-link-unknown" => {
            tree(&[Entry::HardLink { name: name(b"stolen\0"), target: name(b"nothing\0") }]);
        }
        "tree-size" => {
            tree(&[file(name(b"file\0"), u64::MAX)]);
            tell(&Chunk::Hole(1 << 61).encode());
            tell(&Chunk::End.encode());
        }
        "tree-sizes" => {
            tree(&[file(name(b"file\0"), 1)]);
            for _ in 0..8 {
                tell(&Chunk::Hole((1 << 62) - 1).encode());
            }
        }
        "tree-chunk" => {
            tree(&[file(name(b"file\0"), 1)]);
            tell(&u64::MAX.to_le_bytes());
        }
        "tree-cut-off" => {
            tree(&[file(name(b"file\0"), 100)]);
            tell(&Chunk::Data(100).encode());
            tell(b"too little");
        }
        "tree-unknown" => {
            tell(&frame(&top));
            tell(&frame_of(&[99, 1, 1]));
        }
        "tree-entry-length" => {
            tell(&frame(&top));
            tell(&u32::MAX.to_le_bytes());
        }
        "tree-deep" => {
            let below = frame(&Entry::Directory { name: name(b"d\0"), attributes: None });
            tell(&frame(&top));
            let much = below.repeat(1000);
            while tell(&much) == Some(true) {}
        }
        "tree-for-ever" => {
            let one = Entry::Skipped { name: name(b"fifo\0"), kind: FileKind::Fifo };
            tell(&frame(&top));
            let much = frame(&one).repeat(1000);
            while tell(&much) == Some(true) {}
        }
        "tree-failed-0" => tree(&[Entry::Failed { name: name(b"../x\0"), errno: 0 }]),
        "tree-silent" => {
            tree(&[]);
            forever();
        }
        "tree-special" => {
            let special = file(name(b"setuid\0"), 0);
            tree(&[special]);
            tell(&Chunk::End.encode());
            tell(&frame(&Entry::Leave));
        }
        _ => {}
    }
    drop(stdout);
    job.say(&frame(&exited(0)));
}

fn metadata() -> Metadata {
    let time = Time { seconds: i64::MIN, nanoseconds: u32::MAX };
    Metadata {
        kind: FileKind::File,
        mode: u32::MAX,
        uid: u32::MAX,
        gid: u32::MAX,
        size: u64::MAX,
        blocks: u64::MAX,
        links: u32::MAX,
        inode: u64::MAX,
        accessed: time,
        modified: time,
        changed: time,
    }
}
