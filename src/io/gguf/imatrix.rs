//! llama.cpp's importance matrix: for every column of a weight, the sum of its inputs' squares over a text.
//!
//! Read in both forms, told apart by the first four bytes, and written by the name's ending:
//!
//! - GGUF: `general.type` "imatrix", `imatrix.datasets`, `imatrix.chunk_count`, `imatrix.chunk_size`; of each weight the tensors
//!   `NAME.in_sum2` f32 `(1, K)` and `NAME.counts` f32 `(1, 1)`, the number of tokens.
//! - `.dat`, its older form: `i32 entries · (i32 length · name · i32 calls · i32 K · K f32) … · i32 chunks · i32 length · dataset`, the
//!   values being means times `calls`.

use std::collections::BTreeMap;
use std::path::Path;

use aolab_kernels::ggml::BlockType;

use super::cursor::Cursor;
use super::parameters::gguf_name;
use super::reader::GgufFile;
use super::value::Kind;
use super::write::{self, Entry};
use super::write_head::Head;
use crate::error::{Error, Result};
use crate::io::files;
use crate::tensor::Tensor;

/// What a text said about the columns of each weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportanceMatrix {
    /// By the weight's name in GGUF files: `blk.0.attn_q.weight`.
    entries: BTreeMap<String, Importance>,
    /// The texts that were read.
    pub datasets: Vec<String>,
    /// How many pieces were read.
    pub chunk_count: usize,
    /// How many tokens a piece has; 0 where the file does not say.
    pub chunk_size: usize,
}

/// Of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// `Σ x²` of each column.
    pub sums: Vec<f32>,
    /// Over so many tokens.
    pub count: f32,
}

impl Importance {
    /// `mean x²`, what quantizing weighs columns by. A weight that no token reached weighs all alike, as in llama.cpp.
    pub fn means(&self) -> Vec<f32> {
        match self.count > 0.0 {
            true => self.sums.iter().map(|sum| sum / self.count).collect(),
            false => vec![1.0; self.sums.len()],
        }
    }
}

impl ImportanceMatrix {
    /// Of so many pieces of so many tokens, and of no weight yet.
    pub fn new(chunk_count: usize, chunk_size: usize) -> ImportanceMatrix {
        ImportanceMatrix { chunk_count, chunk_size, ..ImportanceMatrix::default() }
    }

    /// Of the linear layer `module`, by Hugging Face's name: `model.layers.0.self_attn.q_proj`.
    pub fn of(&self, module: &str) -> Option<(&str, &Importance)> {
        let name = gguf_name(&format!("{module}.weight"))?;
        self.entries.get_key_value(&name).map(|(name, entry)| (name.as_str(), entry))
    }

    /// Every entry, by the weight's name in GGUF files.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Importance)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Adds what was seen of the linear layer `module`.
    pub fn insert(&mut self, module: &str, importance: Importance) -> Result<()> {
        let name = gguf_name(&format!("{module}.weight"))
            .ok_or_else(|| Error::invalid(format!("{module}: GGUF files have no such module")))?;
        self.entries.insert(name, importance);
        Ok(())
    }

    /// Reads a file of either form.
    pub fn read(path: &Path) -> Result<ImportanceMatrix> {
        let bytes = files::map(path)?;
        let found = match bytes.bytes().starts_with(b"GGUF") {
            true => read_gguf(&GgufFile::open(path)?)?,
            false => read_dat(bytes.bytes()).map_err(|words| Error::file(path, words))?,
        };
        for (name, Importance { sums, count }) in &found.entries {
            let sound = |value: &f32| *value >= 0.0 && value.is_finite();
            if sums.is_empty() || !sound(count) || !sums.iter().all(sound) {
                let words =
                    format!("{name}: sums of squares and counts must be finite and not negative");
                return Err(Error::file(path, words));
            }
        }
        if found.entries.is_empty() {
            return Err(Error::file(path, "it holds no importance of any weight"));
        }
        Ok(found)
    }

