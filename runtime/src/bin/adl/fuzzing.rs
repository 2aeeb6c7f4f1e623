//! Any bytes as values of options: the body of the fuzz target `arguments` in `fuzz/`, and of tests
//! with very many of them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use adl_runtime::{Mount, Publish};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};

use crate::limits::LimitOptions;
use crate::mounts::MountOptions;
use crate::ports::PortOptions;
use crate::ulimits::{Ulimit, ulimit};
use crate::values::duration;

/// The options whose values have a form.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    _mounts: MountOptions,
    #[command(flatten)]
    _ports: PortOptions,
    #[command(flatten)]
    limits: LimitOptions,
    #[arg(long, value_parser = ulimit)]
    ulimit: Vec<Ulimit>,
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
}

const NAMES: [&str; 16] = [
    "volume",
    "tmpfs",
    "mount",
    "device",
    "memory",
    "memory-high",
    "swap",
    "cpus",
    "cpu-weight",
    "cpuset",
    "pids-limit",
    "io",
    "ulimit",
    "timeout",
    "publish",
    "forward",
];

/// Reads a value of the option that the first byte says; whether it takes that.
pub(crate) fn arguments(input: &[u8]) -> bool {
    let Some((which, value)) = input.split_first() else { return false };
    let Some(name) = NAMES.get(usize::from(*which) % NAMES.len()) else { return false };
    let mut argument = OsString::from(format!("--{name}="));
    argument.push(OsStr::from_bytes(value));
    let read = Options::command().try_get_matches_from([OsString::from("adl"), argument]);
    let matches = match read {
        Ok(matches) => matches,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let mut published = matches.get_many::<Publish>("publish").into_iter().flatten();
    let is_right = check_mounts(&matches) && published.all(|publish| publish.port != 0);
    assert!(is_right, "{name}: {}", value.escape_ascii());
    let Ok(Options { limits, ulimit, timeout, .. }) = Options::from_arg_matches(&matches) else {
        return false;
    };
    let limits = limits.limits();
    let is_right = limits.memory != Some(0)
        && limits.pids != Some(0)
        && ulimit.iter().all(|limit| limit.soft <= limit.hard)
        && timeout != Some(Duration::ZERO)
        && limits.io.iter().all(|limit| !limit.device.as_os_str().is_empty());
    assert!(is_right, "{name}: {}", value.escape_ascii());
    true
}

/// Whether each mount is whole.
fn check_mounts(matches: &ArgMatches) -> bool {
    let of = |name| matches.get_many::<Mount>(name).into_iter().flatten();
    let mut all = ["volume", "tmpfs", "mount", "device"].into_iter().flat_map(of);
    all.all(|mount| match mount {
        Mount::Tmpfs { size, options, .. } => *size > 0 && options.mode <= 0o7777,
        Mount::Volume { target, .. } => !target.as_os_str().is_empty(),
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::{NAMES, arguments};

    /// Values that are taken, each after the place of its option.
    const SEEDS: [(u8, &str); 26] = [
        (0, "/a:/b:ro,z"),
        (0, "./a:/b"),
        (1, "/a:size=64m,mode=1777,uid=5,gid=6,noexec,ro"),
        (2, "type=bind,\"source=/a,b\",target=/c,readonly,bind-propagation=rprivate"),
        (2, "type=tmpfs,target=/t,tmpfs-size=1mb,tmpfs-mode=0700"),
        (3, "/dev/fuse:/dev/fuse:rwm"),
        (4, "512m"),
        (5, "1.5gib"),
        (6, "0"),
        (7, "150%"),
        (7, "1.25"),
        (8, "100"),
        (9, "0-3,6"),
        (10, "-1"),
        (10, "64"),
        (11, "/dev/sda:rbps=10m,wiops=100"),
        (12, "nofile=1024:2048"),
        (12, "core=unlimited"),
        (13, "1h1m1s1ms"),
        (13, "0.25"),
        (4, "512 MB"),
        (13, "20\u{b5}s"),
        (14, "127.0.0.1:0:80/tcp"),
        (14, "[::1]:8080:80"),
        (15, "5432:db.internal:5432"),
        (15, "5432:[::1]:5432"),
    ];

    const WORDS: [&[u8]; 24] = [
        b":",
        b",",
        b"=",
        b"\"",
        b"/",
        b".",
        b"..",
        b"0",
        b"9999999999999999999999",
        b"-",
        b"+",
        b"ro",
        b"cow",
        b"size=",
        b"mode=17777",
        b"%",
        b"1e308",
        b"\xff",
        b"\0",
        b"\xd9\xa3",
        b"unlimited",
        b"target=",
        b"m",
        b"\n",
    ];

    /// Random numbers that are the same each time (xorshift).
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as usize % limit
        }

        fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
            list.get(self.below(list.len())).unwrap()
        }
    }

    fn input(random: &mut Random) -> Vec<u8> {
        let (which, seed) = *random.of(&SEEDS);
        let mut bytes = seed.as_bytes().to_vec();
        for _ in 0..random.below(4) {
            let place = random.below(bytes.len() + 1);
            let end = place + random.below(bytes.len() - place + 1).min(8);
            let word = random.of(&WORDS);
            match random.below(4) {
                0 => drop(bytes.splice(place..end, word.iter().copied())),
                1 => drop(bytes.splice(place..place, word.iter().copied())),
                2 => drop(bytes.drain(place..end)),
                _ => drop(bytes.splice(place..place, [random.below(256) as u8])),
            }
        }
        // Sometimes that of another option.
        let which = if random.below(16) == 0 { random.below(NAMES.len()) as u8 } else { which };
        bytes.insert(0, which);
        bytes
    }

    fn try_many(inputs: u64, seed: u64) {
        let begin = std::time::Instant::now();
        let mut random = Random(seed);
        let mut taken = 0;
        for _ in 0..inputs {
            let input = input(&mut random);
            let tried = std::panic::catch_unwind(|| arguments(&input));
            assert!(tried.is_ok(), "of seed {seed}: {}", input.escape_ascii());
            taken += u64::from(tried.unwrap());
        }
        let time = begin.elapsed();
        let line = format!("arguments: {taken} of {inputs} were taken, {time:?}");
        crate::output::say_line(line);
        assert!(taken * 10 > inputs && taken * 10 < inputs * 9, "{taken}");
    }

    #[test]
    fn values_are_taken_or_refused_whatever_they_are() {
        for (which, text) in SEEDS {
            assert!(arguments(&[&[which], text.as_bytes()].concat()), "{text}");
        }
        try_many(20_000, 0x2545_f491_4f6c_dd1d);
    }

    /// As many as `ADL_FUZZ_INPUTS` says, a million without, of the seed `ADL_FUZZ_SEED`.
    #[test]
    #[ignore = "takes minutes"]
    fn a_million_values_are_taken_or_refused() {
        let of = |name, default| std::env::var(name).map_or(default, |it| it.parse().unwrap());
        try_many(of("ADL_FUZZ_INPUTS", 1_000_000), of("ADL_FUZZ_SEED", 1));
    }

    /// Makes what the fuzz target begins with: `fuzz/README.md`.
    #[test]
    #[ignore = "writes to fuzz/corpus"]
    fn the_corpus_of_the_fuzz_target_is_made() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/arguments");
        std::fs::create_dir_all(corpus).unwrap();
        for (number, (which, text)) in SEEDS.into_iter().enumerate() {
            let path = format!("{corpus}/seed-{number}");
            std::fs::write(path, [&[which], text.as_bytes()].concat()).unwrap();
        }
    }
}
