//! A file mapped into memory, read-only.

use std::fs::File;
use std::io;

/// The bytes of a file. Pages come in when they are first read.
#[derive(Debug)]
pub struct Mapped {
    map: memmap2::Mmap,
}

impl Mapped {
    /// Maps the whole of `file`, which must be a regular file.
    pub fn open(file: &File) -> io::Result<Mapped> {
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the mapping is private and read-only. A model file that another program shortens
        // while it is mapped makes the reader fault; as with every mapped model format, files
        // are replaced (renamed over), never rewritten in place, and we do so ourselves.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Mapped { map })
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the kernel that the range will not be needed again soon, so that a pass over a
    /// large file does not count it all as resident.
    pub fn done_with(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        {
            // Advice only: an error changes nothing but how soon the pages go.
            // SAFETY: the mapping is of a file and never written, so that dropped pages are read
            // again from the file with the same content.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len)
            };
        }
    }
}
