//! Very many inputs for each target, put together and damaged at random, of a seed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use adl_protocol::{
    Access, Attributes, Chunk, Entry, Exit, FileAction, FileKind, FileTask, Identity, JobEvent,
    JobRequest, JobStdio, Leftovers, Listing, Login, Metadata, Program, Reply, Request, Scope,
    SetupFailure, Spawn, Stage, Status, StdioSource, Step, Strings, Task, Time, Usage, VERSION,
    WriteHow, codec,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{LONGEST, TARGETS};
use crate::config::Config;
use crate::config::defaults::{Resource, Rlimit};
use crate::config::limits::{IoLimit, Limits};
use crate::config::mount::Mount;
use crate::config::mount::TmpfsOptions;

/// Random numbers that are the same each time (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    pub(crate) fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// What numbers and lengths of bincode begin with, and bytes that mean something in texts.
const BYTES: &[u8] =
    b"\0\x01\x02\x03\x04\x05\x07\x0f\x20\x7f\x80\xfa\xfb\xfc\xfd\xfe\xff/.:,=-09\n";

/// What inputs of a target are made of.
struct Seeds {
    whole: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Seeds {
    fn new(whole: Vec<Vec<u8>>, words: &[&[u8]]) -> Self {
        Self { whole, words: words.iter().map(|word| word.to_vec()).collect() }
    }
}

/// Changes some of an input.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, seeds: &Seeds) {
    for _ in 0..random.below(5) {
        let place = random.below(bytes.len() + 1);
        let end = place + random.below(bytes.len() - place + 1).min(64);
        match random.below(8) {
            0 => bytes.truncate(place),
            1 => drop(bytes.drain(place..end)),
            2 => {
                let copy = bytes[place..end].to_vec();
                bytes.splice(place..place, copy);
            }
            3 => {
                let other = random.of(&seeds.whole);
                let from = random.below(other.len() + 1);
                bytes.splice(place..end, other[from..].iter().copied().take(256));
            }
            4 => drop(bytes.splice(place..end, random.of(&seeds.words).iter().copied())),
            5 => drop(bytes.splice(place..place, random.of(&seeds.words).iter().copied())),
            _ => {
                let byte =
                    if random.below(2) == 0 { random.below(256) as u8 } else { *random.of(BYTES) };
                if let Some(at) = bytes.get_mut(place) {
                    *at = byte;
                }
            }
        }
    }
    bytes.truncate(LONGEST);
}

fn frame(message: &impl Serialize) -> Vec<u8> {
    let mut frame = Vec::new();
    codec::encode(message, &mut frame).unwrap();
    frame
}

fn body(message: &impl Serialize) -> Vec<u8> {
    frame(message).split_off(codec::HEADER)
}

/// One that says what the rest of an input is, before that.
fn after(first: u8, rest: Vec<u8>) -> Vec<u8> {
    [vec![first], rest].concat()
}

fn strings(bytes: &[u8]) -> Strings<'_> {
    Strings::new(bytes).unwrap()
}

