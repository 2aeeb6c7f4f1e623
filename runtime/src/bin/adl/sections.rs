//! What help and manual pages say beneath the options: one table for both.

use clap::builder::Resettable;
use clap_mangen::roff::{Roff, bold, roman};

/// A part of help, with a heading.
struct Section {
    title: &'static str,
    body: Body,
}

enum Body {
    /// Paragraphs.
    Text(&'static [&'static str]),
    /// What is named, and what there is to know of it.
    List(&'static [(&'static str, &'static str)]),
    /// What is done, and the command lines that do it.
    Examples(&'static [(&'static str, &'static str)]),
}

const EXIT_STATUS: Section = Section {
    title: "Exit status",
    body: Body::List(&[
        ("that of COMMAND", "if it exited"),
        ("128 + N", "if signal N ended it; 137 also: out of memory, --output-limit"),
        ("124", "if its time was up: --timeout, --cpu-time or --idle-timeout"),
        ("125", "for an error of adl's own"),
        ("126", "if COMMAND can't be run"),
        ("127", "if there is no such COMMAND"),
    ]),
};

const OWN_EXIT_STATUS: Section = Section {
    title: "Exit status",
    body: Body::Text(&[
        "125 for an error of adl's own; of `run` and `shell` else the status of the command, see \
         `adl run --help`; of `doctor` 1 where no sandbox can be made.",
    ]),
};

const ENVIRONMENT: Section = Section {
    title: "Environment",
    body: Body::List(&[
        ("ADL_STATE_DIR", "as --state-dir, which comes first"),
        ("XDG_STATE_HOME, HOME", "where an ordinary user's files are, see below"),
        ("TERM", "with --tty, that of the command"),
    ]),
};

const FILES: Section = Section {
    title: "Files",
    body: Body::List(&[
        ("/var/lib/adl", "what is kept, of root"),
        ("$XDG_STATE_HOME/adl", "of an ordinary user; without it, the next"),
        ("~/.local/state/adl", "where HOME can be written, else the next"),
        ("/tmp/adl-UID", "of an ordinary user without a home"),
        ("/run/adl", "which ids are in use, of root"),
    ]),
};

const RESULT: Section = Section {
    title: "Result",
    body: Body::Text(&[
        "--result writes one line, an object with the keys: reason (exited, signaled, timed_out, \
         cpu_timed_out, idle, output_limit, out_of_memory, sandbox_died, not_started or error); \
         exit_code and signal of COMMAND; adl_exit_code; stage and errno, where it was not started; \
         error, what adl says of an error; wall_time_us, user_time_us, system_time_us; \
         max_resident_bytes, of the largest process; with a cgroup, as --memory, --pids-limit, \
         --cpus, --cpu-time and --stats make one, cpu_time_us, memory_peak_bytes, oom_kills, \
         processes_peak and processes_refused of all together; survivors, whether something could \
         not be killed; output_truncated, whether some output was lost or too much.",
        "What is not known is null. FILE is empty until adl ends, and where adl was killed. Where \
         the options themselves are wrong, or FILE is refused, nothing is written.",
    ]),
};

const SIGNALS: Section = Section {
    title: "Signals and the end",
    body: Body::Text(&[
        "SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1 and SIGUSR2 are passed on to the process group \
         of COMMAND, SIGTERM as the signal that the image says for it. At its end adl removes what was written in the sandbox, for up to ten seconds; \
         `adl gc` removes the rest.",
    ]),
};

const SHELL: Section = Section {
    title: "The shell",
    body: Body::Text(&[
        "It is bash if the image has it, else sh. Where stdin is a terminal, `adl shell` is like \
         `adl run -it`; else the shell reads its commands from there, and --tty fails.",
    ]),
};

const COPIES: Section =
    Section { title: "More about copies", body: Body::Text(&[crate::copies::HELP]) };

const PATHS: Section =
    Section { title: "Paths of this machine", body: Body::Text(&[crate::options::HELP]) };

const EXAMPLES: Section = Section {
    title: "Examples",
    body: Body::Examples(&[
        ("Run a program of this machine", "adl run -- echo hello"),
        ("Work on a terminal", "adl run -it -- bash"),
        ("See this directory, and not change it", "adl run -v \"$PWD:/src:ro\" -w /src -- ls -l"),
        (
            "Judge a program",
            "adl run --timeout 10 --output-limit 1m --result result.json -- \\\n      sort < input.txt",
        ),
        (
            "Limit all of it together",
            "adl run --memory 256m --pids-limit 64 --cpus 1.5 -- \\\n      sort < input.txt",
        ),
        (
            "Copy in and out",
            "adl run --copy-in input.txt:/tmp/ --copy-out /tmp/sorted:. -- \\\n      sort -o \
             /tmp/sorted /tmp/input.txt",
        ),
        (
            "Keep what was written, and begin with it",
            "adl run --snapshot prepared -- touch /root/ready\nadl run --image snapshot:prepared -- \
             ls /root",
        ),
    ]),
};

/// What there is of a command, by its name: `""` is adl itself.
fn of(command: &str) -> &'static [Section] {
    match command {
        "" => &[OWN_EXIT_STATUS, ENVIRONMENT, FILES],
        "run" => &[EXIT_STATUS, SIGNALS, RESULT, COPIES, PATHS, ENVIRONMENT, FILES, EXAMPLES],
        "shell" => &[SHELL, EXIT_STATUS, SIGNALS, RESULT, COPIES, PATHS, ENVIRONMENT, FILES],
        _ => &[],
    }
}

/// The sections as help prints them.
pub(crate) fn help(command: &str) -> String {
    let sections = of(command).iter().map(|Section { title, body }| match body {
        Body::Text(paragraphs) => format!("{title}:\n{}", paragraphs.join("\n\n")),
        Body::List(entries) => {
            let width = entries.iter().map(|(name, _)| name.chars().count()).max();
            let width = width.unwrap_or_default();
            let line = |(name, about): &(&str, &str)| format!("\n  {name:<width$}  {about}");
            format!("{title}:{}", entries.iter().map(line).collect::<String>())
        }
        Body::Examples(examples) => {
            let one = |(about, lines): &(&str, &str)| {
                format!("\n  {about}:\n    {}", lines.replace("\nadl", "\n    adl"))
            };
            format!("{title}:{}", examples.iter().map(one).collect::<String>())
        }
    });
    sections.collect::<Vec<_>>().join("\n\n")
}

/// The sections of a manual page; `None` where the command has none.
pub(crate) fn page(command: &str) -> Option<Roff> {
    let sections = of(command);
    let mut roff = Roff::new();
    for Section { title, body } in sections {
        roff.control("SH", [&*title.to_uppercase()]);
        match body {
            Body::Text(paragraphs) => {
                for paragraph in *paragraphs {
                    roff.control("PP", []).text([roman(*paragraph)]);
                }
            }
            Body::List(entries) => {
                for (name, about) in *entries {
                    roff.control("TP", []).text([bold(*name)]).text([roman(*about)]);
                }
            }
            Body::Examples(examples) => {
                for (about, lines) in *examples {
                    roff.control("TP", []).text([roman(format!("{about}:"))]);
                    roff.control("nf", []);
                    lines.lines().for_each(|line| {
                        roff.text([roman(line)]);
                    });
                    roff.control("fi", []);
                }
            }
        }
    }
    (!sections.is_empty()).then_some(roff)
}

/// A command whose manual page is to have the sections in place of what help says.
pub(crate) fn without_help(command: clap::Command) -> clap::Command {
    command.after_help(Resettable::<clap::builder::StyledStr>::Reset)
}
