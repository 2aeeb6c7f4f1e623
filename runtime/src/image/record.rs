//! What is known of an image, as it is written down.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::config::image::{ImageConfig, ImageSays};
use crate::error::{Error, Result};
use crate::image::bounds;
use crate::image::digest::Digest;
use crate::image::layer;
use crate::store::State;
use crate::store::subordinate::Subordinate;
use crate::sys::open::{DIRECTORY, Purpose, beneath};

/// Of another form of record, nothing can be made.
pub(super) const FORM: u32 = 1;

/// The directory of a layer.
#[derive(Debug)]
pub(crate) struct OpenedLayer {
    pub(crate) path: PathBuf,
    pub(crate) directory: OwnedFd,
}

/// What there is to know of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    form: u32,
    /// Of its manifest.
    pub(crate) digest: Digest,
    pub(crate) config_digest: Digest,
    /// The lowest first.
    pub(crate) layers: Vec<LayerRecord>,
    /// How many of them, the lowest, are hidden by the one above, whose top hides all.
    hidden: usize,
    /// A layer above them, with the working directory that they lack.
    pub(crate) above: Option<String>,
    pub(crate) says: ImageSays,
}

/// A layer. What is written down of one was seen: the bytes with the one digest are those of an
/// archive with the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// As it comes.
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Unpacked.
    pub(crate) diff_id: Digest,
}

impl Record {
    pub(crate) fn new(
        [digest, config_digest]: [Digest; 2],
        (layers, hidden): (Vec<LayerRecord>, usize),
        above: Option<String>,
        says: ImageSays,
    ) -> Self {
        Self { form: FORM, digest, config_digest, layers, hidden, above, says }
    }

    pub(super) fn parse(text: &[u8], digest: &Digest) -> io::Result<Self> {
        let record: Self = serde_json::from_slice(text)?;
        record.check(digest).map_err(invalid)?;
        Ok(record)
    }

    /// Refuses what is not as [`Record::new`] makes it.
    pub(super) fn check(&self, digest: &Digest) -> std::result::Result<(), &'static str> {
        if self.form != FORM {
            return Err("of another version of adl");
        }
        if self.digest != *digest {
            return Err("of another image");
        }
        let digests = self.layers.iter().map(|layer| &layer.diff_id);
        if bounds::check_count(digests).is_err() || self.hidden > self.layers.len() {
            return Err("more layers than there can be");
        }
        if bounds::check_sizes(self.layers.iter().map(|layer| layer.size), u64::MAX).is_err() {
            return Err("more bytes than there can be");
        }
        if self.above.as_ref().is_some_and(|name| *name != above_name(digest)) {
            return Err("a layer that is not its own");
        }
        Ok(())
    }

    /// Opens its layers that have owners of some ids, the topmost first; `None` if one is missing.
    /// Of those that come again, what is below has nothing to add.
    pub(crate) fn open_layers(
        &self,
        state: &State,
        ids: Option<Subordinate>,
    ) -> Result<Option<Vec<OpenedLayer>>> {
        let path = state.images()?;
        let images =
            fcntl::open(&path, DIRECTORY, Mode::empty()).map_err(Error::at("open", &path))?;
        let names = self.above.iter().cloned();
        let names = names.chain(self.diff_ids().into_iter().map(layer::name));
        let mut opened = Vec::new();
        for name in names.map(|name| layer::of_ids(&name, ids)) {
            let path = path.join(&name);
            let directory = match beneath(&images, name.as_str(), Purpose::Pass) {
                Ok(directory) => directory,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
                Err(errno) => return Err(Error::at("open image", &path)(errno)),
            };
            opened.push(OpenedLayer { path, directory });
        }
        Ok(Some(opened))
    }

    /// The layer with a digest, as it comes.
    pub(crate) fn layer(&self, digest: &Digest) -> Option<&LayerRecord> {
        self.layers.iter().find(|layer| layer.digest == *digest)
    }

    /// Its different layers that show, the topmost first.
    pub(crate) fn diff_ids(&self) -> Vec<&Digest> {
        let mut found: Vec<&Digest> = Vec::new();
        for layer in self.layers.iter().skip(self.hidden).rev() {
            if !found.contains(&&layer.diff_id) {
                found.push(&layer.diff_id);
            }
        }
        found
    }

    pub(crate) fn config(&self) -> &ImageConfig {
        &self.says.config
    }
}

/// The name of the layer above those of an image.
pub(crate) fn above_name(image: &Digest) -> String {
    format!("layer-above-{}", image.file_name())
}

pub(super) fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
