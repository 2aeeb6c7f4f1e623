//! The environment of a command: what every one has, what a login sets, and what was said.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use adl_protocol::{Login, Strings};

use crate::config::defaults::check_variable;
use crate::error::{Error, Result};
use crate::job::user::Entry;

/// What every command has unless it is changed.
const ALWAYS: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("LANG", "C.UTF-8")];

/// What it has on a terminal: what each of them can do.
const TERM: (&str, &str) = ("TERM", "xterm");

/// The environment of a command.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    variables: Vec<(OsString, OsString)>,
    /// Those that its user decides about.
    login: Login,
    /// Whether a terminal decides about `TERM`.
    term: bool,
}

impl Environment {
    pub(crate) fn new(defaults: &[(OsString, OsString)]) -> Self {
        let variables = ALWAYS.map(|(name, value)| (name.into(), value.into())).into();
        let mut this = Self { variables, login: Login::ALL, term: true };
        for (name, value) in defaults {
            this.set(name, value);
        }
        this
    }

    pub(crate) fn set(&mut self, name: &OsStr, value: &OsStr) {
        self.remove(name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn remove(&mut self, name: &OsStr) {
        self.variables.retain(|(other, _)| other != name);
        match name.as_bytes() {
            b"HOME" => self.login.remove(Login::HOME),
            b"USER" => self.login.remove(Login::USER),
            b"LOGNAME" => self.login.remove(Login::LOGNAME),
            b"SHELL" => self.login.remove(Login::SHELL),
            b"TERM" => self.term = false,
            _ => {}
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self { variables: Vec::new(), login: Login::NONE, term: false };
    }

    /// Refuses what can be no variable.
    pub(crate) fn check(&self) -> Result<()> {
        let all = &mut self.variables.iter();
        all.try_for_each(|(name, value)| check_variable(name.as_bytes(), value.as_bytes()))
    }

    /// As `execve(2)` takes it, and what init is to add of its user's login: nothing where the
    /// user's entry is known.
    pub(crate) fn block(
        &self,
        user: Option<&Entry>,
        is_on_terminal: bool,
    ) -> Result<(Vec<u8>, Login)> {
        let mut block = Vec::new();
        for (name, value) in &self.variables {
            append(&mut block, name.as_bytes(), value.as_bytes())?;
        }
        if self.term && is_on_terminal {
            append(&mut block, TERM.0.as_bytes(), TERM.1.as_bytes())?;
        }
        let Some(user) = user else { return Ok((block, self.login)) };
        for (variable, name, value) in [
            (Login::HOME, "HOME", &user.home),
            (Login::USER, "USER", &user.name),
            (Login::LOGNAME, "LOGNAME", &user.name),
            (Login::SHELL, "SHELL", &user.shell),
        ] {
            if self.login.has(variable) {
                append(&mut block, name.as_bytes(), value)?;
            }
        }
        Ok((block, Login::NONE))
    }
}

fn append(block: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<()> {
    Strings::append(block, &[name, b"=", value].concat())
        .map_err(|error| Error::invalid("environment", error.to_string()))
}
