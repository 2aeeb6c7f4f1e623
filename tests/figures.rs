//! What is promised in figures is measured alone, in one run with what it is compared to.
//!
//! `cargo test --release --package adl-tests -- --ignored --test-threads 1 figures::`

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process;
use std::time::{Duration, Instant};

use adl_runtime::{Config, EndReason, Image, Images, Limits, PullOptions, Sandbox, Stdio, Upper};

use crate::harness::{Home, Need, beside, needs, succeeds, within};
use crate::image_fixtures;

/// The value that so many in a hundred do not exceed.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent).div_ceil(100).max(1) - 1]
}

/// How much later than asked jobs are ended that don't want to be, with every processor busy.
pub(crate) fn overshoot(sandbox: &Sandbox, runs: usize) -> Vec<Duration> {
    let timeout = Duration::from_millis(20);
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let overshoot = || {
        let begin = Instant::now();
        let mut script = sandbox.shell("trap '' TERM; setsid sleep 1000 & sleep 1000");
        let output = script.timeout(timeout).output();
        let took = begin.elapsed();
        assert_eq!(output.unwrap().status.reason(), EndReason::TimedOut);
        assert!(took >= timeout, "{took:?}");
        took - timeout
    };
    beside(processors, |_| std::hint::spin_loop(), || (0..runs).map(|_| overshoot()).collect())
}

#[test]
#[ignore = "a measurement, to be run alone"]
fn a_timeout_is_kept_to_25_ms_under_load() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let mut overshoot = overshoot(&home.sandbox(), 200);
    let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(&mut overshoot, percent));
    println!("overshoot of 200 timeouts: p50 {p50:?}, p99 {p99:?}, max {max:?}");
    assert!(p99 <= Duration::from_millis(25), "p99 {p99:?}");
}

/// What a reset has to get rid of beside what [`crate::reset::large`] has.
const LARGER: [(&str, &str); 2] = [
    ("nothing", ""),
    (
        "5 GiB, all of it written",
        "f = open('/tmp/large', 'wb', buffering=0)\nfor _ in range(5 << 10): f.write(bytes(1 << 20))",
    ),
];

#[test]
#[ignore = "a measurement, to be run alone"]
fn a_reset_costs_the_same_after_anything() {
    if !needs(&[Need::Root, Need::Program("python3"), Need::Program("chattr")]) {
        return;
    }
    let home = Home::of_a_test_that_takes(Duration::from_secs(1800));
    let name = Some("measured".to_owned());
    let sandbox = Sandbox::create(Config { name, ..home.config() }).unwrap();
    let upper = home.state().join("sandboxes/measured/0.upper");
    let larger = LARGER.map(|(what, make)| (what, make.to_owned()));
    let cases: Vec<_> = larger.into_iter().chain(crate::reset::large(1)).collect();
    let mut times = vec![(Vec::new(), Duration::ZERO); cases.len() + 1];
    for _ in 0..9 {
        for (number, (resets, removal)) in times.iter_mut().enumerate() {
            let make = cases.get(number).map_or("open('/tmp/f', 'w')", |case| &case.1);
            let script = format!("import os\n{make}");
            assert!(sandbox.command("python3").args(["-c", &script]).status().unwrap().success());
            if number == cases.len() {
                let mut chattr = process::Command::new("chattr");
                crate::harness::succeeds(chattr.arg("+i").arg(upper.join("tmp/f")));
            }
            // What a disk still writes of it is nothing that a reset does.
            nix::unistd::sync();
            // Nor are the cold caches that it leaves.
            home.sandbox().delete().unwrap();
            let begin = Instant::now();
            sandbox.reset().unwrap();
            resets.push(begin.elapsed());
            let begin = Instant::now();
            adl_runtime::finish_removals();
            *removal = begin.elapsed().max(*removal);
        }
    }
    let mut medians = Vec::new();
    for (number, (mut resets, removal)) in times.into_iter().enumerate() {
        let what = cases.get(number).map_or("a file with the immutable flag", |case| case.0);
        let median = percentile(&mut resets, 50);
        println!("reset after {what}: {median:?}, removed within {removal:?}");
        medians.push(median);
    }
    let (least, most) = (medians.iter().min().unwrap(), medians.iter().max().unwrap());
    println!("the longest is {:.2} times the shortest", most.as_secs_f64() / least.as_secs_f64());
}

/// How many cgroups the kernel still has that were removed.
fn dying() -> u64 {
    let paths = ["/sys/fs/cgroup/cgroup.stat", "/sys/fs/cgroup/unified/cgroup.stat"];
    let text = paths.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("nr_dying_descendants "));
    line.unwrap().parse().unwrap()
}

