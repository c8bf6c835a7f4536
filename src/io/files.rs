//! Reading whole small files, mapping large ones, and writing so that no half-written file is left.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aolab_kernels::mmap::Mapped;

use crate::error::{AtPath, Error, Result};
use crate::tensor::MappedBytes;

/// Maps a regular file. Folders, pipes and devices are refused before they are opened.
pub(crate) fn map(path: &Path) -> Result<MappedBytes> {
    let found = fs::metadata(path).at(path)?;
    if !found.is_file() {
        let got = if found.is_dir() { "a folder" } else { "a pipe or a device" };
        return Err(Error::file(path, format!("wanted a file, got {got}")));
    }
    let mapped = Arc::new(Mapped::open(&File::open(path).at(path)?).at(path)?);
    let len = mapped.bytes().len();
    MappedBytes::new(mapped, 0..len)
        .ok_or_else(|| Error::file(path, "the file became shorter while it was opened"))
}

/// Reads a file of at most `limit` bytes; a longer one is not what it claims to be.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let found = fs::metadata(path).at(path)?;
    if !found.is_file() {
        return Err(Error::file(path, "wanted a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path).at(path)?.take(limit + 1).read_to_end(&mut bytes).at(path)?;
    if bytes.len() as u64 > limit {
        let mib = limit >> 20;
        return Err(Error::file(
            path,
            format!("the file is larger than {mib} MiB, the most allowed"),
        ));
    }
    Ok(bytes)
}

/// Reads a file if there is one.
pub(crate) fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    if path.try_exists().at(path)? { read(path, limit).map(Some) } else { Ok(None) }
}

/// Reads JSON of at most 16 MiB: a configuration, an index.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value> {
    let bytes = read(path, 16 << 20)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::file(path, format!("not valid JSON: {error}")))
}

/// A name beside `path` that nothing else uses: `.model.safetensors.4711.partial`.
pub(crate) fn partial_name(path: &Path) -> Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::file(path, "wanted a path that ends with a name"))?
        .to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{}.partial", std::process::id())))
}

/// Writes `path` through a temporary file in the same folder, which is renamed once it is on disk.
/// When `write` or the disk fails, the old file stays and the temporary one goes.
pub(crate) fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let partial = partial_name(path)?;
    let written = write_new(&partial, write).at(path);
    let renamed = written.and_then(|()| fs::rename(&partial, path).at(path));
    if renamed.is_err() {
        // The first error is the one to report; that the rest may stay behind changes nothing in it.
        let _ = fs::remove_file(&partial);
    }
    renamed
}

/// [`write_atomically`] that gives up with [`Error::Cancelled`] when `stop` is set before the file has its name.
pub(crate) fn write_unless(
    stop: Option<&AtomicBool>,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let written = write_atomically(path, |out| {
        write(&mut Stoppable { out, stop })?;
        out.flush()?;
        if is_set(stop) { Err(stopped()) } else { Ok(()) }
    });
    if is_set(stop) && written.is_err() { Err(Error::Cancelled) } else { written }
}

pub(crate) fn is_set(stop: Option<&AtomicBool>) -> bool {
    stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
}

fn stopped() -> io::Error {
    io::Error::other("stopped")
}

/// Refuses to go on when somebody wants to stop.
pub(crate) struct Stoppable<'a> {
    pub(crate) out: &'a mut dyn Write,
    pub(crate) stop: Option<&'a AtomicBool>,
}

/// A slow disk takes so many bytes within a few milliseconds.
const PIECE: usize = 4 << 20;

impl Write for Stoppable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if is_set(self.stop) {
            return Err(stopped());
        }
        self.out.write(&bytes[..bytes.len().min(PIECE)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a file that must not exist yet and waits until it is on disk.
pub(crate) fn write_new(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    write(&mut writer)?;
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("x.bin");
        write_atomically(&path, |w| w.write_all(b"first")).expect("a plain write");
        let error = write_atomically(&path, |w| {
            w.write_all(b"second")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        let words = error.expect_err("the disk is full").to_string();
        assert!(words.contains("x.bin") && words.contains("storage"), "{words}");
        assert_eq!(fs::read(&path).expect("the old file"), b"first");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn a_write_that_is_stopped_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("x.bin");
        let stop = AtomicBool::new(false);
        write_unless(Some(&stop), &path, |w| w.write_all(b"first")).expect("nobody stops");
        let result = write_unless(Some(&stop), &path, |w| {
            w.write_all(b"second")?;
            stop.store(true, Ordering::Relaxed);
            w.write_all(b"third")
        });
        assert!(result.is_err_and(|error| error.is_cancelled()));
        let late = write_unless(Some(&stop), &path, |_| Ok(()));
        assert!(late.is_err_and(|error| error.is_cancelled()), "set before the file had its name");
        assert_eq!(fs::read(&path).expect("the old file"), b"first");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn folders_and_missing_files_are_errors_in_words() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let error = map(dir.path()).expect_err("a folder is not a file").to_string();
        assert!(error.contains("got a folder"), "{error}");
        assert!(map(&dir.path().join("none")).is_err());
        assert!(write_atomically(&dir.path().join("no/such/x"), |_| Ok(())).is_err());
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("long");
        fs::write(&path, [b'x'; 100]).expect("a small file");
        assert!(read(&path, 99).is_err());
        assert_eq!(read(&path, 100).expect("just fits").len(), 100);
        assert_eq!(read_if_there(&dir.path().join("none"), 9).expect("no error"), None);
    }
}