    /// Writes the older form if the name ends with .dat, else GGUF. The file appears when it is complete.
    pub fn write(&self, path: &Path) -> Result<()> {
        if path.extension().is_some_and(|extension| extension == "dat") {
            let bytes = self.dat()?;
            return files::write_atomically(path, |out| out.write_all(&bytes));
        }
        let mut head = Head::default();
        head.text("general.type", "imatrix");
        head.texts("imatrix.datasets", &self.datasets);
        head.uint("imatrix.chunk_count", self.chunk_count)?;
        head.uint("imatrix.chunk_size", self.chunk_size)?;
        let mut entries = Vec::new();
        for (name, Importance { sums, count }) in &self.entries {
            let (k, sums) = (sums.len(), sums.clone());
            entries.push(vector(format!("{name}.in_sum2"), vec![k as u64, 1], sums)?);
            entries.push(vector(format!("{name}.counts"), vec![1, 1], vec![*count])?);
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        files::write_atomically(path, |out| write::write_file(&head, &entries, out))
    }

    #[expect(clippy::cast_precision_loss, reason = "calls are far fewer than 2²⁴")]
    fn dat(&self) -> Result<Vec<u8>> {
        let mut bytes = int(self.entries.len())?.to_vec();
        for (name, importance) in &self.entries {
            bytes.extend(int(name.len())?);
            bytes.extend(name.as_bytes());
            let calls = self.chunk_count.max(1);
            bytes.extend(int(calls)?);
            bytes.extend(int(importance.sums.len())?);
            let values = importance.means().into_iter().map(|mean| mean * calls as f32);
            values.for_each(|value| bytes.extend(value.to_le_bytes()));
        }
        bytes.extend(int(self.chunk_count)?);
        let dataset = self.datasets.first().map(String::as_str).unwrap_or_default();
        bytes.extend(int(dataset.len())?);
        bytes.extend(dataset.as_bytes());
        Ok(bytes)
    }
}

fn int(value: usize) -> Result<[u8; 4]> {
    let value = i32::try_from(value)
        .map_err(|_| Error::invalid(format!("{value} is too large for an importance matrix")))?;
    Ok(value.to_le_bytes())
}

fn vector(name: String, dims: Vec<u64>, values: Vec<f32>) -> Result<Entry> {
    let shape = [values.len()];
    Ok(Entry::of(name, dims, BlockType::F32, Tensor::new(values, &shape)?))
}

fn read_gguf(file: &GgufFile) -> Result<ImportanceMatrix> {
    if let Some(other) = file.text("general.type")?.filter(|kind| *kind != "imatrix") {
        return Err(file.wrong(format!("general.type is {other:?}; wanted \"imatrix\"")));
    }
    let mut found = ImportanceMatrix::default();
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    for name in names.iter().filter_map(|name| name.strip_suffix(".in_sum2")) {
        let sums = numbers(file, &format!("{name}.in_sum2"))?;
        let counts = numbers(file, &format!("{name}.counts"))?;
        let [count] = counts[..] else {
            return Err(file.wrong(format!(
                "{name} has {} matrices; a mixture of experts is not supported",
                counts.len()
            )));
        };
        found.entries.insert(name.to_owned(), Importance { sums, count });
    }
    let text =
        |cursor: &mut Cursor<'_>, _| Ok(String::from_utf8_lossy(cursor.bytes()?).into_owned());
    found.datasets = file.array("imatrix.datasets", &[Kind::Text], text)?.unwrap_or_default();
    let size = |key| -> Result<usize> {
        Ok(file.uint(key)?.and_then(|value| usize::try_from(value).ok()).unwrap_or(0))
    };
    found.chunk_count = size("imatrix.chunk_count")?;
    found.chunk_size = size("imatrix.chunk_size")?;
    Ok(found)
}

/// A tensor of f32, whatever its shape.
fn numbers(file: &GgufFile, name: &str) -> Result<Vec<f32>> {
    let (info, bytes) = file.tensor(name)?;
    if info.block_type != BlockType::F32 {
        let got = info.block_type.name();
        return Err(file.wrong(format!("{name} is {got}; wanted F32")));
    }
    let (values, _) = bytes.bytes().as_chunks::<4>();
    Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

/// The older form. What follows the entries may be missing.
fn read_dat(bytes: &[u8]) -> Result<ImportanceMatrix, String> {
    let mut cursor = Cursor::new(bytes, 0);
    let mut found = ImportanceMatrix::default();
    let not = "this is no importance matrix";
    // An entry takes 17 bytes and more.
    for _ in 0..count(&mut cursor, 17).map_err(|words| format!("{words}: {not}"))? {
        let length = count(&mut cursor, 1)?;
        let name = String::from_utf8(cursor.take(length)?.to_vec())
            .map_err(|_| format!("a name that is not UTF-8: {not}"))?;
        let calls = cursor.u32()?;
        let k = count(&mut cursor, 4)?;
        let (values, _) = cursor.take(4 * k)?.as_chunks::<4>();
        let sums = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
        #[expect(clippy::cast_precision_loss, reason = "calls are far fewer than 2²⁴")]
        let importance = Importance { sums, count: calls as f32 };
        if found.entries.insert(name.clone(), importance).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    if cursor.left() >= 4 {
        found.chunk_count = usize::try_from(cursor.u32()?).unwrap_or(0);
    }
    if cursor.left() >= 4 {
        let length = count(&mut cursor, 1)?;
        found.datasets.push(String::from_utf8_lossy(cursor.take(length)?).into_owned());
    }
    Ok(found)
}

/// An i32 that counts things of `size` bytes, of which no more can follow than there is room for.
fn count(cursor: &mut Cursor<'_>, size: usize) -> Result<usize, String> {
    let at = cursor.position();
    let (count, most) = (cursor.u32()?, cursor.left() / size);
    let fits = usize::try_from(count).ok().filter(|count| *count <= most);
    fits.ok_or_else(|| format!("byte {at}: {count} are claimed, and there is room for {most}"))
}
