//! The wire, from outside: its exact bytes, and that no bytes can do harm.
#![allow(unsafe_code, reason = "an allocator that remembers the largest request")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use adl_protocol::codec::{self, Error, HEADER, body_length, decode, encode};
use adl_protocol::limits::{MAX_FRAME, MAX_STRINGS};
use adl_protocol::{
    Access, Attributes, Cgroups, Chunk, CpuLimit, EndedBy, Entry, Exit, FileAction, FileKind,
    FileTask, IdMaps, Identities, Identity, JobEvent, JobRequest, JobStdio, Layer, Leftovers,
    Listing, Login, MAX_CHUNK, Metadata, Mount, Mounts, NetworkOrigin, Origin, Program, Reply,
    Request, Rlimit, Scope, Setup, SetupFailure, Spawn, Stage, Status, StdioSource, Step, Strings,
    StringsError, Task, Time, Upper, Usage, VERSION, What, WriteHow, is_plain_name,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

thread_local! {
    /// The largest single allocation of this thread so far, in bytes.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Remembering;

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Remembering {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Remembering = Remembering;

/// What decoding a body of a few KiB may ask for at once: what serde reserves for a list before
/// it has seen its elements.
const CAP: usize = 2 << 20;

fn setup() -> Request<'static> {
    Request::Setup(Setup {
        version: VERSION,
        identities: Identities::Range,
        id_maps: IdMaps::Own([b"0 5 1\n", b"0 6 1\n"]),
        origin: Origin::Empty,
        network: NetworkOrigin::New,
        masked: Strings::new(b"acpi/\0keys\0").unwrap(),
        read_only: Strings::new(b"sys\0").unwrap(),
        sysctls: Strings::new(b"kernel/pid_max\x00400\0").unwrap(),
        dev_size: 4096,
        sys: true,
        cgroups: true,
        is_filtered: true,
        capabilities: 0x21,
        filters: vec![&[1, 2, 3, 4, 5, 6, 7, 8]],
        core_key: 9,
    })
}

fn mounts() -> Request<'static> {
    Request::Mounts(Mounts {
        hostname: b"box",
        upper: Upper::Disk(Layer::Descriptor),
        mounts: vec![
            Mount {
                at: b"",
                access: Access::ReadOnly,
                what: What::Overlay(vec![Layer::Descriptor]),
            },
            Mount {
                at: b"srv/data",
                access: Access::ReadWrite,
                what: What::Volume(Layer::Path {
                    path: b"/data"[..].into(),
                    device: 300,
                    inode: 7,
                }),
            },
            Mount { at: b"tmp", access: Access::ReadWrite, what: What::Tmpfs { size: 4096 } },
        ],
        etc: Strings::new(b"hostname\0box\n\0").unwrap(),
        etc_attributes: [0o755, 0, 0],
    })
}

fn spawn() -> Request<'static> {
    Request::Spawn(Spawn {
        task: Task::Program(Program {
            names: Strings::new(b"/bin/sh\0").unwrap(),
            arguments: Strings::new(b"-c\0true\0").unwrap(),
            environment: Strings::new(b"A=b\0").unwrap(),
            login: Login::ALL,
        }),
        directory: Strings::new(b"/tmp\0").unwrap(),
        identity: Identity { uid: 1000, gid: 1000, groups: vec![5] },
        umask: 0o022,
        rlimits: vec![Rlimit { resource: 7, soft: 256, hard: u64::MAX }],
        nice: -1,
        oom_score_adj: 500,
        stdio: JobStdio::Streams([
            StdioSource::Null,
            StdioSource::Descriptor,
            StdioSource::Previous,
        ]),
        cgroups: 6,
        cgroup_namespace: true,
        start_notice: true,
        timeout_us: Some(1000),
        cpu_limit: Some(CpuLimit { most: 5, per_ms: 6 }),
        leftovers: Leftovers::End,
    })
}

