//! The cache's layout, which all programs of the hub share:
//!
//! ```text
//! models--ORG--NAME/refs/REVISION         the commit that a branch or tag was last seen at
//! models--ORG--NAME/snapshots/COMMIT/FILE a link to
//! models--ORG--NAME/blobs/ETAG            the file, or ETAG.incomplete while it is on its way
//! .locks/models--ORG--NAME/ETAG.lock      held by whoever downloads it
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{HubConfig, Repo};
use crate::error::{AtPath, Result};

/// One model's part of the cache.
#[derive(Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    folder: String,
    revision: String,
}

impl RepoCache {
    pub(super) fn new(root: &Path, repo: &Repo) -> RepoCache {
        let folder = format!("models--{}", repo.name.replace('/', "--"));
        RepoCache { root: root.to_path_buf(), folder, revision: repo.revision.clone() }
    }

    fn repo(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    /// A file of the revision, if it is in the cache.
    pub(super) fn find(&self, name: &str) -> Option<PathBuf> {
        let known = fs::read_to_string(self.repo().join("refs").join(&self.revision)).ok();
        let commit = known.as_deref().map_or(self.revision.as_str(), str::trim);
        let path = super::is_plain(commit).then(|| self.snapshot(commit).join(name))?;
        path.is_file().then_some(path)
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo().join("snapshots").join(commit)
    }

    /// Where a file's bytes are, or come to be.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.repo().join("blobs").join(etag)
    }

    /// Makes the folders, so that a cache without permission says so before the first download.
    pub(super) fn make(&self) -> Result<()> {
        for folder in [self.repo().join("blobs"), self.root.join(".locks").join(&self.folder)] {
            fs::create_dir_all(&folder).at(&folder)?;
        }
        Ok(())
    }

    /// Waits until nobody else downloads this file; the lock ends with the file that is returned.
    pub(super) fn lock(&self, etag: &str, config: &HubConfig) -> Result<File> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        let file = File::options().create(true).append(true).open(&path).at(&path)?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(file); // A file system without locks: two programs may do work twice.
                }
                Err(TryLockError::Error(error)) => return Err(error).at(&path),
                Err(TryLockError::WouldBlock) => {}
            }
            if !told {
                config.say("another program downloads this file; waiting for it");
                told = true;
            }
            config.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Puts a finished blob into the snapshot of `commit`, and notes what the revision means.
    pub(super) fn link(&self, name: &str, etag: &str, commit: &str) -> Result<PathBuf> {
        let folder = self.snapshot(commit);
        fs::create_dir_all(&folder).at(&folder)?;
        let path = folder.join(name);
        if !path.is_file() {
            // A link that leads nowhere is in the way.
            let _ = fs::remove_file(&path);
            link_or_move(&self.blob(etag), &Path::new("../../blobs").join(etag), &path)
                .at(&path)?;
        }
        if commit != self.revision {
            let reference = self.repo().join("refs").join(&self.revision);
            let parent = reference.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(parent).at(parent)?;
            super::files::write_atomically(&reference, |w| w.write_all(commit.as_bytes()))?;
        }
        Ok(path)
    }
}

#[cfg(unix)]
fn link_or_move(_blob: &Path, relative: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Where links need rights that users do not have, the file itself goes there, as Python's hub does it.
#[cfg(not(unix))]
fn link_or_move(blob: &Path, _relative: &Path, path: &Path) -> io::Result<()> {
    fs::rename(blob, path)
}
