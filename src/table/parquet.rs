//! A table as a Parquet file: one row group, PLAIN pages without compression, missing values as nulls.

use std::sync::Arc;

use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{Type, TypePtr};

use super::{Cell, Column, Kind, Table};
use crate::error::{Error, Result};

impl Table {
    /// The bytes of a Parquet file. Texts are UTF-8 strings, byte counts are integers, a column without any value holds numbers.
    pub fn to_parquet(&self) -> Result<Vec<u8>> {
        self.write_parquet().map_err(|error| {
            Error::invalid(format!("table \"{}\" as Parquet: {error}", self.title()))
        })
    }

    fn write_parquet(&self) -> parquet::errors::Result<Vec<u8>> {
        let fields: Vec<TypePtr> = self
            .columns()
            .iter()
            .map(|column| field(column).map(Arc::new))
            .collect::<parquet::errors::Result<_>>()?;
        let schema = Arc::new(Type::group_type_builder("runs").with_fields(fields).build()?);
        let properties = Arc::new(WriterProperties::builder().build());
        let mut out = Vec::new();
        let mut file = SerializedFileWriter::new(&mut out, schema, properties)?;
        let mut group = file.next_row_group()?;
        for index in 0..self.columns().len() {
            self.write_column(&mut group, index)?;
        }
        group.close()?;
        file.close()?;
        Ok(out)
    }

    fn write_column(
        &self,
        group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
        index: usize,
    ) -> parquet::errors::Result<()> {
        let Some(mut column) = group.next_column()? else { return Ok(()) };
        let cells = || self.rows().iter().map(|row| &row[index]);
        let there = |cell: &&Cell| !matches!(cell, Cell::Missing);
        let levels: Vec<i16> = cells().map(|cell| i16::from(there(&cell))).collect();
        match self.columns()[index].kind {
            Kind::Text => {
                let text = |cell: &Cell| ByteArray::from(cell_text(cell).into_bytes());
                let values: Vec<ByteArray> = cells().filter(there).map(text).collect();
                column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None)?;
            }
            Kind::Int | Kind::Bytes => {
                let values: Vec<i64> = cells().filter_map(integer).collect();
                column.typed::<Int64Type>().write_batch(&values, Some(&levels), None)?;
            }
            Kind::Float | Kind::Missing => {
                let values: Vec<f64> = cells().filter_map(Cell::as_f64).collect();
                column.typed::<DoubleType>().write_batch(&values, Some(&levels), None)?;
            }
        }
        column.close()
    }
}

fn field(column: &Column) -> parquet::errors::Result<Type> {
    let physical = match column.kind {
        Kind::Text => Physical::BYTE_ARRAY,
        Kind::Int | Kind::Bytes => Physical::INT64,
        Kind::Float | Kind::Missing => Physical::DOUBLE,
    };
    let logical = (column.kind == Kind::Text).then_some(LogicalType::String);
    Type::primitive_type_builder(&column.heading(), physical)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(logical)
        .build()
}

fn cell_text(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Byte counts above 2⁶³, which no memory holds, become the largest.
fn integer(cell: &Cell) -> Option<i64> {
    match cell {
        Cell::Int(value) => Some(*value),
        Cell::Bytes(value) => Some(i64::try_from(*value).unwrap_or(i64::MAX)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    use parquet::record::Field;

    use super::*;

    #[test]
    fn parquet_is_read_back_by_its_own_reader() {
        let mut table = Table::new("t")
            .column("model")
            .column_unit("speed", "tok/s")
            .column("n")
            .column("none");
        table.push(["a, \"é\"".into(), 1.5.into(), 7_i64.into(), Cell::Missing]).expect("a row");
        table.push([Cell::Missing, f64::NAN.into(), Cell::Missing, Cell::Missing]).expect("a row");
        let bytes = table.to_parquet().expect("a file");
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).expect("a Parquet file");
        let rows: Vec<Vec<(String, Field)>> = reader
            .get_row_iter(None)
            .expect("rows")
            .map(|row| row.expect("a row").into_columns().into_iter().collect())
            .collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0][0], ("model".to_owned(), Field::Str("a, \"é\"".to_owned())));
        assert_eq!(rows[0][1], ("speed (tok/s)".to_owned(), Field::Double(1.5)));
        assert_eq!(rows[0][2].1, Field::Long(7));
        assert_eq!(rows[0][3].1, Field::Null);
        assert_eq!(rows[1][0].1, Field::Null);
        assert!(matches!(rows[1][1].1, Field::Double(value) if value.is_nan()));
    }
}