fn exited(status: Status) -> JobEvent {
    let usage = Usage { user_us: 1000, ..Usage::default() };
    JobEvent::Exited(Exit {
        status,
        usage,
        wall_us: 2000,
        by: Some(EndedBy::Timeout),
        survivors: false,
    })
}

fn frame(message: &impl Serialize) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(message, &mut frame).unwrap();
    frame
}

/// A message has exactly these bytes, and they are that message.
fn golden<'a, T>(message: &T, bytes: &'a [u8])
where
    T: Serialize + Deserialize<'a> + PartialEq + std::fmt::Debug,
{
    assert_eq!(frame(message), bytes, "{message:?}");
    let (header, body) = bytes.split_first_chunk::<HEADER>().unwrap();
    assert_eq!(body_length(*header), Ok(body.len()));
    assert_eq!(decode::<T>(body).as_ref(), Ok(message));
}

#[test]
fn a_change_of_the_wire_changes_these_bytes() {
    golden(&Request::Shutdown, b"\x01\0\0\0\x03");
    let cgroup = Mount {
        at: b"cpu,cpuacct",
        access: Access::ReadOnly,
        what: What::Volume(Layer::Descriptor),
    };
    let cgroups = Cgroups { mounts: vec![cgroup], roots: 3 };
    golden(&Request::Cgroups(cgroups), b"\x12\0\0\0\x04\x01\x0bcpu,cpuacct\x01\x01\0\x03");
    golden(&Request::Mapped, b"\x01\0\0\0\x05");
    golden(&Reply::Unmapped, b"\x01\0\0\0\x02");
    golden(&Reply::Ready { version: 4, network: 9 }, b"\x03\0\0\0\0\x04\x09");
    let failure = SetupFailure { step: Step::Proc, errno: 22, path: b"/proc" };
    golden(&Reply::Failed(failure), b"\x09\0\0\0\x01\x0a\x2c\x05/proc");
    golden(&JobEvent::Started { pid: 2 }, b"\x02\0\0\0\0\x04");
    golden(&JobEvent::Failed { stage: Stage::Exec, errno: 2 }, b"\x03\0\0\0\x02\x0c\x04");
    golden(&JobEvent::Terminal, b"\x01\0\0\0\x01");
    golden(&JobEvent::Socket, b"\x01\0\0\0\x04");
    golden(
        &exited(Status::Code(3)),
        b"\x14\0\0\0\x03\0\x03\xfb\xe8\x03\0\0\0\0\0\0\0\0\xfb\xd0\x07\x01\0\0",
    );
    golden(
        &exited(Status::Signal { signal: 11, core: true }),
        b"\x15\0\0\0\x03\x01\x0b\x01\xfb\xe8\x03\0\0\0\0\0\0\0\0\xfb\xd0\x07\x01\0\0",
    );
    golden(&JobRequest::Signal { signal: 9, scope: Scope::Group }, b"\x03\0\0\0\0\x09\x01");
    golden(&JobRequest::EndAfter { delay_us: 5 }, b"\x02\0\0\0\x01\x05");
    golden(
        &setup(),
        b"\x4b\0\0\0\0\x0e\0\x01\x060 5 1\x0a\x060 6 1\x0a\x01\x01\
          \x0bacpi/\0keys\0\x04sys\0\x13kernel/pid_max\x00400\0\xfb\0\x10\x01\x01\x01\x21\x01\x08\x01\x02\
          \x03\x04\x05\x06\x07\x08\x09",
    );
    golden(
        &mounts(),
        b"\x40\0\0\0\x01\x03box\0\0\x03\0\x01\0\x01\0\x08srv/data\0\x01\x01\x05/data\xfb\
          \x2c\x01\x07\x03tmp\0\x03\xfb\0\x10\x0ehostname\0box\n\0\xfb\xed\x01\0\0",
    );
    golden(&Identities::Single { uid: 1000, gid: 7 }, b"\x05\0\0\0\x01\xfb\xe8\x03\x07");
    golden(&Task::Drain, b"\x01\0\0\0\x01");
    golden(&Task::KillAll, b"\x01\0\0\0\x03");
    golden(&Task::Socket, b"\x01\0\0\0\x04");
    golden(
        &spawn(),
        b"\x4a\0\0\0\x02\0\x08/bin/sh\0\x08-c\0true\0\x04A=b\0\x0f\x05/tmp\0\xfb\xe8\x03\xfb\xe8\x03\
          \x01\x05\x12\x01\x07\xfb\0\x01\xfd\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfb\xe8\x03\0\0\
          \x01\x02\x06\x01\x01\x01\xfb\xe8\x03\x01\x05\x06\x01",
    );
}