/// How many cycles there are: as many as the environment says, for machines on which ten thousand
/// take too long.
fn cycles() -> usize {
    std::env::var("ADL_CYCLES").map_or(10_000, |count| count.parse().unwrap())
}

#[test]
#[ignore = "a measurement, to be run alone"]
fn ten_thousand_creates_with_limits_cost_the_last_no_more_than_the_first() {
    if !needs(&[Need::Cgroups, Need::Root]) {
        return;
    }
    let home = Home::of_a_test_that_takes(Duration::from_secs(1800));
    let limits = Limits {
        cpu: Some(1500),
        cpu_weight: Some(50),
        memory: Some(256 << 20),
        swap: Some(0),
        pids: Some(100),
        cpuset: Some("0".to_owned()),
        accounting: true,
        ..Limits::default()
    };
    let none = Limits::default();
    // In memory, where the disk, whose creates take longer the more was removed a moment ago, has
    // no part.
    let upper = Upper::Memory { size: 16 << 20 };
    let config = |limits: &Limits| Config { limits: limits.clone(), upper, ..home.config() };
    let cycle = |limits: &Limits| {
        let config = config(limits);
        let begin = Instant::now();
        let sandbox = Sandbox::create(config).unwrap();
        let time = begin.elapsed();
        assert!(sandbox.command("/bin/true").status().unwrap().success());
        sandbox.delete().unwrap();
        adl_runtime::finish_removals();
        time
    };
    for _ in 0..100 {
        cycle(&limits);
        cycle(&none);
    }
    let dying_before = dying();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..cycles() {
        with.push(cycle(&limits));
        without.push(cycle(&none));
    }
    let median = |times: &[Duration]| percentile(&mut times.to_vec(), 50).as_secs_f64() * 1000.0;
    let ends = |times: &[Duration]| (median(&times[..100]), median(&times[times.len() - 100..]));
    println!(
        "create, p50 in ms: {:.3} with limits, {:.3} without",
        median(&with),
        median(&without)
    );
    for (what, (first, last)) in [("with", ends(&with)), ("without", ends(&without))] {
        println!(
            "{what} limits, the first hundred {first:.3}, the last {last:.3}: {:.2} x",
            last / first
        );
    }
    // What the page cache still holds of them goes with it.
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let is_back = || dying() <= dying_before;
    assert!(within(Duration::from_secs(30), is_back), "{} dying, {dying_before} before", dying());
    println!("{} cgroups are dying, {dying_before} were before", dying());
}

/// All at once, for ever.
const ATTACKS: [&str; 4] = [
    "while :; do :; done & while :; do :; done & while :; do :; done & while :; do :; done",
    "while :; do python3 -c \"x = b'1' * (300 << 20)\"; done",
    "while :; do :(){ :|:& }; :; sleep 0.01; done",
    "while :; do head -c 100000000 /dev/zero > /tmp/f; rm /tmp/f; done",
];

#[test]
#[ignore = "a measurement, to be run alone"]
fn neighbours_of_an_attacker_are_not_held_up() {
    if !needs(&[Need::Cgroups, Need::Root, Need::Program("python3"), Need::Program("bash")]) {
        return;
    }
    let home = Home::of_a_test_that_takes(Duration::from_secs(600));
    let neighbours: Vec<_> = (0..8)
        .map(|_| {
            let limits = Limits { memory: Some(256 << 20), ..Limits::default() };
            Sandbox::create(Config { limits, ..home.config() }).unwrap()
        })
        .collect();
    fn measure(mut run: impl FnMut(usize) -> bool) -> (Duration, Duration) {
        let mut times: Vec<_> = (0..800)
            .map(|round| {
                let begin = Instant::now();
                assert!(run(round));
                begin.elapsed()
            })
            .collect();
        (percentile(&mut times, 50), percentile(&mut times, 99))
    }
    let exec =
        || measure(|round| neighbours[round % 8].command("/bin/true").status().unwrap().success());
    // What the kernel takes for a process of the host's beside the attacker.
    let floor = || measure(|_| std::process::Command::new("/bin/true").status().unwrap().success());
    exec();
    let of_half_a_cpu = Limits {
        cpu: Some(500),
        cpu_weight: Some(10),
        memory: Some(64 << 20),
        pids: Some(64),
        ..Limits::default()
    };
    // The neighbours have the others.
    let of_one_cpu = Limits { cpuset: Some("0".to_owned()), ..of_half_a_cpu.clone() };
    for (what, limits) in [("half a CPU", of_half_a_cpu), ("half of CPU 0", of_one_cpu)] {
        let (mut ratios, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let idle = (exec(), floor());
            let attacker =
                Sandbox::create(Config { limits: limits.clone(), ..home.config() }).unwrap();
            for attack in ATTACKS {
                let mut command = attacker.command("bash");
                drop(command.args(["-c", attack]).stderr(Stdio::null()).spawn().unwrap());
            }
            // Until it has all that it may.
            let is_at_work = || {
                let stats = attacker.stats().unwrap();
                stats.pids >= Some(60) && stats.memory_peak >= Some(60 << 20)
            };
            assert!(within(Duration::from_secs(60), is_at_work), "{:?}", attacker.stats());
            let attacked = (exec(), floor());
            println!(
                "an attacker with {what}: exec, p50 and p99, {:?} to {:?}",
                idle.0, attacked.0
            );
            println!("  of the host's own: {:?} to {:?}", idle.1, attacked.1);
            ratios.push(attacked.0.1.as_secs_f64() / idle.0.1.as_secs_f64());
            floors.push(attacked.1.1.as_secs_f64() / idle.1.1.as_secs_f64());
            attacker.delete().unwrap();
        }
        ratios.sort_by(f64::total_cmp);
        floors.sort_by(f64::total_cmp);
        println!("an attacker with {what}: p99 {ratios:.2?} x, of the host's own {floors:.2?} x");
    }
}

