//! Blocks of rows and columns as a person writes them.

use crate::error::{Error, Result};

/// `-1,64`: rows and columns, −1 for all.
pub(crate) fn block_from_word(word: &str) -> Result<[isize; 2]> {
    let parts = word.split_once(',').and_then(|(rows, columns)| {
        Some([rows.trim().parse().ok()?, columns.trim().parse().ok()?])
    });
    parts.ok_or_else(|| {
        Error::usage(format!("{word:?} is no block; wanted ROWS,COLUMNS with -1 for all, as -1,64"))
    })
}