fn string(bytes: &[u8]) -> Strings<'_> {
    Strings::new(bytes).unwrap()
}

/// Everything that can be done with a file, by its golden bytes.
fn file_actions() -> Vec<(FileAction<'static>, &'static [u8])> {
    vec![
        (FileAction::Read { offset: 1, limit: 2, whole: true }, b"\0\x01\x02\x01"),
        (
            FileAction::Write {
                how: WriteHow::CreateNew,
                mode: Some(0o600),
                owner: Some((1000, 5)),
            },
            b"\x01\x01\x01\xfb\x80\x01\x01\xfb\xe8\x03\x05",
        ),
        (FileAction::Write { how: WriteHow::Append, mode: None, owner: None }, b"\x01\x03\0\0"),
        (FileAction::Metadata { follow: true }, b"\x02\x01"),
        (FileAction::List { start: 3, most: 4 }, b"\x03\x03\x04"),
        (FileAction::CreateDirectories { mode: 7 }, b"\x04\x07"),
        (FileAction::RemoveFile, b"\x05"),
        (FileAction::RemoveTree, b"\x06"),
        (FileAction::Rename { to: string(b"b\0") }, b"\x07\x02b\0"),
        (FileAction::SymbolicLink { target: string(b"b\0") }, b"\x08\x02b\0"),
        (FileAction::ReadLink, b"\x09"),
        (FileAction::SetMode { mode: 7 }, b"\x0a\x07"),
        (FileAction::SetOwner { uid: 1, gid: 2, follow: false }, b"\x0b\x01\x02\0"),
        (FileAction::Export, b"\x0c"),
        (FileAction::Import { owners: true }, b"\x0d\x01"),
        (FileAction::Connect, b"\x0e"),
    ]
}

#[test]
fn the_bytes_of_file_tasks_are_these() {
    for (action, bytes) in file_actions() {
        let task = Task::File(FileTask { path: string(b"/a\0"), action });
        let body = [&b"\x02\x03/a\0"[..], bytes].concat();
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        golden(&task, &[&length[..], &body].concat());
    }
}

