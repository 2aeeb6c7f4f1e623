//! Environment variables of the command line and of files, as docker reads them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::bases::Bases;
use crate::values::CliResult;

/// A variable's name and value.
pub(crate) type Variable = (OsString, OsString);

/// Reads `NAME=VALUE`, or `NAME` for the value that it has here; nothing if it has none.
pub(crate) fn variable(text: &OsStr) -> Result<Option<Variable>, &'static str> {
    parse(text.as_bytes())
}

/// Reads a file with a variable on each line. Empty lines and those that begin with `#` are left
/// out; a value is all that follows the `=`, quotes and blanks included.
pub(crate) fn file(path: &Path, bases: &Bases) -> CliResult<Vec<Variable>> {
    let text =
        read(path, bases).map_err(|error| format!("--env-file {}: {error}", path.display()))?;
    variables(&text).map_err(|(number, why)| {
        format!("--env-file {}: line {number}: {why}", path.display()).into()
    })
}

fn read(path: &Path, bases: &Bases) -> CliResult<Vec<u8>> {
    // What the caller has open, as a shell's `<(…)`, may be a pipe. One that has a name is waited
    // for by no one.
    let is_open = path == "/dev/stdin" || path.starts_with("/dev/fd");
    let mut file = if is_open { File::open(path)? } else { bases.place(path)?.open_file()? };
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

fn variables(text: &[u8]) -> Result<Vec<Variable>, (usize, &'static str)> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if !line.is_empty() && !line.starts_with(b"#") {
            variables.extend(parse(line).map_err(|why| (number, why))?);
        }
    }
    Ok(variables)
}

fn parse(text: &[u8]) -> Result<Option<Variable>, &'static str> {
    let mut parts = text.splitn(2, |byte| *byte == b'=');
    let name = parts.next().unwrap_or_default();
    if name.is_empty() {
        return Err("no name");
    }
    if name.iter().any(u8::is_ascii_whitespace) {
        return Err("a blank in the name");
    }
    if text.contains(&0) {
        return Err("a byte 0");
    }
    let name = OsStr::from_bytes(name).to_owned();
    Ok(match parts.next() {
        Some(value) => Some((name, OsString::from_vec(value.to_vec()))),
        None => std::env::var_os(&name).map(|value| (name, value)),
    })
}

#[cfg(test)]
mod tests {
    use super::variables;

    #[test]
    fn a_file_is_read_as_docker_reads_it() {
        let text = b"\xef\xbb\xbfA=1\n\n  # B=2\r\n  C= x # y=\"z\" \r\nD=\nNOT_SET_HERE\nE=last";
        let pairs = [("A", "1"), ("C", " x # y=\"z\" "), ("D", ""), ("E", "last")];
        let expected = pairs.map(|(name, value)| (name.into(), value.into()));
        assert_eq!(variables(text), Ok(expected.to_vec()));
        let path = std::env::var_os("PATH").map(|path| ("PATH".into(), path));
        assert_eq!(variables(b"PATH"), Ok(path.into_iter().collect()));
    }

    #[test]
    fn a_line_that_is_no_variable_is_named() {
        assert_eq!(variables(b"A=1\n#\n=x"), Err((3, "no name")));
        assert_eq!(variables(b"export A=1\n"), Err((1, "a blank in the name")));
        assert_eq!(variables(b"A=1\nB=\0"), Err((2, "a byte 0")));
    }
}
