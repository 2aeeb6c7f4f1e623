//! A bounded hash table by device and inode, to know a file again by another name.

use alloc::vec::Vec;

/// The most files that are remembered: what the heap has room for.
const MOST: usize = 128 << 10;

/// A hash table with a bound, a third of the size of the standard one.
pub(super) struct Table<V> {
    /// A power of two of places, at most half of them taken.
    places: Vec<Option<((u64, u64), V)>>,
    taken: usize,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { places: Vec::new(), taken: 0 }
    }
}

impl<V: Copy> Table<V> {
    pub(super) fn get(&self, file: (u64, u64)) -> Option<V> {
        let (_, value) = (*self.places.get(self.place_of(file))?)?;
        Some(value)
    }

    /// Remembers something of a file of which nothing is known; `false` if there is no room.
    pub(super) fn insert(&mut self, file: (u64, u64), value: V) -> bool {
        if self.taken >= MOST {
            return false;
        }
        if self.places.len() < 2 * (self.taken + 1) {
            self.grow();
        }
        self.put(file, value);
        self.taken += 1;
        true
    }

    fn put(&mut self, file: (u64, u64), value: V) {
        let place = self.place_of(file);
        if let Some(place) = self.places.get_mut(place) {
            *place = Some((file, value));
        }
    }

    /// Where a file is, or would be.
    fn place_of(&self, file: (u64, u64)) -> usize {
        let mask = self.places.len().wrapping_sub(1);
        let mixed = (file.1 ^ file.0.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut place = (mixed >> 32) as usize & mask;
        while let Some(Some((other, _))) = self.places.get(place)
            && *other != file
        {
            place = (place + 1) & mask;
        }
        place
    }

    fn grow(&mut self) {
        let length = (2 * self.places.len()).max(64);
        let places = core::iter::repeat_n(None, length).collect();
        for (file, value) in core::mem::replace(&mut self.places, places).into_iter().flatten() {
            self.put(file, value);
        }
    }
}
