//! How far an image is on its way: bars on a terminal, lines elsewhere.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use adl_runtime::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output::say;

/// Where progress is shown.
pub(crate) enum Shown {
    Bars(Bars),
    Lines(Lines),
}

impl Shown {
    pub(crate) fn new() -> Self {
        match io::stderr().is_terminal() {
            true => Self::Bars(Bars::default()),
            false => Self::Lines(Lines::default()),
        }
    }

    pub(crate) fn tell(&self, progress: &Progress) {
        match self {
            Self::Bars(bars) => bars.tell(progress),
            Self::Lines(lines) => lines.tell(progress),
        }
    }
}

/// One bar for what is fetched, and one for each layer that is unpacked, on stderr.
#[derive(Default)]
pub(crate) struct Bars {
    all: MultiProgress,
    current: RefCell<Option<((u8, usize), ProgressBar)>>,
}

impl Bars {
    fn tell(&self, progress: &Progress) {
        if let Progress::NotKept { .. } = progress {
            // Where it can't be written, no one reads it.
            let _ = self.all.println(progress.to_string());
        }
        let (name, bytes, of) = match *progress {
            Progress::Fetching { layers, of_layers, bytes, of } => {
                (format!("fetching, {layers} of {of_layers} layers"), bytes, of)
            }
            Progress::Unpacking { layer, layers, bytes, of } => {
                (format!("layer {layer} of {layers}"), bytes, of)
            }
            _ => return,
        };
        let key = match progress {
            Progress::Unpacking { layer, .. } => (1, *layer),
            _ => (0, 0),
        };
        let mut current = self.current.borrow_mut();
        if current.as_ref().is_none_or(|(other, _)| *other != key) {
            finish(current.take());
            *current = Some((key, self.all.add(bar(of))));
        }
        if let Some((_, bar)) = &*current {
            bar.set_message(name);
            bar.set_position(bytes);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        finish(self.current.take());
    }
}

/// A bar stays as it is when another comes.
fn finish(bar: Option<((u8, usize), ProgressBar)>) {
    if let Some((_, bar)) = bar {
        bar.abandon();
    }
}

fn bar(of: u64) -> ProgressBar {
    const FORM: &str = "{msg:28} [{wide_bar:.}] {bytes:>10} of {total_bytes:10}";
    let bar = ProgressBar::new(of);
    match ProgressStyle::with_template(FORM) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// Tells of progress in lines, not too often.
#[derive(Default)]
pub(crate) struct Lines {
    last: Cell<Option<(Instant, Progress)>>,
}

/// How often something is told that goes on.
const BETWEEN_LINES: Duration = Duration::from_secs(2);

impl Lines {
    fn tell(&self, progress: &Progress) {
        let is_next = match self.last.get() {
            None => true,
            Some((at, last)) => place(&last) != place(progress) || at.elapsed() >= BETWEEN_LINES,
        };
        if is_next {
            say(progress);
            self.last.set(Some((Instant::now(), *progress)));
        }
    }
}

/// What there is a line of in any case.
fn place(progress: &Progress) -> (u8, usize) {
    match progress {
        Progress::Fetching { layers, .. } => (0, *layers),
        Progress::Unpacking { layer, .. } => (1, *layer),
        Progress::NotKept { layer, .. } => (2, *layer),
        _ => (3, 0),
    }
}