#[test]
fn the_bytes_of_answers_and_trees_are_these() {
    let time = Time { seconds: -1, nanoseconds: 9 };
    let metadata = Metadata {
        kind: FileKind::SymbolicLink,
        mode: 1,
        uid: 2,
        gid: 3,
        size: 4,
        blocks: 5,
        links: 6,
        inode: 7,
        accessed: time,
        modified: time,
        changed: time,
    };
    golden(&metadata, b"\x0e\0\0\0\x02\x01\x02\x03\x04\x05\x06\x07\x01\x09\x01\x09\x01\x09");
    let listing = Listing { names: string(b"a\0b\0"), kinds: &[0, 1], next: Some(8) };
    golden(&listing, b"\x0a\0\0\0\x04a\0b\0\x02\0\x01\x01\x08");
    let attributes = Attributes { mode: 1, uid: 2, gid: 3, modified: time };
    let (name, target) = (string(b"a\0"), string(b"b\0c\0"));
    golden(
        &Entry::Directory { name, attributes: Some(attributes) },
        b"\x0a\0\0\0\0\x02a\0\x01\x01\x02\x03\x01\x09",
    );
    golden(&Entry::Leave, b"\x01\0\0\0\x01");
    golden(
        &Entry::File { name, attributes, size: 8 },
        b"\x0a\0\0\0\x02\x02a\0\x01\x02\x03\x01\x09\x08",
    );
    golden(
        &Entry::SymbolicLink { name, target: string(b"b\0"), attributes },
        b"\x0c\0\0\0\x03\x02a\0\x02b\0\x01\x02\x03\x01\x09",
    );
    golden(&Entry::HardLink { name, target }, b"\x09\0\0\0\x04\x02a\0\x04b\0c\0");
    golden(&Entry::Skipped { name, kind: FileKind::Fifo }, b"\x05\0\0\0\x05\x02a\0\x03");
    golden(&Entry::Failed { name, errno: 13 }, b"\x05\0\0\0\x06\x02a\0\x1a");
    golden(&Entry::Attribute { name, value: b"\0v" }, b"\x07\0\0\0\x07\x02a\0\x02\0v");
    for (place, kind) in FileKind::ALL.into_iter().enumerate() {
        golden(&kind, &[1, 0, 0, 0, u8::try_from(place).unwrap()]);
    }
}

