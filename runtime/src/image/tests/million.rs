//! Very many.
