//! Compiled kernels on disk.
//!
//! A file's name is the hash of the source, the flags, the compiler's version and the architecture: whatever changes, the name
//! changes. Files are written under another name and renamed, so that a reader never sees half of one.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A folder of CUBINs. Its files may be deleted at any time.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// One compiled kernel file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// `sm_90a-few_tokens-0123456789abcdef0123456789abcdef.cubin`
    pub name: String,
    /// Its size.
    pub nbytes: u64,
}

impl Cache {
    /// A cache in `folder`, which is made when the first kernel is stored.
    pub fn new(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: folder.into() }
    }

    /// Where it lies.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// The name under which what `parts` describe is kept.
    pub(super) fn name(label: &str, arch: &str, parts: &[&str]) -> String {
        // Two FNV-1a hashes with different starts: 128 bits, enough that two sources never meet by chance.
        let (mut a, mut b) = (0xcbf2_9ce4_8422_2325_u64, 0x6c62_272e_07bb_0142_u64);
        for part in parts.iter().chain([&env!("CARGO_PKG_VERSION")]) {
            // A part ends with a byte that no text holds, so that moving text between parts changes the hash.
            for byte in part.bytes().chain([0xff]) {
                a = (a ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
                b = (b ^ u64::from(byte).rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                b ^= b >> 29;
            }
        }
        format!("{arch}-{label}-{a:016x}{b:016x}.cubin")
    }

    /// The stored code; `None` where there is none or it cannot be read.
    pub(super) fn load(&self, name: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.folder.join(name)).ok()?;
        bytes.starts_with(b"\x7fELF").then_some(bytes)
    }

    /// Stores code. A cache that cannot be written is only slower.
    pub(super) fn store(&self, name: &str, cubin: &[u8]) {
        let unique = format!(".{name}.{}", std::process::id());
        let (part, whole) = (self.folder.join(unique), self.folder.join(name));
        let written = fs::create_dir_all(&self.folder)
            .and_then(|()| fs::write(&part, cubin))
            .and_then(|()| fs::rename(&part, &whole));
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
    }

    /// What is stored, sorted by name; nothing where there is no folder.
    pub fn entries(&self) -> io::Result<Vec<CacheEntry>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".cubin") && !name.starts_with('.') {
                all.push(CacheEntry { name, nbytes: entry.metadata()?.len() });
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Deletes the compiled kernels, and nothing else that may lie there; says what was deleted.
    pub fn clear(&self) -> io::Result<Vec<CacheEntry>> {
        let entries = self.entries()?;
        for entry in &entries {
            fs::remove_file(self.folder.join(&entry.name))?;
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_comes_back_and_anything_else_is_no_hit() {
        let folder = std::env::temp_dir().join(format!("aolab-cache-{}", std::process::id()));
        let cache = Cache::new(&folder);
        assert!(cache.entries().expect("no folder is no error").is_empty());
        let name = Cache::name("norm", "sm_90a", &["source", "-DAO_X=1"]);
        assert_ne!(name, Cache::name("norm", "sm_90a", &["source", "-DAO_X=2"]));
        assert_ne!(name, Cache::name("norm", "sm_90a", &["source-DAO_X=1", ""]));
        assert_eq!(cache.load(&name), None);
        cache.store(&name, b"\x7fELF code");
        assert_eq!(cache.load(&name).as_deref(), Some(b"\x7fELF code".as_slice()));
        fs::write(folder.join(&name), b"damaged").expect("a writable folder");
        fs::write(folder.join("other.txt"), b"not ours").expect("a writable folder");
        assert_eq!(cache.load(&name), None);
        assert_eq!(cache.clear().expect("a readable folder").len(), 1);
        assert!(folder.join("other.txt").exists() && cache.entries().expect("it").is_empty());
        fs::remove_dir_all(&folder).expect("ours");
    }
}
