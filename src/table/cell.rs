//! One cell of a table, and what kinds of cells there are.

use super::number;

/// One value of a table.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Cell {
    /// A name or a sentence.
    Text(String),
    /// A count, a size, a seed.
    Int(i64),
    /// A measured or computed number; NaN and infinities are kept.
    Float(f64),
    /// An amount of memory, shown as `13.6 MB`.
    Bytes(u64),
    /// Not measured, or not applicable.
    #[default]
    Missing,
}

/// What the cells of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// [`Cell::Text`]
    Text,
    /// [`Cell::Int`]
    Int,
    /// [`Cell::Float`]
    Float,
    /// [`Cell::Bytes`]
    Bytes,
    /// Only [`Cell::Missing`] so far.
    Missing,
}

impl Kind {
    /// Whether values of this kind are numbers, which stand to the right and can be plotted.
    pub fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Float | Self::Bytes)
    }

    /// The kind of a column that holds both.
    pub(super) fn joined(self, other: Self) -> Option<Self> {
        match (self, other) {
            (a, b) if a == b => Some(a),
            (Self::Missing, kind) | (kind, Self::Missing) => Some(kind),
            (Self::Int, Self::Float) | (Self::Float, Self::Int) => Some(Self::Float),
            _ => None,
        }
    }

    pub(super) fn singular(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Int => "integer",
            Self::Float => "number",
            Self::Bytes => "byte count",
            Self::Missing => "missing value",
        }
    }

    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Text => "texts",
            Self::Int => "integers",
            Self::Float => "numbers",
            Self::Bytes => "byte counts",
            Self::Missing => "no values",
        }
    }
}

impl Cell {
    /// A number of bytes, shown as `13.6 MB`.
    pub fn bytes(nbytes: usize) -> Self {
        u64::try_from(nbytes).map_or(Self::Missing, Self::Bytes)
    }

    /// The kind of this value.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Text(_) => Kind::Text,
            Self::Int(_) => Kind::Int,
            Self::Float(_) => Kind::Float,
            Self::Bytes(_) => Kind::Bytes,
            Self::Missing => Kind::Missing,
        }
    }

    /// The number in it, if it holds one. Integers above 2⁵³ are rounded.
    #[expect(
        clippy::cast_precision_loss,
        reason = "for charts and ordering; cells keep the integer"
    )]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Bytes(value) => Some(*value as f64),
            Self::Text(_) | Self::Missing => None,
        }
    }

    /// This value in a column of `kind`: an integer among floats becomes a float.
    pub(super) fn widened(self, kind: Kind) -> Self {
        match (&self, kind) {
            (Self::Int(_), Kind::Float) => self.as_f64().map_or(Self::Missing, Self::Float),
            _ => self,
        }
    }
}

/// As it is shown alone: `44.33`, `11,008`, `13.6 MB`, and `–` for a missing value.
impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Int(value) => f.write_str(&number::int(*value)),
            Self::Float(value) => f.write_str(&number::float(*value)),
            Self::Bytes(value) => f.write_str(&number::bytes(*value)),
            Self::Missing => f.write_str("–"),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&String> for Cell {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::from(if value { "yes" } else { "no" })
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<f32> for Cell {
    fn from(value: f32) -> Self {
        Self::Float(f64::from(value))
    }
}

impl From<i32> for Cell {
    fn from(value: i32) -> Self {
        Self::Int(i64::from(value))
    }
}

impl From<u32> for Cell {
    fn from(value: u32) -> Self {
        Self::Int(i64::from(value))
    }
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

/// Counts above 2⁶³, which no memory holds, become floats.
impl From<u64> for Cell {
    #[expect(clippy::cast_precision_loss, reason = "a count this large is shown with four digits")]
    fn from(value: u64) -> Self {
        i64::try_from(value).map_or(Self::Float(value as f64), Self::Int)
    }
}

/// Counts above 2⁶³, which no memory holds, become floats.
impl From<usize> for Cell {
    #[expect(clippy::cast_precision_loss, reason = "a count this large is shown with four digits")]
    fn from(value: usize) -> Self {
        i64::try_from(value).map_or(Self::Float(value as f64), Self::Int)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Missing, Into::into)
    }
}
