//! What a run of the whole suite tells: `docs/programs.md`.

use super::list::{DIFFERENCES, Difference};
use super::{Outcome, Side, differing};

pub(super) const PATH: &str = "docs/programs.md";

pub(super) fn whole(outcomes: &[Outcome]) -> String {
    let rows: String = outcomes.iter().map(row).collect();
    let differences: String = DIFFERENCES.iter().map(line).collect();
    format!("{}{rows}{}{differences}", include_str!("table.md"), include_str!("differences.md"))
}

fn row(outcome: &Outcome) -> String {
    let version = outcome.outside.get("version").map_or("", String::as_str);
    let version: Vec<&str> =
        version.lines().filter(|line| !line.starts_with("-- ")).map(str::trim).collect();
    let side = |side: Side| {
        let (_, inside) = outcome.inside.iter().find(|(one, _)| *one == side).unwrap();
        match differing(inside, &outcome.outside).len() {
            0 => "same".to_owned(),
            some => format!("{} same, {some} not", outcome.outside.len() - some),
        }
    };
    let program = outcome.program;
    let with = program.capability.map_or(String::new(), |one| format!("; with `{one}`"));
    let checks = outcome.outside.len();
    format!(
        "| {} | {}{with} | {} | {} | {} | {checks} checks |\n",
        program.name,
        program.what,
        version.join(", ").replace('|', "/"),
        side(Side::Root),
        side(Side::User),
    )
}

/// What the table says of a difference.
pub(super) fn line(one: &Difference) -> String {
    let sides: Vec<String> = one.sides.iter().map(Side::to_string).collect();
    let checks = if one.checks.is_empty() { "any".to_owned() } else { one.checks.join("; ") };
    format!("| {} | {} | {checks} | {} |\n", one.program, sides.join(", "), one.why)
}
