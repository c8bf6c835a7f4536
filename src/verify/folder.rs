//! A folder of golden vectors: its files, and the manifest that says what they hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{AtPath, Error, Result, did_you_mean};
use crate::io::safetensors::SafetensorsFile;
use crate::tensor::Tensor;

/// A manifest of more bytes is none.
const MAX_MANIFEST: u64 = 16 << 20;

/// The families of a folder, by name.
pub(super) struct Folder {
    path: PathBuf,
    /// What the manifest says of each family's tensors; empty where it says nothing.
    families: BTreeMap<String, Vec<Promise>>,
}

/// A line of the manifest: a tensor, its dtype in torch's words and its shape.
struct Promise {
    name: String,
    dtype: String,
    shape: String,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Folder> {
        if !path.is_dir() {
            let what = if path.exists() { "it is no folder" } else { "there is no such folder" };
            return Err(Error::file(
                path,
                format!(
                    "{what}; wanted one with golden vectors, FAMILY.safetensors files and MANIFEST.md, as tests/golden of the \
                     sources is: `verify golden` without a name takes that one"
                ),
            ));
        }
        let mut families = BTreeMap::new();
        let manifest = path.join("MANIFEST.md");
        if manifest.is_file() {
            let size = fs::metadata(&manifest).at(&manifest)?.len();
            if size > MAX_MANIFEST {
                return Err(Error::file(
                    &manifest,
                    format!("{size} bytes are too many for a manifest of golden vectors"),
                ));
            }
            let text = fs::read(&manifest).at(&manifest)?;
            let text = String::from_utf8(text)
                .map_err(|_| Error::file(&manifest, "it is not UTF-8 text"))?;
            families = promises(&text);
        }
        for entry in fs::read_dir(path).at(path)? {
            let file = entry.at(path)?.path();
            if file.extension().is_some_and(|extension| extension == "safetensors") {
                let name = file.file_stem().map(|name| name.to_string_lossy().into_owned());
                families.entry(name.unwrap_or_default()).or_default();
            }
        }
        if families.is_empty() {
            return Err(Error::file(
                path,
                "it holds no golden vectors: wanted FAMILY.safetensors files and MANIFEST.md",
            ));
        }
        Ok(Folder { path: path.to_path_buf(), families })
    }

    pub(super) fn families(&self) -> impl Iterator<Item = &String> {
        self.families.keys()
    }

    /// Refuses names of families that are not there.
    pub(super) fn check_names(&self, wanted: &[String]) -> Result<()> {
        let Some(unknown) = wanted.iter().find(|name| !self.families.contains_key(*name)) else {
            return Ok(());
        };
        let known = self.families.keys().map(String::as_str);
        let hint = match did_you_mean(unknown, known.clone()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("it has {}", known.collect::<Vec<_>>().join(", ")),
        };
        Err(Error::file(&self.path, format!("there is no family {unknown}; {hint}")))
    }

    /// Opens a family's file and holds it against the manifest.
    pub(super) fn family(&self, name: &str) -> Result<Family> {
        let path = self.path.join(format!("{name}.safetensors"));
        let family = Family { file: SafetensorsFile::open(&path)? };
        for promise in self.families.get(name).into_iter().flatten() {
            if !family.file.contains(&promise.name) {
                let words =
                    format!("the manifest names the tensor {}, the file has none", promise.name);
                return Err(Error::file(&path, words));
            }
            let tensor = family.tensor(&promise.name)?;
            let shape = format!("{:?}", tensor.shape());
            if torch_name(&tensor) != promise.dtype || shape != promise.shape {
                return Err(Error::file(
                    &path,
                    format!(
                        "{} is {} {shape}, the manifest says {} {}",
                        promise.name,
                        torch_name(&tensor),
                        promise.dtype,
                        promise.shape
                    ),
                ));
            }
        }
        Ok(family)
    }
}

/// `## NAME.safetensors (…)`, then rows `| tensor | dtype | shape | … |`. A name in parentheses failed where the vectors were made;
/// a name with … stands for several.
fn promises(manifest: &str) -> BTreeMap<String, Vec<Promise>> {
    let mut families: BTreeMap<String, Vec<Promise>> = BTreeMap::new();
    let mut current = None;
    for line in manifest.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let name = heading.split(".safetensors").next().unwrap_or_default().trim();
            // The name becomes a part of a path, and must not lead elsewhere.
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            current = Some(name.to_owned()).filter(|name| plain && !name.is_empty());
            if let Some(name) = &current {
                families.entry(name.clone()).or_default();
            }
            continue;
        }
        let Some(family) = current.as_ref().and_then(|name| families.get_mut(name)) else {
            continue;
        };
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", name, dtype, shape, ..] = cells[..] else { continue };
        let several = name.contains('…') || name.starts_with('(') || name.starts_with("---");
        if !several && !name.is_empty() && (name, dtype) != ("tensor", "dtype") {
            let [name, dtype, shape] = [name, dtype, shape].map(str::to_owned);
            family.push(Promise { name, dtype, shape });
        }
    }
    families
}

/// How torch calls a tensor's dtype.
fn torch_name(tensor: &Tensor) -> &'static str {
    use crate::tensor::DType;
    match tensor.dtype() {
        DType::F64 => "float64",
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::I64 => "int64",
        DType::I32 => "int32",
        DType::I16 => "int16",
        DType::I8 => "int8",
        DType::U8 => "uint8",
    }
}

/// One family's file.
pub(super) struct Family {
    file: SafetensorsFile,
}

impl Family {
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        self.file.tensor(name)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.file.contains(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.file.names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_names_families_and_tensors() {
        let text = "# Golden\n\n## a_b.safetensors (1 KiB, 2 tensors)\nabout | this\n\n| tensor | dtype | shape | what |\n\
            |---|---|---|---|\n| x | float32 | [2, 3] | input |\n| (y) | - | [] | FAILED |\n| Q4 … Q6 | uint8 | [1] | … |\n\
            ## ../etc.safetensors\n| z | uint8 | [1] | |\n";
        let found = promises(text);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a_b"]);
        let only = &found["a_b"];
        assert_eq!(only.len(), 1);
        assert_eq!((only[0].name.as_str(), only[0].shape.as_str()), ("x", "[2, 3]"));
    }
}