#[test]
fn pieces_of_a_file_are_eight_bytes_and_all_others_are_none() {
    for (chunk, bytes) in [
        (Chunk::End, [0, 0, 0, 0, 0, 0, 0, 0]),
        (Chunk::Data(1), [5, 0, 0, 0, 0, 0, 0, 0]),
        (Chunk::Data(MAX_CHUNK), [1, 0, 0x40, 0, 0, 0, 0, 0]),
        (Chunk::Hole(1 << 40), [2, 0, 0, 0, 0, 4, 0, 0]),
        (Chunk::CutOff, [3, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        assert_eq!(chunk.encode(), bytes);
        assert_eq!(Chunk::decode(bytes), Some(chunk));
    }
    // No data, too much of it, an empty hole, an end that goes on.
    for bytes in [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [5, 0, 0x40, 0, 0, 0, 0, 0],
        [2, 0, 0, 0, 0, 0, 0, 0],
        [4, 0, 0, 0, 0, 0, 0, 0],
        [7, 0, 0, 0, 0, 0, 0, 0],
        [0xfd; 8],
    ] {
        assert_eq!(Chunk::decode(bytes), None, "{bytes:?}");
    }
}

#[test]
fn names_that_are_more_than_one_name_are_refused() {
    for name in [&b""[..], b".", b"..", b"/", b"a/b", b"a/", b"/a", b"a\0", &[b'a'; 256]] {
        assert!(!is_plain_name(name), "{}", name.escape_ascii());
    }
    for name in [&b"a"[..], b"...", b"..a", b"\n", b"\xff", &[b'a'; 255]] {
        assert!(is_plain_name(name), "{}", name.escape_ascii());
    }
}

/// Decodes bytes as everything that there is on the wire, and counts what accepted them.
fn decode_as_all(body: &[u8]) -> usize {
    LARGEST.set(0);
    let accepted = [
        decode::<Request<'_>>(body).is_ok(),
        decode::<Reply<'_>>(body).is_ok(),
        decode::<JobEvent>(body).is_ok(),
        decode::<JobRequest>(body).is_ok(),
        decode::<Entry<'_>>(body).is_ok(),
        decode::<Listing<'_>>(body).is_ok(),
        decode::<Metadata>(body).is_ok(),
    ];
    let largest = LARGEST.get();
    assert!(largest <= CAP.max(body.len() * 2), "an allocation of {largest} bytes");
    accepted.iter().filter(|accepted| **accepted).count()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_message_or_an_error(body in prop::collection::vec(any::<u8>(), 0..4096)) {
        decode_as_all(&body);
    }

    #[test]
    fn a_changed_message_is_a_message_or_an_error(
        which in 0..3_usize, at in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let requests = [setup(), mounts(), spawn()];
        let mut bytes = frame(&requests[which]);
        let at = HEADER + at.index(bytes.len() - HEADER);
        bytes[at] ^= 1 << bit;
        decode_as_all(&bytes[HEADER..]);
    }

    #[test]
    fn more_or_less_than_a_message_is_refused(suffix in prop::collection::vec(any::<u8>(), 1..64)) {
        for request in [setup(), mounts(), spawn(), Request::Shutdown] {
            let bytes = frame(&request);
            let longer = [&bytes[HEADER..], suffix.as_slice()].concat();
            prop_assert_eq!(decode::<Request<'_>>(&longer), Err(Error::TrailingBytes));
            for end in HEADER..bytes.len() {
                let shorter = decode::<Request<'_>>(&bytes[HEADER..end]);
                prop_assert_eq!(shorter, Err(Error::Malformed));
            }
        }
    }

    #[test]
    fn strings_come_back_as_they_went(list in prop::collection::vec(
        prop::collection::vec(1_u8.., 0..32), 0..32,
    )) {
        let mut bytes = Vec::new();
        for string in &list {
            Strings::append(&mut bytes, string).unwrap();
        }
        let strings = Strings::new(&bytes).unwrap();
        prop_assert_eq!(strings.len(), list.len());
        let back: Vec<_> = strings.iter().map(|s| s.strip_suffix(b"\0").unwrap().to_vec()).collect();
        prop_assert_eq!(back, list);
    }
}

#[test]
fn lengths_beyond_the_body_are_refused_without_an_allocation() {
    // A varint of eight bytes: 2^40, and the largest there is.
    for length in [1_u64 << 40, u64::MAX, MAX_FRAME as u64 + 1, 1 << 20] {
        let mut huge = vec![0xfd];
        huge.extend(length.to_le_bytes());
        // As a map of ids; as the number of filters; as the host name; as the number of mounts; of
        // layers; as the names of a program.
        for start in [
            &b"\0\x01\0\x01"[..],
            &b"\0\x01\0\0\0\x01\0\0\0\x01\x01\x01\x21"[..],
            &b"\x01"[..],
            &b"\x01\x03box\0\0"[..],
            &b"\x01\x03box\0\0\x01\0\0\0"[..],
            &b"\x02\0"[..],
        ] {
            assert_eq!(decode_as_all(&[start, &huge, &[0; 64]].concat()), 0);
        }
    }
}

#[test]
fn frames_have_a_length_that_makes_sense() {
    assert_eq!(body_length([0; 4]), Err(Error::Malformed));
    let limit = u32::try_from(MAX_FRAME).unwrap();
    assert_eq!(body_length(limit.to_le_bytes()), Ok(MAX_FRAME));
    assert_eq!(body_length((limit + 1).to_le_bytes()), Err(Error::TooLong));
    assert_eq!(body_length([0xff; 4]), Err(Error::TooLong));
}

#[test]
fn a_message_that_is_too_long_leaves_the_buffer_as_it_was() {
    let long = vec![b'a'; MAX_FRAME];
    let mut out = b"before".to_vec();
    let failure = SetupFailure { step: Step::Layer, errno: 1, path: &long };
    assert_eq!(encode(&Reply::Failed(failure), &mut out), Err(codec::Error::TooLong));
    assert_eq!(out, b"before");
}

#[test]
fn strings_that_execve_would_not_see_whole_are_refused() {
    let mut bytes = Vec::new();
    assert_eq!(Strings::append(&mut bytes, b"a\0b"), Err(StringsError::Nul));
    assert!(bytes.is_empty());
    assert_eq!(Strings::new(b"a\0b"), Err(StringsError::Unterminated));
    assert!(Strings::new(&vec![0; MAX_STRINGS]).is_ok());
    assert_eq!(Strings::new(&vec![0; MAX_STRINGS + 1]), Err(StringsError::TooMany));
}
