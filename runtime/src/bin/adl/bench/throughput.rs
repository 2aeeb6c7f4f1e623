//! The rows of whole cycles by many threads, in turns with what the kernel takes for such a cycle.

use std::path::Path;
use std::time::Duration;

use adl_runtime::{Config, Sandbox};

use super::files::Scratch;
use super::floor::Floor;
use super::pool::in_threads;
use super::{LeftOut, Rows, TURNS, Times};
use crate::values::CliResult;

/// How many threads, with the names of their rows.
const THREADS: [(usize, &str); 5] = [
    (1, "throughput_1"),
    (2, "throughput_2"),
    (8, "throughput_8"),
    (32, "throughput_32"),
    (64, "throughput_64"),
];

const PROGRAM: &str = "/bin/true";

pub(super) fn throughput(
    config: &Config,
    image: Option<&Path>,
    count: usize,
    rows: &mut Rows,
) -> CliResult<()> {
    if count == 0 {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let floor = Floor::new(scratch.path(), image);
    let floor = match floor {
        Ok(floor) => Some(floor),
        Err(error) => {
            let why = error.to_string();
            super::told(Err(LeftOut { rows: "the floor of throughput_*", why }.into()))?;
            None
        }
    };
    let mut all = THREADS.map(|_| (Times::default(), Duration::ZERO, Duration::ZERO));
    for turn in 0..TURNS {
        let count = count * (turn + 1) / TURNS - count * turn / TURNS;
        for ((threads, _), (times, took, of_floor)) in THREADS.into_iter().zip(&mut all) {
            let (more, for_all) = in_threads(threads, count, || {
                let sandbox = Sandbox::create(config.clone())?;
                sandbox.command(PROGRAM).status()?;
                sandbox.delete()
            })?;
            // Of which the floor's cycles are a part, too.
            let begin = std::time::Instant::now();
            adl_runtime::finish_removals();
            times.0.extend(more.0);
            *took += for_all + begin.elapsed();
            if let Some(floor) = &floor {
                *of_floor += floor.run(threads, count)?.whole;
            }
        }
    }
    let rate = |times: &Times, took: &Duration| times.0.len() as f64 / took.as_secs_f64();
    let best = all.iter().map(|(times, took, _)| rate(times, took)).fold(0.0, f64::max);
    let best_floor = all.iter().map(|(times, _, took)| rate(times, took)).fold(0.0, f64::max);
    for ((_, name), (times, took, of_floor)) in THREADS.into_iter().zip(&all) {
        let per_second = rate(times, took);
        let mut row = times.row(None).with_rate(*took).with("of_the_best", per_second / best);
        if floor.is_some() {
            let floor = rate(times, of_floor);
            row = row
                .with("floor_per_second", floor)
                .with("floor_of_its_best", floor / best_floor)
                .with("of_the_floor", per_second / floor);
        }
        rows.insert(name, row);
    }
    Ok(())
}
