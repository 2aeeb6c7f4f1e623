//! Real programs do inside what they do outside: the same script runs in both, and what it prints
//! is compared, byte for byte.

mod list;
mod run;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use adl_runtime::{Config, Limits};

use crate::harness::{Home, Need, needs};
use crate::images;
use list::{DIFFERENCES, PROGRAMS, Program, Side};
use run::Place;

pub(crate) use run::run_as_user;

/// Names a directory that `tests/programs/root` has filled.
const WHOLE: &str = "ADL_TEST_PROGRAMS";
/// Names programs of the whole suite, where not all are to run.
const ONLY: &str = "ADL_TEST_PROGRAMS_ONLY";

/// What a script has printed, by the names of its checks.
type Checks = BTreeMap<String, String>;

/// Takes apart what a script has printed.
fn checks(printed: &str) -> Checks {
    let mut checks = Checks::new();
    let mut name = "before all checks";
    for line in printed.split_inclusive('\n') {
        match line.strip_prefix("== ") {
            Some(next) => {
                name = next.trim_end();
                let known = checks.insert(name.to_owned(), String::new());
                assert_eq!(known, None, "two checks with the name {name}");
            }
            None => checks.entry(name.to_owned()).or_default().push_str(line),
        }
    }
    checks
}

/// The names of the checks that came out differently.
fn differing<'a>(inside: &'a Checks, outside: &'a Checks) -> Vec<&'a str> {
    let mut names: Vec<&str> = inside.keys().chain(outside.keys()).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| inside.get(*name) != outside.get(*name));
    names
}

/// What is wrong with the differences between inside and outside: those that no one knows of, and
/// those that are known and not there. An empty text if nothing is.
fn faults(program: &str, side: Side, inside: &Checks, outside: &Checks) -> String {
    let known =
        || DIFFERENCES.iter().filter(|one| one.program == program && one.sides.contains(&side));
    let differing = differing(inside, outside);
    let mut text = String::new();
    for name in &differing {
        if !known().any(|one| one.covers(name)) {
            let [inside, outside] = [inside, outside]
                .map(|checks| checks.get(*name).map_or("(not run)\n", String::as_str));
            text += &format!(
                "{program}, {side}, {name}: not the same.\n---- inside\n{inside}---- outside\n\
                 {outside}----\n"
            );
        }
    }
    for one in known() {
        let is_gone = |check: &&&str| !differing.contains(*check);
        let any = (one.checks.is_empty() && differing.is_empty()).then_some("all checks");
        for check in one.checks.iter().filter(is_gone).copied().chain(any) {
            text += &format!("{program}, {side}, {check}: the same, and listed as not\n");
        }
    }
    text
}

/// What became of a program on each side.
struct Outcome {
    program: &'static Program,
    outside: Checks,
    inside: Vec<(Side, Checks)>,
}

impl Outcome {
    fn faults(&self) -> String {
        let faults = |(side, inside): &(Side, Checks)| {
            faults(self.program.name, *side, inside, &self.outside)
        };
        self.inside.iter().map(faults).collect()
    }
}

/// Runs a program outside and inside, all at once: they wait for most of their time.
fn try_out(program: &'static Program, place: &Place, sides: &[Side]) -> Outcome {
    let as_root = || {
        let is_whole = place.packages.is_some();
        let home = if is_whole { Home::of_a_test_that_takes(LONG) } else { Home::new() };
        let memory = is_whole.then_some(MEMORY);
        let limits = Limits { memory, ..Limits::default() };
        run::inside(Config { limits, ..home.config() }, place, Side::Root, program)
    };
    std::thread::scope(|scope| {
        let outside = scope.spawn(|| run::outside(place, &program.jobs()));
        let start = |side: &Side| match side {
            Side::Root => scope.spawn(as_root),
            Side::User => scope.spawn(|| run::inside_as_user(place, program.name)),
        };
        let inside: Vec<_> = sides.iter().map(|side| (*side, start(side))).collect();
        let outside = checks(&outside.join().unwrap());
        assert!(!outside.is_empty(), "{}: nothing was printed", program.name);
        let inside = inside.into_iter().map(|(side, run)| (side, checks(&run.join().unwrap())));
        Outcome { program, outside, inside: inside.collect() }
    })
}

/// What the jobs of the whole suite may use where root makes the sandbox: runtimes size their heaps
/// by it.
const MEMORY: u64 = 2 << 30;
/// How long one program may take.
const LONG: Duration = Duration::from_secs(3600);

/// Makes sure that a program does inside what it does outside.
#[track_caller]
fn is_the_same(name: &str, place: &Place, sides: &[Side]) {
    let program = PROGRAMS.iter().find(|program| program.name == name).unwrap();
    let faults = try_out(program, place, sides).faults();
    assert!(faults.is_empty(), "{faults}");
}