/// How much is streamed, in bytes.
const STREAMED: usize = 1 << 30;

/// How long a stream takes.
fn drain(stdout: impl Into<OwnedFd>) -> Duration {
    let mut stream = File::from(stdout.into());
    let begin = Instant::now();
    let (mut buffer, mut total) = (vec![0; 64 << 10], 0);
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => break,
            count => total += count,
        }
    }
    assert_eq!(total, STREAMED);
    begin.elapsed()
}

#[test]
#[ignore = "a measurement, to be run alone"]
fn a_stream_is_as_fast_as_a_pipe_of_the_hosts() {
    if !needs(&[Need::Program("yes")]) {
        return;
    }
    const SCRIPT: &str = "yes | head -c 1G";
    let home = Home::new();
    let sandbox = home.sandbox();
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    // In turns. Which two of three processes share a processor makes a difference of two, to
    // either side.
    for _ in 0..15 {
        let mut child = sandbox.shell(SCRIPT).stdout(Stdio::piped()).spawn().unwrap();
        inside.push(drain(child.stdout.take().unwrap()));
        assert!(child.wait().unwrap().success());
        let mut command = process::Command::new("bash");
        command.args(["-c", SCRIPT]).stdout(process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        outside.push(drain(child.stdout.take().unwrap()));
        assert!(child.wait().unwrap().success());
    }
    let (inside, outside) = (percentile(&mut inside, 50), percentile(&mut outside, 50));
    let speed = outside.as_secs_f64() / inside.as_secs_f64();
    println!("1 GiB streamed in {inside:?}, on the host in {outside:?}, speed {speed:.2}");
    assert!(speed >= 0.95, "{speed:.2}");
}

#[test]
#[ignore = "a measurement, to be run alone"]
fn an_image_costs_a_create_little_more_than_a_directory() {
    if !needs(&[Need::Program("umoci"), Need::Program("busybox")]) {
        return;
    }
    const ROUNDS: usize = 400;
    let home = Home::of_a_test_that_takes(Duration::from_secs(1200));
    let (layout, root) = (home.path("layout"), home.path("root"));
    image_fixtures::small(&root);
    let images = Images::open(Some(&home.state())).unwrap();
    let umoci = |arguments: &[&str]| succeeds(process::Command::new("umoci").args(arguments));
    umoci(&["init", "--layout", layout.to_str().unwrap()]);
    let image = format!("{}:image", layout.display());
    umoci(&["new", "--image", &image]);
    umoci(&["insert", "--image", &image, root.to_str().unwrap(), "/"]);
    let import =
        |name| drop(images.import(&layout, None, Some(name), &PullOptions::default()).unwrap());
    import("one");
    let value = home.path("value");
    for number in 1..60 {
        fs::write(&value, format!("{number}")).unwrap();
        umoci(&["insert", "--image", &image, value.to_str().unwrap(), "/value"]);
    }
    import("many");
    let kinds = [Image::directory(&root), Image::reference("one"), Image::reference("many")];
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (image, times) in kinds.iter().zip(&mut times) {
            let config = Config { image: image.clone(), ..home.config() };
            let begin = Instant::now();
            let sandbox = Sandbox::create(config).unwrap();
            times.push(begin.elapsed());
            sandbox.delete().unwrap();
        }
    }
    let [directory, one, many] = times.each_mut().map(|times| percentile(times, 50).as_secs_f64());
    let (one, many) = (one / directory, many / directory);
    println!(
        "create of a directory {directory:.5} s, of an image {one:.3} x, of 60 layers {many:.3} x"
    );
    assert!(one <= 1.10 && many <= 1.25, "{one:.3}, {many:.3}");
}
