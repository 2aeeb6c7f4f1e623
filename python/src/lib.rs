//! The engine, for Python: what `python/adl` makes its interface of.
//!
//! Values go in as Python's own, with their names as in `python/adl`, and come out as tuples and
//! dictionaries. Errors are those of `adl._errors`. What waits lets other threads run.

#![allow(clippy::needless_pass_by_value, reason = "arguments come so from Python")]

mod command;
mod config;
mod errors;
mod files;
mod images;
mod job;
mod network;
mod pool;
mod results;
mod sandbox;
mod snapshot;
mod sys;
mod values;
mod wait;

use pyo3::prelude::*;

#[pymodule]
mod _adl {
    #[pymodule_export]
    use crate::config::Config;
    #[pymodule_export]
    use crate::files::{FileReader, FileWriter, Files};
    #[pymodule_export]
    use crate::images::Images;
    #[pymodule_export]
    use crate::job::{Child, Cursor, Job, Pending};
    #[pymodule_export]
    use crate::network::{Ends, Port};
    #[pymodule_export]
    use crate::pool::Pool;
    #[pymodule_export]
    use crate::sandbox::Sandbox;
    #[pymodule_export]
    use crate::snapshot::{
        Snapshot, blanks_ready, collect_garbage, examine, finish_removals, keep_blanks,
        list_snapshots, metrics, open_snapshot, pending_removals, remove_snapshot, wait_at_exit,
    };
    #[pymodule_export]
    use crate::values::seconds;

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
