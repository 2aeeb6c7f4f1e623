//! A walk through layers as if they were one tree.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};

use super::super::cursor::{DirCursor, list, sort};
use super::super::{Tally, Trail};
use super::layer_cursor::{Against, Found, LayerCursor};
use super::{ChangeForm, ChangeKind, OpenedStack};
use crate::error::{Error, Result};

/// The most names of directories that the walk is in, all layers together: what it has to
/// remember. Less in tests.
const MOST_AT_ONCE: usize = if cfg!(test) { 100_000 } else { 4 << 20 };
/// The most names that it looks at: a guest could make new ones ahead of it for ever.
const MOST_NAMES: usize = 64 << 20;

pub(super) enum Step {
    Item(Item),
    /// The end of a directory.
    Leave,
}

/// What was found under a name.
pub(super) struct Item {
    pub(super) name: CString,
    pub(super) what: What,
    /// `None` for a directory that is as in the image, though what is in it may not be.
    pub(super) change: Option<ChangeKind>,
    /// Whether something of the image, which is gone, would be seen if what was sent of the changed
    /// layers were laid over it: all in a directory, or else what the image has of this name.
    pub(super) shines: bool,
    /// Whether an opaque directory hides what the image has of this name, so that it has to be sent
    /// even if it is as it was.
    pub(super) is_covered: bool,
}

pub(super) enum What {
    /// Nothing, but the image had something.
    Gone,
    /// A directory, which the walk is in now.
    Directory(FileStat),
    /// Something else, in this layer of the directory that the walk is in.
    Other { layer: usize, stat: FileStat },
}

/// A directory that the walk is in.
struct Level {
    pile: usize,
    /// The layers that make it up, the topmost first.
    now: Vec<usize>,
    /// Those that made it up.
    before: Vec<usize>,
    /// Whether an opaque directory hides what the image has here.
    is_covered: bool,
    /// Whether a stack begins here, so that there is nothing above it in its layers.
    is_top: bool,
    /// The stacks that lie below.
    below: Vec<usize>,
    /// What has not been looked at yet, the first one last.
    names: Vec<CString>,
}

pub(super) struct Walk {
    piles: Vec<LayerCursor>,
    levels: Vec<Level>,
    /// The names that lead to the last level.
    trail: Trail,
    /// The names in all levels.
    at_once: usize,
    seen: usize,
    /// Names in `/etc` that are left out.
    own: Vec<&'static CStr>,
}

impl Walk {
    pub(super) fn new(stacks: &[OpenedStack<'_>], against: Against) -> Result<Self> {
        let piles: Result<Vec<_>> = stacks
            .iter()
            .map(|stack| {
                LayerCursor::new(stack, against)
                    .map_err(|error| at("open a layer", &stack.at, error))
            })
            .collect();
        let trail = Trail::default();
        let own = stacks.iter().flat_map(|stack| stack.own).copied().collect();
        Ok(Self { piles: piles?, levels: Vec::new(), trail, at_once: 0, seen: 0, own })
    }

    /// Enters the top, which has an empty name.
    pub(super) fn begin(&mut self) -> Result<Item> {
        let root = self.piles.iter().position(|pile| pile.at.is_empty());
        let root = root.ok_or_else(|| self.failed("find", c"", Errno::ENOENT))?;
        let below = (0..self.piles.len()).filter(|pile| *pile != root).collect();
        self.enter_pile(CString::default(), root, below)
    }

    /// The next thing that may have been changed, or that leads there; `None` after the end of the
    /// top.
    pub(super) fn next(&mut self) -> Result<Option<Step>> {
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.pop() else {
                self.leave()?;
                return Ok(Some(Step::Leave));
            };
            self.at_once = self.at_once.saturating_sub(1);
            if let Some(item) = self.look(name)? {
                return Ok(Some(Step::Item(item)));
            }
        }
        Ok(None)
    }