/// Makes sure of it with the programs of the machine.
#[track_caller]
fn is_the_same_on_the_host(name: &str) {
    let root = PathBuf::from("/");
    is_the_same(name, &Place { roots: [root.clone(), root], packages: None }, &Side::ALL);
}

/// Makes sure of it on a Debian, which belongs to root.
#[track_caller]
fn is_the_same_on_debian(name: &str) {
    let root = images::debian().unwrap();
    let place = Place { roots: [root.clone(), root], packages: None };
    is_the_same(name, &place, &[Side::Root]);
}

#[test]
fn users_are_made_changed_and_become() {
    if !needs(&[Need::Debian, Need::Root]) {
        return;
    }
    is_the_same_on_debian("users");
}

#[test]
fn packages_that_make_users_are_installed_and_purged() {
    if !needs(&[Need::Debian, Need::Root]) {
        return;
    }
    is_the_same_on_debian("dpkg");
}

#[test]
fn git_has_its_way_with_a_history() {
    if !needs(&[Need::Root, Need::Program("git")]) {
        return;
    }
    is_the_same_on_the_host("git");
}

#[test]
fn processes_of_python_share_memory() {
    if !needs(&[Need::Root, Need::Program("python3")]) {
        return;
    }
    is_the_same_on_the_host("python");
}

#[test]
fn a_server_lives_between_jobs() {
    if !needs(&[Need::Root, Need::Program("python3"), Need::Program("pgrep")]) {
        return;
    }
    is_the_same_on_the_host("daemon");
}

#[test]
fn terminals_have_jobs() {
    let programs = ["bash", "ps", "python3", "script", "tmux"].map(Need::Program);
    if !needs(&[Need::Root]) || !needs(&programs) {
        return;
    }
    is_the_same_on_the_host("terminal");
}

/// `tests/programs/run` calls this.
#[test]
#[ignore = "takes long, and needs a root file system with all programs: tests/programs/run"]
fn all_do_inside_what_they_do_outside() {
    let whole = PathBuf::from(std::env::var_os(WHOLE).expect("tests/programs/run sets it"));
    let place = Place {
        roots: [whole.join("root"), whole.join("root-of-user")],
        packages: Some(whole.join("repository")),
    };
    let only = std::env::var(ONLY).ok();
    let is_chosen = |program: &&Program| {
        only.as_ref().is_none_or(|only| only.split(',').any(|name| name == program.name))
    };
    let _home = Home::of_a_test_that_takes(LONG * 12);
    let printed = whole.join("printed");
    let mut faults = String::new();
    for program in PROGRAMS.iter().filter(is_chosen) {
        let begin = Instant::now();
        let outcome = try_out(program, &place, &Side::ALL);
        println!("{}: {} s", program.name, begin.elapsed().as_secs());
        faults += &outcome.faults();
        run::keep(&printed, &outcome);
    }
    let outcomes = PROGRAMS.iter().map(|program| run::kept(&printed, program));
    if let Some(outcomes) = outcomes.collect::<Option<Vec<_>>>() {
        let path = crate::harness::repository().join(table::PATH);
        std::fs::write(path, table::whole(&outcomes)).unwrap();
    }
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn the_table_has_all_programs_and_all_differences() {
    let path = crate::harness::repository().join(table::PATH);
    let text = std::fs::read_to_string(path).unwrap();
    for program in PROGRAMS {
        assert!(text.contains(&format!("\n| {} | ", program.name)), "{}", program.name);
    }
    let listed = text.lines().filter(|line| line.starts_with("| ")).count();
    // Beside them two headings.
    assert_eq!(listed, PROGRAMS.len() + DIFFERENCES.len() + 2);
    for one in DIFFERENCES {
        assert!(text.contains(&table::line(one)), "{}: {:?}", one.program, one.checks);
        assert!(PROGRAMS.iter().any(|program| program.name == one.program), "{}", one.program);
    }
}

#[test]
fn a_difference_that_is_not_listed_is_a_fault_and_a_listed_one_that_is_gone() {
    let outside = checks("== version\n1\n-- 0\n== b\nx\n-- 0\n");
    assert_eq!(outside.keys().collect::<Vec<_>>(), ["b", "version"]);
    assert_eq!(faults("none", Side::Root, &outside, &outside), "");
    let text = faults("none", Side::Root, &checks("== version\n1\n-- 0\n"), &outside);
    assert!(text.starts_with("none, root, b: not the same.\n---- inside\n(not run)\n"), "{text}");
    let text = faults("none", Side::User, &checks("== b\nx\n-- 1\n"), &checks("== b\nx\n-- 0\n"));
    assert!(text.contains("---- inside\nx\n-- 1\n---- outside\nx\n-- 0\n"), "{text}");
    for one in DIFFERENCES {
        let text = faults(one.program, one.sides[0], &outside, &outside);
        assert!(text.contains("the same, and listed as not"), "{text}");
    }
}
