//! What is known of an image, as it is written down.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::image::{ImageConfig, ImageSays};
use crate::error::Result;
use crate::image::bounds;
use crate::image::digest::Digest;
use crate::image::layer;
use crate::store::State;
use crate::store::subordinate::Subordinate;

/// Of another form of record, nothing can be made.
pub(super) const FORM: u32 = 1;

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

    /// Where its layers lie that have owners of some ids, the topmost first; `None` if one is
    /// missing. Of those that come again, what is below has nothing to add.
    pub(crate) fn places(
        &self,
        state: &State,
        ids: Option<Subordinate>,
    ) -> Result<Option<Vec<PathBuf>>> {
        let mut places = Vec::new();
        if let Some(above) = &self.above {
            let place = state.images()?.join(layer::of_ids(above, ids));
            if !place.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                return Ok(None);
            }
            places.push(place);
        }
        for diff_id in self.diff_ids() {
            match layer::find(state, diff_id, ids) {
                Some(place) => places.push(place),
                None => return Ok(None),
            }
        }
        Ok(Some(places))
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
