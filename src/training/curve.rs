//! What is known of every step.

use crate::error::{Error, Result};
use crate::table::{Cell, Table};
use crate::tensor::Tensor;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The mean loss of the step's tokens, before its update, in nats.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// The norm of the gradient before it was shortened.
    pub gradient_norm: f64,
    /// The mean loss on the held-out windows, after the update.
    pub held_out: Option<f64>,
}

/// All steps so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// The held-out loss before the first step.
    pub start: Option<f64>,
    /// Step 1, step 2 …
    pub points: Vec<Point>,
}

impl Curve {
    /// As a table: one row a step.
    pub(super) fn table(&self, title: &str, rule: &str) -> Result<Table> {
        let mut table = Table::new(title)
            .column("step")
            .column_unit("loss", "nats")
            .column_unit("held-out loss", "nats")
            .column("held-out perplexity")
            .column("learning rate")
            .column("gradient norm");
        let number = |value: Option<f64>| value.map_or(Cell::Missing, Cell::Float);
        if self.start.is_some() {
            let held_out = [number(self.start), number(self.start.map(f64::exp))];
            let [loss, perplexity] = held_out;
            let none = || Cell::Missing;
            table.push([Cell::Int(0), none(), loss, perplexity, none(), none()])?;
        }
        for (i, point) in self.points.iter().enumerate() {
            table.push([
                Cell::Int(i64::try_from(i + 1).unwrap_or(i64::MAX)),
                Cell::Float(point.loss),
                number(point.held_out),
                number(point.held_out.map(f64::exp)),
                Cell::Float(point.lr),
                Cell::Float(point.gradient_norm),
            ])?;
        }
        table.note(format!("linear layers: {rule}; losses are means per token; the held-out ones are after the step"));
        Ok(table)
    }

    /// The losses alone, with the linear layers beside them: runs one below another, for a plot of several.
    pub(super) fn losses(&self, rule: &str) -> Result<Table> {
        let mut table = Table::new("Losses of training")
            .column("step")
            .column_unit("loss", "nats")
            .column("linear layers");
        for (i, point) in self.points.iter().enumerate() {
            let step = Cell::Int(i64::try_from(i + 1).unwrap_or(i64::MAX));
            table.push([step, Cell::Float(point.loss), Cell::Text(rule.to_owned())])?;
        }
        Ok(table)
    }

    /// As numbers, exactly: NaN stands for what was not measured.
    pub(super) fn to_tensor(&self) -> Result<Tensor> {
        let none = f64::NAN;
        let mut values = vec![self.start.unwrap_or(none), none, none, none];
        for point in &self.points {
            let held_out = point.held_out.unwrap_or(none);
            values.extend([point.loss, point.lr, point.gradient_norm, held_out]);
        }
        let rows = values.len() / 4;
        Tensor::new(values, &[rows, 4])
    }

    pub(super) fn of_tensor(tensor: &Tensor) -> Result<Curve> {
        let (rows, []) = tensor.as_slice::<f64>()?.as_chunks::<4>() else {
            return Err(Error::invalid("curve: wanted four numbers a step"));
        };
        let known = |value: f64| (!value.is_nan()).then_some(value);
        let Some((first, rest)) = rows.split_first() else {
            return Err(Error::invalid("curve: wanted one row or more"));
        };
        let points = rest.iter().map(|[loss, lr, gradient_norm, held_out]| Point {
            loss: *loss,
            lr: *lr,
            gradient_norm: *gradient_norm,
            held_out: known(*held_out),
        });
        Ok(Curve { start: known(first[0]), points: points.collect() })
    }

    /// The last losses as a line of blocks, the highest full.
    pub fn sparkline(&self, width: usize) -> String {
        let points = &self.points[self.points.len().saturating_sub(width)..];
        let losses = || points.iter().map(|point| point.loss).filter(|loss| loss.is_finite());
        let (low, high) = losses().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), loss| {
            (low.min(loss), high.max(loss))
        });
        let blocks = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        #[expect(clippy::cast_possible_truncation, reason = "from 0 to 7")]
        #[expect(clippy::cast_sign_loss, reason = "from 0 to 7")]
        let block = |loss: f64| blocks[((loss - low) / (high - low).max(1e-9) * 7.0) as usize];
        losses().map(block).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_come_back_from_numbers_and_show_as_blocks() {
        let point = |loss, held_out| Point { loss, lr: 0.1, gradient_norm: 1.0, held_out };
        let curve = Curve {
            start: Some(4.0),
            points: vec![point(3.0, None), point(2.0, Some(2.5)), point(1.0, None)],
        };
        let back = Curve::of_tensor(&curve.to_tensor().expect("numbers")).expect("a curve");
        assert_eq!(curve, back);
        assert_eq!(curve.sparkline(8), "█▄▁");
        assert_eq!(curve.sparkline(1), "▁");
        assert_eq!(curve.table("t", "plain").expect("a table").len(), 4);
        assert!(Curve::of_tensor(&Tensor::new(vec![1.0_f64; 3], &[3]).expect("three")).is_err());
    }
}
