//! `adl image`: fetches, imports, lists and removes images in layers.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use adl_runtime::{Config, Error, ImageCaps, ImageInfo, Images, MadeImage, Progress, PullOptions};
use clap::{Args, Subcommand, ValueEnum, ValueHint};

use crate::output::{print, say};
use crate::progress::Shown;
use crate::values::{CliResult, duration, number, size};

const HELP: &str = "\
`adl run IMAGE` fetches an image that is not there. What is not used is removed by `adl image \
prune`; an image that a sandbox or a snapshot lies on stays.";

#[derive(Subcommand)]
#[command(arg_required_else_help = false)]
#[command(after_help = HELP)]
pub(crate) enum Commands {
    /// Fetch an image from its registry by skopeo, podman or docker, also where it is there
    Pull {
        /// The registry may have no certificate that is known, or no encryption
        #[arg(long)]
        insecure: bool,
        /// The longest that it may take; an hour by default
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        timeout: Option<Duration>,
        #[command(flatten)]
        unpack: UnpackOptions,
        /// Its name, as debian:12 or registry:5000/team/app
        name: String,
    },
    /// Unpack an image that lies here: what `docker save` writes, or an OCI image layout, as a
    /// directory or a tar archive
    Import {
        /// Which one, where several are in it
        #[arg(long, value_name = "NAME")]
        which: Option<String>,
        /// The longest that it may take; an hour by default
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        timeout: Option<Duration>,
        #[command(flatten)]
        unpack: UnpackOptions,
        /// The file or directory
        #[arg(value_hint = ValueHint::AnyPath)]
        path: PathBuf,
        /// The name that it gets; by default its own
        name: Option<String>,
    },
    /// List the images: name, digest, size as they came, last use; then what was made of the host,
    /// of archives and copies: name, -, size on disk, last use
    Ls,
    /// Print what is known of an image, as JSON
    Inspect {
        /// Its name, or digits that its digest begins with
        name: String,
    },
    /// Remove images, or of one with several names that name
    Rm {
        /// Their names, or digits that their digests begin with
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Remove images, and what was made of the host, of archives and copies, that were not used for
    /// some time, and what is left of interrupted work
    Prune {
        /// How long: 12h, or as days, 7d
        #[arg(long, value_name = "DURATION", value_parser = long_time)]
        unused_for: Duration,
    },
}

/// How layers are unpacked, and how much each may have.
#[derive(Args)]
pub(crate) struct UnpackOptions {
    /// Unpack for sandboxes with so many user and group ids (`adl run --ids`), which an ordinary
    /// user has from /etc/subuid and /etc/subgid: files keep their owners. Without, all are the
    /// user's
    #[arg(long, value_name = "NUMBER", value_parser = number::<u32>)]
    ids: Option<u32>,
    /// The most bytes that a layer may have, unpacked; 64g by default
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// The most files and directories that a layer may have; 5000000 by default
    #[arg(long, value_name = "NUMBER", value_parser = number::<u64>)]
    max_files: Option<u64>,
    /// The most directories within one another; 1024 by default
    #[arg(long, value_name = "NUMBER", value_parser = number::<u64>)]
    max_depth: Option<u64>,
    /// The most bytes that one compressed byte of a layer may become; 1000 by default
    #[arg(long, value_name = "NUMBER", value_parser = number::<u64>)]
    max_ratio: Option<u64>,
}

impl UnpackOptions {
    fn caps(&self) -> ImageCaps {
        let usual = ImageCaps::default();
        ImageCaps {
            size: self.max_size.unwrap_or(usual.size),
            entries: self.max_files.unwrap_or(usual.entries),
            depth: self.max_depth.unwrap_or(usual.depth),
            ratio: self.max_ratio.unwrap_or(usual.ratio),
        }
    }
}

pub(crate) fn main(command: &Commands, state: Option<&Path>) -> CliResult<ExitCode> {
    let images = Images::open(state)?;
    match command {
        Commands::Pull { insecure, timeout, unpack, name } => {
            let shown = Shown::new();
            let tell = |progress: &Progress| shown.tell(progress);
            let mut options = PullOptions { progress: Some(&tell), ..PullOptions::default() };
            options.insecure = *insecure;
            (options.caps, options.ids) = (unpack.caps(), unpack.ids);
            options.timeout = timeout.unwrap_or(options.timeout);
            let info = images.pull(name, &options)?;
            print(format!("{}\n", info.digest))?;
        }
        Commands::Import { which, timeout, unpack, path, name } => {
            let shown = Shown::new();
            let tell = |progress: &Progress| shown.tell(progress);
            let mut options = PullOptions { progress: Some(&tell), ..PullOptions::default() };
            options.timeout = timeout.unwrap_or(options.timeout);
            (options.caps, options.ids) = (unpack.caps(), unpack.ids);
            let info =
                images.import(path.as_path(), which.as_deref(), name.as_deref(), &options)?;
            print(info.names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
        }
        Commands::Ls => return list(&images),
        Commands::Inspect { name } => print(inspect(&images, name)?)?,
        Commands::Rm { names } => {
            for name in names {
                images.remove(name)?;
            }
        }
        Commands::Prune { unused_for } => {
            let lines = |removed: &[String]| {
                print(removed.iter().map(|name| format!("{name}\n")).collect::<String>())
            };
            match images.prune(*unused_for) {
                Err(Error::Uncollected { removed, errors }) => {
                    lines(&removed)?;
                    return tell_of(&errors);
                }
                removed => lines(&removed?)?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// When an image that a command is to run in is fetched.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    /// Where it is there, too: its name may stand for another by now.
    Always,
    /// Where it is not there.
    Missing,
    /// Never.
    Never,
}

/// Fetches an image that a command is to run in, if that is wanted.
pub(crate) fn fetch(
    name: &str,
    pull: Pull,
    timeout: Option<Duration>,
    config: &Config,
) -> CliResult<()> {
    let images = Images::open(config.state_directory.as_deref())?;
    let shown = Shown::new();
    let tell = |progress: &Progress| shown.tell(progress);
    let mut options = PullOptions { progress: Some(&tell), ..PullOptions::default() };
    options.ids = config.ids;
    options.timeout = timeout.unwrap_or(options.timeout);
    match pull {
        Pull::Always => images.pull(name, &options).map(drop).map_err(late)?,
        Pull::Missing => images.pull_if_missing(name, &options).map_err(late)?,
        Pull::Never if images.is_there(name, config.ids)? => {}
        Pull::Never => {
            let why = "and --pull never fetches none: `adl image pull` does";
            return Err(format!("there is no image {name} in the state directory, {why}").into());
        }
    }
    Ok(())
}

/// Says how an image gets more time.
fn late(error: Error) -> Box<dyn std::error::Error> {
    match error {
        late @ Error::TimedOut { .. } => {
            format!("{late}; --pull-timeout says how long it may take").into()
        }
        other => other.into(),
    }
}

/// Says what else may have been meant by a first word for which there is no image.
pub(crate) fn no_program(
    name: &str,
    words: &[OsString],
    error: Box<dyn std::error::Error>,
) -> Box<dyn std::error::Error> {
    let is_no_image = matches!(
        error.downcast_ref(),
        Some(Error::Pull { .. } | Error::Invalid { .. } | Error::Unsupported { .. })
    );
    if !is_no_image {
        return error;
    }
    let mut text = error.to_string();
    if Path::new(name).exists() {
        let _ = write!(text, "; what is called so in this directory is named by ./{name}");
    }
    let _ = write!(text, "; a program of this machine is run by `adl run -- {name}");
    for word in words.iter().take(5) {
        let _ = write!(text, " {}", word.display());
    }
    text.push('`');
    text.into()
}

/// How many digits of a digest are shown.
const DIGITS: usize = 12;

/// Prints what there is. What can't be read holds up nothing.
fn list(images: &Images) -> CliResult<ExitCode> {
    let mut lines = String::new();
    let mut errors = Vec::new();
    for info in images.list()? {
        match info {
            Ok(info) => lines.push_str(&line(&info)),
            Err(error) => errors.push(error),
        }
    }
    for MadeImage { name, size, last_used, .. } in images.made()? {
        let used = last_used.map_or("never".to_owned(), ago);
        let _ = writeln!(lines, "{name} - {:.1}MiB {used}", mebibytes(size));
    }
    print(lines)?;
    tell_of(&errors)
}

/// Says what was wrong with some, and that it was.
fn tell_of(errors: &[Error]) -> CliResult<ExitCode> {
    errors.iter().for_each(|error| say(crate::text_of(error)));
    Ok(ExitCode::from(if errors.is_empty() { 0 } else { crate::OWN_ERROR }))
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn line(info: &ImageInfo) -> String {
    let digits = info.digest.split(':').next_back().unwrap_or_default();
    let digits: String = digits.chars().take(DIGITS).collect();
    let size = mebibytes(info.size);
    let used = info.last_used.map_or("never".to_owned(), ago);
    let names = match info.names.is_empty() {
        true => &["<none>".to_owned()][..],
        false => &info.names,
    };
    names.iter().map(|name| format!("{name} {digits} {size:.1}MiB {used}\n")).collect()
}

fn ago(time: SystemTime) -> String {
    let seconds = time.elapsed().unwrap_or_default().as_secs();
    let (number, unit) = match seconds {
        0..60 => return "now".to_owned(),
        60..3600 => (seconds / 60, 'm'),
        3600..86_400 => (seconds / 3600, 'h'),
        _ => (seconds / 86_400, 'd'),
    };
    format!("{number}{unit}")
}

fn inspect(images: &Images, name: &str) -> CliResult<String> {
    let info = images.get(name)?;
    let [manifest, config] = images.documents(name)?;
    let json = |text: &str| json_string(text);
    let list =
        |values: &[String]| values.iter().map(|value| json(value)).collect::<Vec<_>>().join(",");
    let used = info.last_used.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let used = used.map_or("null".to_owned(), |time| time.as_secs().to_string());
    // Both were read as JSON before they came to be here.
    Ok(format!(
        "{{\"names\":[{}],\"digest\":{},\"layers\":[{}],\"size\":{},\"lastUsed\":{used},\
         \"manifest\":{},\"config\":{}}}\n",
        list(&info.names),
        json(&info.digest),
        list(&info.layers),
        info.size,
        shown(&manifest),
        shown(&config),
    ))
}

/// A document as it came, but for what a terminal would obey: in JSON, only strings may have such.
fn shown(json: &[u8]) -> String {
    let mut shown = String::new();
    for c in String::from_utf8_lossy(json).chars() {
        match c {
            '\n' | '\t' | '\r' => shown.push(c),
            c if c.is_control() => _ = write!(shown, "\\u{:04x}", u32::from(c)),
            c => shown.push(c),
        }
    }
    shown
}

fn json_string(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c.is_control() => _ = write!(json, "\\u{:04x}", u32::from(c)),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

/// Reads a length of time in which there may be days, and which may be none.
fn long_time(text: &str) -> Result<Duration, &'static str> {
    const DAY: u64 = 86_400;
    if let Some(days) = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok()) {
        return days.checked_mul(DAY).map(Duration::from_secs).ok_or("more than there can be");
    }
    if text == "0" { Ok(Duration::ZERO) } else { duration(text) }
}