const NUMBERS: [&[u8]; 6] = [
    &[251, 0xff, 0xff],
    &[252, 0xff, 0xff, 0xff, 0xff],
    &[253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[253, 0, 0, 0, 0, 0, 0, 0, 0x80],
    &[0xff, 0xff, 0x10, 0],
    &[4, 0, 0, 0],
];

/// A tree as a job sends it.
fn stream() -> Vec<u8> {
    let mut stream = Vec::new();
    let attributes = Attributes { mode: 0o644, uid: 1, gid: 2, modified: Time::default() };
    let mut add = |entry: Entry<'_>| stream.extend(frame(&entry));
    add(Entry::Directory { name: strings(b"\0"), attributes: Some(attributes) });
    add(Entry::Attribute { name: strings(b"user.a\0"), value: b"value" });
    add(Entry::Directory { name: strings(b"a\0"), attributes: Some(attributes) });
    add(Entry::SymbolicLink { name: strings(b"l\0"), target: strings(b"../x\0"), attributes });
    add(Entry::Skipped { name: strings(b"s\0"), kind: FileKind::Fifo });
    add(Entry::Leave);
    add(Entry::File { name: strings(b"f\0"), attributes, size: 7 });
    stream.extend(Chunk::Data(3).encode());
    stream.extend(b"abc");
    stream.extend(Chunk::Hole(4).encode());
    stream.extend(Chunk::End.encode());
    stream.extend(frame(&Entry::HardLink { name: strings(b"h\0"), target: strings(b"f\0") }));
    stream.extend(frame(&Entry::Leave));
    stream
}

fn replies() -> Seeds {
    let failure = SetupFailure { step: Step::Overlay, path: b"upper\0\xff", errno: 22 };
    let control =
        [Reply::Ready { version: VERSION, network: 1 }, Reply::Failed(failure), Reply::Unmapped];
    let control: Vec<_> = control.iter().flat_map(frame).collect();
    let usage = Usage { user_us: u64::MAX, max_rss_kib: 1 << 60, ..Usage::default() };
    let exit = |status| Exit { status, usage, wall_us: u64::MAX, by: None, survivors: true };
    let events = [
        JobEvent::Started { pid: 2 },
        JobEvent::Terminal,
        JobEvent::Socket,
        JobEvent::Failed { stage: Stage::Exec, errno: 2 },
        JobEvent::Exited(exit(Status::Code(7))),
        JobEvent::Exited(exit(Status::Signal { signal: 9, core: true })),
    ];
    let events: Vec<_> = events.iter().flat_map(frame).collect();
    let time = Time { seconds: i64::MIN, nanoseconds: u32::MAX };
    let metadata = Metadata { accessed: time, ..metadata() };
    let listing = Listing { names: strings(b"a\0b\0\xff\0"), kinds: &[0, 1, 2], next: Some(7) };
    let whole = vec![
        after(0, control),
        after(1, events),
        after(2, frame(&metadata)),
        after(3, frame(&listing)),
        after(4, stream()),
        after(4, stream()),
    ];
    let words = [&NUMBERS[..], &[b"..\0", b"a/b\0", b"\0", b".\0"]].concat();
    Seeds::new(whole, &words)
}

fn metadata() -> Metadata {
    let time = Time { seconds: 1, nanoseconds: 2 };
    Metadata {
        kind: FileKind::File,
        mode: 0o644,
        uid: 1,
        gid: 2,
        size: 3,
        blocks: 4,
        links: 5,
        inode: 6,
        accessed: time,
        modified: time,
        changed: time,
    }
}

fn requests() -> Seeds {
    let program = Program {
        names: strings(b"/bin/sh\0sh\0"),
        arguments: strings(b"-c\0true\0"),
        environment: strings(b"PATH=/bin\0A=\0"),
        login: Login::ALL,
    };
    let spawn = |task| Spawn {
        task,
        directory: Strings::ROOT,
        identity: Identity { uid: 1, gid: 2, groups: vec![3, 4] },
        umask: 0o22,
        rlimits: vec![adl_protocol::Rlimit { resource: 7, soft: 1, hard: 2 }],
        nice: -1,
        oom_score_adj: 500,
        stdio: JobStdio::Streams([
            StdioSource::Null,
            StdioSource::Descriptor,
            StdioSource::Previous,
        ]),
        cgroups: 2,
        cgroup_namespace: true,
        start_notice: true,
        timeout_us: Some(u64::MAX),
        cpu_limit: None,
        leftovers: Leftovers::End,
    };
    let write = FileAction::Write { how: WriteHow::Append, mode: Some(0o600), owner: Some((1, 2)) };
    let file = |action| Task::File(FileTask { path: strings(b"/a\0"), action });
    let attributes = Attributes::default();
    let link = Entry::SymbolicLink { name: strings(b"l\0"), target: strings(b"/\0"), attributes };
    let mounts = adl_protocol::Mounts {
        hostname: b"host",
        upper: adl_protocol::Upper::Memory { size: 1 << 20 },
        mounts: vec![adl_protocol::Mount {
            at: b"tmp",
            access: Access::ReadWrite,
            what: adl_protocol::What::Volume(adl_protocol::Layer::Descriptor),
        }],
        etc: strings(b"hosts\0x\0"),
        etc_attributes: [0o755, 0, 0],
    };
    let whole = vec![
        body(&Request::Spawn(spawn(Task::Program(program)))),
        body(&Request::Spawn(spawn(file(write)))),
        body(&Request::Spawn(spawn(file(FileAction::List { start: 1, most: 2 })))),
        body(&Request::Spawn(spawn(Task::KillAll))),
        body(&Request::Spawn(spawn(Task::Socket))),
        body(&Request::Mounts(mounts)),
        body(&Request::Shutdown),
        body(&Request::Mapped),
        body(&JobRequest::Signal { signal: 9, scope: Scope::Tree }),
        body(&JobRequest::EndAfter { delay_us: u64::MAX }),
        body(&link),
    ];
    Seeds::new(whole, &[&NUMBERS[..], &[b"a\0", b"\0\0\0"]].concat())
}

/// The header of a member.
fn member(kind: u8, name: &[u8], link: &[u8], size: usize) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000001\0");
    block[116..124].copy_from_slice(b"0000002\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000001\0");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

/// Makes the checksum of a header right.
fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// What pax says of the next member, with its length before it, which counts its own digits.
fn record(text: &str) -> Vec<u8> {
    let length = text.len() + 3;
    let length = if length > 9 { length + 1 } else { length };
    format!("{length} {text}\n").into_bytes()
}

fn archive() -> Vec<u8> {
    let file = |kind, name: &[u8], content: &[u8]| {
        let mut both = member(kind, name, b"", content.len());
        both.extend(content);
        both.resize(both.len().next_multiple_of(512), 0);
        both
    };
    let sparse = [
        record("GNU.sparse.major=1"),
        record("GNU.sparse.minor=0"),
        record("GNU.sparse.name=s"),
        record("GNU.sparse.realsize=99"),
    ];
    let named = [record("path=a/b"), record("SCHILY.xattr.user.x=yz")];
    let mut map = b"1\n5\n3\n".to_vec();
    map.resize(512, 0);
    map.extend(b"abc");
    [
        member(b'5', b"./", b"", 0),
        member(b'5', b"d/", b"", 0),
        file(b'0', b"d/f", b"content"),
        member(b'2', b"d/l", b"../x", 0),
        member(b'1', b"h", b"d/f", 0),
        member(b'6', b"p", b"", 0),
        file(b'x', b"x", &named.concat()),
        file(b'0', b"y", b"1"),
        file(b'L', b"././@LongLink", format!("{}z", "nnnnnnnnn/".repeat(20)).as_bytes()),
        file(b'0', b"z", b"2"),
        file(b'x', b"x", &sparse.concat()),
        file(b'0', b"s", &map),
        vec![0; 1024],
    ]
    .concat()
}

fn tar() -> Seeds {
    let words = [
        &b"../x"[..],
        b"/etc/passwd",
        b"d/../../x",
        b"20 path=../../file\n",
        b"12 size=-1\n\n",
        b"32 GNU.sparse.size=99999999999\n",
        b"24 GNU.sparse.map=1,1,5,1\n",
        b"77777777777\0",
        b"\x80\0\0\0\0\0\0\0\0\0\xff\xff",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    Seeds::new(vec![archive()], &words)
}

fn users() -> Seeds {
    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nme:x:1000:1000::/home/me:\n\
        far:x:4294967295:1:::\nno:x:-1:+1:a:relative:/bin/sh\r\n:::::::\n# note\nshort:x:1\n\
        big:x:99999999999:1::/:/\n";
    const GROUP: &str =
        "root:x:0:\nme:x:1000:\nwheel:x:10:root,me\nall:x:11:me,me,far,\nbad:x:a:me\n";
    let whole = ["me", "root", "me:wheel", "1000:10", "far", "no", "", "short", "me:", ":0", "-1"];
    let whole = whole.iter().map(|who| [who.as_bytes(), PASSWD.as_bytes(), GROUP.as_bytes()]);
    let words = [
        &b"\xff"[..],
        b"\0",
        b"\n",
        b"me:x:1:2:::",
        b"4294967294",
        b"4294967295",
        b"00000000000000000001",
        b":",
        b",me",
        b"\xd9\xa3",
    ];
    Seeds::new(whole.map(|parts| parts.join(&0xff)).collect(), &words)
}

fn config() -> Seeds {
    let mut config = Config::default();
    config.name = Some("name".to_owned());
    config.hostname = Some("host".to_owned());
    config.shm_size = Some(1 << 20);
    config.sysctls = vec![("net.core.somaxconn".to_owned(), "128".to_owned())];
    config.mounts = vec![
        Mount::volume("/a", "/b", crate::config::mount::Access::CopyOnWrite),
        Mount::Tmpfs { target: "/c".into(), size: 4096, options: TmpfsOptions::default() },
        Mount::device("/dev/fuse"),
    ];
    config.limits = Limits {
        memory: Some(1 << 30),
        memory_high: Some(1 << 29),
        swap: Some(0),
        cpu: Some(1500),
        cpu_weight: Some(100),
        cpuset: Some("0-3,6".to_owned()),
        pids: Some(64),
        io: vec![IoLimit { device: "/dev/sda".into(), read_bytes: Some(1), ..IoLimit::default() }],
        ..Limits::default()
    };
    config.defaults.user = Some("1000:1000".to_owned());
    config.defaults.env = vec![("A".into(), "b".into())];
    config.defaults.timeout = Some(Duration::from_secs(1));
    config.defaults.cpu_time = Some(Duration::from_secs(1));
    config.defaults.rlimits = vec![Rlimit { resource: Resource::OpenFiles, soft: 1, hard: 2 }];
    config.ids = Some(65_536);
    let whole = vec![serde_json::to_vec(&config).unwrap(), b"{}".to_vec()];
    let words = [
        &b"18446744073709551615"[..],
        b"-1",
        b"null",
        b"\"\\u0000\"",
        b"[[",
        b"{\"a\":",
        b"1e999",
        b"\"..\"",
    ];
    Seeds::new(whole, &words)
}

/// Changes one thing of a document.
fn change(random: &mut Random, value: &mut Value) {
    if random.below(3) != 0 {
        let below: Vec<&mut Value> = match value {
            Value::Array(list) => list.iter_mut().collect(),
            Value::Object(map) => map.values_mut().collect(),
            _ => Vec::new(),
        };
        if !below.is_empty() {
            let place = random.below(below.len());
            return change(random, below.into_iter().nth(place).unwrap());
        }
    }
    let values = [
        json!(0),
        json!(1),
        json!(-1),
        json!(u64::MAX),
        json!(u32::MAX),
        json!(1.5),
        Value::Null,
        json!(true),
        json!(""),
        json!("/"),
        json!("../.."),
        json!("a/b"),
        json!("\0"),
        json!("4294967295"),
        json!("0-8191,0-8191"),
        json!("x".repeat(300)),
        json!([]),
        json!({}),
        json!(["A", "b\0"]),
        json!({"Tmpfs": {"target": "", "size": 0}}),
    ];
    match (random.below(4), &mut *value) {
        (0, Value::Array(list)) if !list.is_empty() => {
            let copy = random.of(list).clone();
            list.push(copy);
        }
        (0, Value::Number(_)) => *value = json!(1_u64 << random.below(64)),
        _ => *value = random.of(&values).clone(),
    }
}

fn seeds_of(target: &str) -> Seeds {
    match target {
        "replies" => replies(),
        "requests" => requests(),
        "tar" => tar(),
        "users" => users(),
        "config" => config(),
        other => panic!("{other}"),
    }
}

/// An input of a target.
fn input(random: &mut Random, target: &str, seeds: &Seeds) -> Vec<u8> {
    let mut bytes = random.of(&seeds.whole).clone();
    match target {
        "config" => {
            let mut value: Value = serde_json::from_slice(&bytes).unwrap();
            for _ in 0..random.below(4) {
                change(random, &mut value);
            }
            bytes = serde_json::to_vec(&value).unwrap();
            if random.below(4) == 0 {
                damage(random, &mut bytes, seeds);
            }
        }
        "tar" => {
            // Members in any order and number, with what belongs to them.
            let blocks: Vec<_> = bytes.chunks(512).map(<[u8]>::to_vec).collect();
            if random.below(2) == 0 {
                let count = random.below(12);
                bytes =
                    (0..count).flat_map(|_| random.of(&blocks).clone()).chain([0; 1024]).collect();
            }
            damage(random, &mut bytes, seeds);
            // Mostly with right checksums.
            for block in bytes.chunks_exact_mut(512) {
                if block.starts_with(&[0]) || random.below(16) == 0 || &block[257..262] != b"ustar"
                {
                    continue;
                }
                seal(block);
            }
        }
        _ => damage(random, &mut bytes, seeds),
    }
    bytes
}

fn of_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Tries so many inputs of each target, by a thread each.
fn try_many(inputs: u64, seed: u64) {
    std::thread::scope(|scope| {
        for (number, (target, body)) in (1..).zip(TARGETS) {
            scope.spawn(move || {
                let begin = std::time::Instant::now();
                let seeds = seeds_of(target);
                let mut random = Random(seed * 1000 + number);
                let mut taken = 0;
                for _ in 0..inputs {
                    let input = input(&mut random, target, &seeds);
                    let tried = std::panic::catch_unwind(|| body(&input));
                    let Ok(is_taken) = tried else {
                        panic!("{target} of seed {seed}: {}", input.escape_ascii());
                    };
                    taken += u64::from(is_taken);
                }
                println!("{target}: {taken} of {inputs} were taken, {:?}", begin.elapsed());
                // Of each there are some: else they would test little.
                assert!(taken * 50 > inputs && taken * 50 < inputs * 49, "{target}: {taken}");
            });
        }
    });
}

#[test]
fn what_comes_from_elsewhere_does_no_harm_whatever_it_is() {
    try_many(20_000, 0x2545_f491_4f6c_dd1d % 1_000_000);
}

/// As many as `ADL_FUZZ_INPUTS` says, a million without, of the seed `ADL_FUZZ_SEED`.
#[test]
#[ignore = "takes minutes"]
fn a_million_inputs_of_each_kind_do_no_harm() {
    try_many(of_environment("ADL_FUZZ_INPUTS", 1_000_000), of_environment("ADL_FUZZ_SEED", 1));
}

/// What the seeds are is taken for what it is.
#[test]
fn the_seeds_are_what_they_should_be() {
    for (target, body) in TARGETS {
        let taken = seeds_of(target).whole.iter().filter(|seed| body(seed)).count();
        let least = if target == "users" { 4 } else { seeds_of(target).whole.len() };
        assert!(taken >= least, "{target}: {taken}");
    }
}

/// Makes what the fuzz targets begin with: `fuzz/README.md`.
#[test]
#[ignore = "writes to fuzz/corpus"]
fn the_corpora_of_the_fuzz_targets_are_made() {
    for (target, _) in TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        fs::create_dir_all(&corpus).unwrap();
        for (number, seed) in seeds_of(target).whole.iter().enumerate() {
            fs::write(corpus.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}
