//! Reads little-endian values one after another and never past the end.

use super::value::{Array, Kind, Value};

/// The rest of a file's head. Every read checks what is left, so that no length can be believed unread.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The longest key or tensor name: the format's limit for keys.
const MAX_NAME: usize = 65_535;

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Cursor<'a> {
        Cursor { bytes, at }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let left = self.left();
        let taken = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| {
            format!("byte {}: {len} bytes should follow, but {left} are left: the file is cut short or damaged", self.at)
        })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things of which each takes at least `size` bytes: more cannot follow.
    pub(super) fn count(&mut self, size: usize, of: &str) -> Result<usize, String> {
        let at = self.at;
        let count = self.u64()?;
        let most = self.left() / size;
        usize::try_from(count).ok().filter(|count| *count <= most).ok_or_else(|| {
            format!(
                "byte {at}: {count} {of} are claimed; what is left of the file has room for {most}"
            )
        })
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], String> {
        let len = self.count(1, "bytes of text")?;
        self.take(len)
    }

    /// A key or a tensor's name.
    pub(super) fn name(&mut self) -> Result<&'a str, String> {
        let at = self.at;
        let bytes = self.bytes()?;
        match std::str::from_utf8(bytes) {
            Ok(name) if !name.is_empty() && name.len() <= MAX_NAME => Ok(name),
            Ok(name) => {
                Err(format!("byte {at}: a name of {} bytes; wanted 1 to {MAX_NAME}", name.len()))
            }
            Err(_) => Err(format!("byte {at}: a name that is not UTF-8")),
        }
    }

    pub(super) fn value(&mut self, kind: Kind) -> Result<Value, String> {
        Ok(match kind {
            Kind::U8 => Value::Uint(u64::from(self.array::<1>()?[0])),
            Kind::I8 => Value::Int(i64::from(i8::from_le_bytes(self.array()?))),
            Kind::U16 => Value::Uint(u64::from(u16::from_le_bytes(self.array()?))),
            Kind::I16 => Value::Int(i64::from(i16::from_le_bytes(self.array()?))),
            Kind::U32 => Value::Uint(u64::from(self.u32()?)),
            Kind::I32 => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            Kind::F32 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            Kind::Bool => match self.array::<1>()?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => {
                    return Err(format!("byte {}: {other} is neither true nor false", self.at - 1));
                }
            },
            // Texts are not always UTF-8 (a token may be half a character): what is not becomes U+FFFD.
            Kind::Text => Value::Text(String::from_utf8_lossy(self.bytes()?).into_owned()),
            Kind::Array => Value::Array(self.array_header()?),
            Kind::U64 => Value::Uint(self.u64()?),
            Kind::I64 => Value::Int(i64::from_le_bytes(self.array()?)),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
        })
    }

    /// Walks over an array and remembers where it lies: nothing is allocated for its elements.
    fn array_header(&mut self) -> Result<Array, String> {
        let kind = Kind::from_id(self.u32()?)?;
        if kind == Kind::Array {
            return Err(format!("byte {}: an array of arrays, which no model has", self.at - 4));
        }
        let len = self.count(kind.min_size(), "elements of an array")?;
        let start = self.at;
        if kind == Kind::Text {
            for _ in 0..len {
                self.bytes()?;
            }
        } else {
            // `count` has checked that the product fits.
            self.take(len * kind.min_size())?;
        }
        Ok(Array { kind, len, range: start..self.at })
    }
}
