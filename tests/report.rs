//! What a test tells the runner that started it: lines in a file that the environment names.

use std::fmt;
use std::time::Duration;

/// Names the file that a test's lines go to.
pub(crate) const REPORT: &str = "ADL_TEST_REPORT";
/// Names a directory for what is found out once for all tests of a run.
pub(crate) const FOUND: &str = "ADL_TEST_FOUND";
/// Set for a test that runs while no other one does.
pub(crate) const ALONE: &str = "ADL_TEST_ALONE";
/// Names the program that runs the tests.
pub(crate) const SUITE: &str = "ADL_TEST_SUITE";
/// Names the binary that has the tests: it is built where none is named.
pub(crate) const TESTS: &str = "ADL_TEST_BINARY";

/// Begins what is to be done about a program that is missing: the names of packages follow.
pub(crate) const INSTALL: &str = "apt-get install ";

/// How long a test may take that does not say it: what takes 30 s on an idle machine ends in that
/// on one with much else to do.
pub(crate) const ORDINARY: Duration = Duration::from_secs(240);

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// It may take so long, from now on.
    Takes(Duration),
    /// It has done nothing, and is to run again when no other test does.
    Alone,
    /// It was skipped.
    Skipped(Missing),
}

/// What a machine has not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Missing {
    /// Its name in `ADL_EXPECT`.
    pub(crate) name: String,
    /// How it was seen.
    pub(crate) why: String,
    /// What to do about it: `apt-get install …`.
    pub(crate) remedy: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is missing: {}", self.name, self.why)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Takes(limit) => write!(f, "takes\t{}", limit.as_secs()),
            Self::Alone => write!(f, "alone"),
            Self::Skipped(Missing { name, why, remedy }) => {
                let why = why.replace(['\t', '\n'], " ");
                write!(f, "skipped\t{name}\t{why}\t{remedy}")
            }
        }
    }
}

impl Line {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        Some(match *fields {
            ["takes", seconds] => Self::Takes(Duration::from_secs(seconds.parse().ok()?)),
            ["alone"] => Self::Alone,
            ["skipped", name, why, remedy] => {
                let [name, why, remedy] = [name, why, remedy].map(str::to_owned);
                Self::Skipped(Missing { name, why, remedy })
            }
            _ => return None,
        })
    }
}

#[test]
fn what_a_test_tells_is_what_the_runner_reads() {
    let [name, remedy] = ["gcc", "apt-get install gcc"].map(str::to_owned);
    let missing = Missing { name, why: "no gcc\tin\n/usr".to_owned(), remedy };
    let read = Missing { why: "no gcc in /usr".to_owned(), ..missing.clone() };
    assert_eq!(Line::parse(&Line::Skipped(missing).to_string()), Some(Line::Skipped(read)));
    for line in [Line::Alone, Line::Takes(ORDINARY)] {
        assert_eq!(Line::parse(&line.to_string()), Some(line));
    }
    assert_eq!(Line::parse("takes\tlong"), None);
}