    /// The directory that the walk is in, in one of the layers.
    pub(super) fn layer(&self, layer: usize) -> BorrowedFd<'_> {
        let pile = self.levels.last().and_then(|level| self.piles.get(level.pile));
        let spot = pile.and_then(|pile| pile.layers.get(layer));
        spot.map_or(nix::fcntl::AT_FDCWD, AsFd::as_fd)
    }

    /// The directory that the walk is in, in the topmost layer that has it.
    pub(super) fn here(&self) -> BorrowedFd<'_> {
        let level = self.levels.last();
        let top = level.and_then(|level| level.now.first().or(level.before.first()));
        top.map_or(nix::fcntl::AT_FDCWD, |layer| self.layer(*layer))
    }

    /// The path inside of what [`Walk::next`] has just returned.
    pub(super) fn path(&self, item: &Item) -> PathBuf {
        match item.what {
            What::Directory(_) => self.absolute(c""),
            _ => self.absolute(&item.name),
        }
    }

    fn absolute(&self, name: &CStr) -> PathBuf {
        Path::new("/").join(self.trail.path(name))
    }

    fn failed(&self, operation: &'static str, name: &CStr, errno: Errno) -> Error {
        Error::File { operation, path: self.absolute(name), source: errno.into() }
    }

    fn look(&mut self, name: CString) -> Result<Option<Item>> {
        let depth = self.levels.len();
        let Some(level) = self.levels.last() else { return Ok(None) };
        let Some(pile) = self.piles.get(level.pile) else { return Ok(None) };
        let way = |below: usize| self.piles.get(below).map_or(&[][..], |pile| &pile.at);
        let mut below: Vec<usize> = level.below.clone();
        below.retain(|pile| way(*pile).get(depth - 1) == Some(&name));
        if let Some(place) = below.iter().position(|pile| way(*pile).len() == depth) {
            let pile = below.swap_remove(place);
            return self.enter_pile(name, pile, below).map(Some);
        }
        let (index, kind) = (level.pile, pile.kind);
        let found = |layers: &[usize]| {
            let found = pile.find(layers, &name);
            found.map_err(|(operation, errno)| self.failed(operation, &name, errno))
        };
        let now = found(&level.now)?;
        let before = found(&level.before)?;
        let is_covered = level.is_covered;
        let is_hidden = is_covered || kind == ChangeForm::WholeCopy;
        let change = pile.compare(&now, &before, is_hidden);
        let was_there = matches!(before, Found::Directory { .. } | Found::Other { .. });
        let shines = was_there && !is_covered;
        let (now, is_closed) = match (now, &before) {
            (Found::Directory { merged, is_closed }, _) => (merged, is_closed),
            // Not changed, but something that is not in the image's layers lies below.
            (Found::Nothing, Found::Directory { .. }) if !is_hidden && !below.is_empty() => {
                (Vec::new(), false)
            }
            _ if !below.is_empty() => return Err(self.failed("find", &name, Errno::ENOENT)),
            (Found::Other { layer, stat }, _) => {
                let what = What::Other { layer, stat };
                return Ok(change.map(|_| Item { name, what, change, shines, is_covered }));
            }
            _ => {
                let what = What::Gone;
                return Ok(change.map(|_| Item { name, what, change, shines, is_covered }));
            }
        };
        let before = match before {
            Found::Directory { merged, .. } => merged,
            _ => Vec::new(),
        };
        let Some(stat) = now.first().or(before.first()).map(|opened| opened.stat) else {
            return Ok(None);
        };
        // What is no directory of the image's is replaced by one in any case.
        let shines = shines && is_closed && !before.is_empty();
        Tally::depth(depth)?;
        let Some(pile) = self.piles.get_mut(index) else { return Ok(None) };
        let level = Level {
            pile: index,
            now: pile.enter(now),
            before: pile.enter(before),
            is_covered: is_covered || is_closed,
            is_top: false,
            below,
            names: Vec::new(),
        };
        self.trail.push(&name);
        self.push(level)?;
        Ok(Some(Item { name, what: What::Directory(stat), change, shines, is_covered }))
    }

    /// Goes to the top of a stack.
    fn enter_pile(&mut self, name: CString, index: usize, below: Vec<usize>) -> Result<Item> {
        let top = |layer: Option<&DirCursor>| layer.map(fstat).transpose();
        let pile =
            self.piles.get(index).ok_or_else(|| self.failed("find", &name, Errno::ENOENT))?;
        let stats = top(pile.layers.first())
            .and_then(|now| Ok((now, top(pile.layers.get(pile.now))?)))
            .map_err(|errno| self.failed("stat", &name, errno))?;
        let (now, before) = (0..pile.now, pile.now..pile.layers.len());
        let (Some(stat), before_stat) = stats else {
            return Err(self.failed("find", &name, Errno::ENOENT));
        };
        let change = match before_stat {
            None => Some(ChangeKind::Added),
            Some(before) => pile.is_other_directory(&stat, &before).then_some(ChangeKind::Modified),
        };
        let level = Level {
            pile: index,
            now: now.collect(),
            before: before.collect(),
            is_covered: false,
            is_top: true,
            below,
            names: Vec::new(),
        };
        if !self.levels.is_empty() {
            self.trail.push(&name);
        }
        self.push(level)?;
        Ok(Item { name, what: What::Directory(stat), change, shines: false, is_covered: false })
    }

    /// Adds a level, with the names that are to be looked at in it.
    fn push(&mut self, mut level: Level) -> Result<()> {
        let depth = self.levels.len();
        let Some(pile) = self.piles.get(level.pile) else { return Ok(()) };
        let lookup_before = level.is_covered || pile.kind == ChangeForm::WholeCopy;
        let before = level.before.iter().filter(|_| lookup_before);
        let limit = MOST_AT_ONCE.saturating_sub(self.at_once);
        for &layer in level.now.iter().chain(before) {
            let Some(spot) = pile.layers.get(layer) else { continue };
            match list(spot.as_fd(), &mut level.names, limit) {
                // It was removed after it was opened.
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(self.failed("list", c"", errno)),
            }
        }
        let below = level.below.iter().filter_map(|pile| self.piles.get(*pile)?.at.get(depth));
        level.names.extend(below.cloned());
        if level.names.len() > limit {
            let limit = MOST_AT_ONCE as u64;
            return Err(Error::TooLarge { what: "the number of files at once", limit });
        }
        self.seen = self.seen.saturating_add(level.names.len());
        if self.seen > MOST_NAMES {
            let limit = MOST_NAMES as u64;
            return Err(Error::TooLarge { what: "the number of files", limit });
        }
        if depth == 1 && !self.own.is_empty() && self.trail.path(c"") == Path::new("etc") {
            level.names.retain(|name| !self.own.contains(&name.as_c_str()));
        }
        sort(&mut level.names);
        self.at_once += level.names.len();
        self.levels.push(level);
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        let pile = self.piles.get_mut(level.pile).filter(|_| !level.is_top);
        let mut left = Ok(());
        if let Some(pile) = pile {
            for layer in level.now.into_iter().chain(level.before) {
                if let (Some(spot), Ok(())) = (pile.layers.get_mut(layer), &left) {
                    left = spot.leave().map(drop);
                }
            }
        }
        left.map_err(|error| at("open the directory above", &self.absolute(c""), error))?;
        self.trail.pop();
        Ok(())
    }
}

fn at(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { operation, path: Path::new("/").join(path), source }
}
