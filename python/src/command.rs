//! Commands, out of the arguments of `Sandbox.run` and its like.

use adl_runtime::{Command, Error, Leftovers, Sandbox, Stdio};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::config::user;
use crate::errors::raise;
use crate::sys::duplicate;
use crate::values::{duration, each, os_string, pairs, path, rlimits, word};

/// The numbers of `subprocess`.
const PIPE: i32 = -1;
const STDOUT: i32 = -2;
const DEVNULL: i32 = -3;

/// Makes a command of its arguments: a `str` is a script for the shell, and a sequence a program
/// with its arguments.
pub(crate) fn command(
    sandbox: &Sandbox,
    args: &Bound<'_, PyAny>,
    options: &Bound<'_, PyDict>,
) -> PyResult<Command> {
    let mut command = if args.is_instance_of::<PyString>() {
        sandbox.shell(os_string(args)?)
    } else if !is_list(args) && (args.is_instance_of::<PyBytes>() || args.hasattr("__fspath__")?) {
        let text = "a command is a str, for the shell, or a sequence: a program and its arguments";
        return Err(PyTypeError::new_err(text));
    } else {
        let mut all = args.try_iter()?;
        let no_program = || PyValueError::new_err("a command is at least a program");
        let mut command = sandbox.command(os_string(&all.next().ok_or_else(no_program)??)?);
        for argument in all {
            command.arg(os_string(&argument?)?);
        }
        command
    };
    // Whatever the order of the options, it comes before what sets variables.
    if let Some(clear) = options.get_item("clear_env")?
        && clear.is_truthy()?
    {
        command.env_clear();
    }
    each(options, |name, value| set(&mut command, name, value))?;
    Ok(command)
}

/// Whether it is what most commands are.
fn is_list(args: &Bound<'_, PyAny>) -> bool {
    args.is_instance_of::<PyList>() || args.is_instance_of::<PyTuple>()
}

fn set(command: &mut Command, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    match name {
        "env" => {
            for (name, value) in pairs(value)? {
                let name = os_string(&name)?;
                if value.is_none() {
                    command.env_remove(name);
                } else {
                    command.env(name, os_string(&value)?);
                }
            }
        }
        "clear_env" => {}
        "input" => {
            command.input(bytes(value)?);
        }
        "cwd" => {
            command.current_dir(path(value)?);
        }
        "user" => {
            command.user(user(value)?);
        }
        "uid" => {
            command.uid(value.extract()?);
        }
        "gid" => {
            command.gid(value.extract()?);
        }
        "groups" => {
            command.groups(value.extract::<Vec<u32>>()?);
        }
        "umask" => {
            command.umask(value.extract()?);
        }
        "rlimits" => {
            for limit in rlimits(value)? {
                command.rlimit(limit.resource, limit.soft, limit.hard);
            }
        }
        "nice" => {
            command.nice(value.extract()?);
        }
        "oom_score_adj" => {
            command.oom_score_adj(value.extract()?);
        }
        "timeout" => {
            command.timeout(duration(value)?);
        }
        "cpu_time" => {
            command.cpu_time(duration(value)?);
        }
        "idle_timeout" => {
            command.idle_timeout(duration(value)?);
        }
        "output_limit" => {
            command.output_limit(value.extract()?);
        }
        "keep_output" => {
            let (head, tail) = value.extract()?;
            command.keep_output(head, tail);
        }
        "leftovers" => {
            command.leftovers(word(value, &[("keep", Leftovers::Keep), ("end", Leftovers::End)])?);
        }
        "terminal" => {
            let (rows, columns) = value.extract()?;
            command.terminal(rows, columns);
        }
        "kill_on_drop" => {
            command.kill_on_drop(value.extract()?);
        }
        "stdin" => {
            command.stdin(stdio(value)?);
        }
        "stdout" => {
            command.stdout(stdio(value)?);
        }
        "stderr" => {
            command.stderr(stdio(value)?);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Bytes, or what can be looked at as such.
pub(crate) fn bytes(value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(text.to_cow()?.as_bytes().to_vec());
    }
    // Other buffers, by a copy: the stable interface has none before Python 3.11.
    let copied = value
        .py()
        .get_type::<PyBytes>()
        .call1((value.py().get_type::<pyo3::types::PyMemoryView>().call1((value,))?,))?;
    Ok(copied.cast::<PyBytes>()?.as_bytes().to_vec())
}

/// One of the numbers of `subprocess`; a descriptor, whose bytes are moved; or `("direct", fd)`.
fn stdio(value: &Bound<'_, PyAny>) -> PyResult<Stdio> {
    if let Ok((how, number)) = value.extract::<(String, i32)>() {
        return match how.as_str() {
            "direct" => Ok(Stdio::direct(duplicate(number)?)),
            _ => Err(PyValueError::new_err(format!("{how:?} is no way to pass a descriptor"))),
        };
    }
    match value.extract::<i32>()? {
        PIPE => Ok(Stdio::piped()),
        STDOUT => Ok(Stdio::same_as_stdout()),
        DEVNULL => Ok(Stdio::null()),
        number => Ok(duplicate(number)?.into()),
    }
}

/// Refuses what only those keep who read what a command writes.
pub(crate) fn check_spawned(options: &Bound<'_, PyDict>) -> PyResult<()> {
    for name in ["idle_timeout", "output_limit", "keep_output"] {
        if options.get_item(name)?.is_some_and(|value| !value.is_none()) {
            let why = "popen reads nothing of what it writes: use run, arun or background";
            let what = match name {
                "idle_timeout" => "idle timeout",
                "output_limit" => "output limit",
                _ => "keep output",
            };
            return Err(raise(Error::Invalid { what, why: why.to_owned() }));
        }
    }
    Ok(())
}
