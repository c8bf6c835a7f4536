//! The bins of a histogram.

use super::data::count;

/// `counts[i]` values lie in `edges[i] .. edges[i + 1]`; the last bin holds its upper edge too.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bins {
    pub(super) edges: Vec<f64>,
    pub(super) counts: Vec<usize>,
}

/// Bins of equal width (of equal ratio, if `log`). Their number follows Freedman and Diaconis
/// (1981): width 2 · IQR · n^(−1/3), from 5 to 60 of them; Sturges' 1 + log₂ n where IQR is 0.
/// All values are finite, and positive if `log`.
pub(super) fn bins(values: &[f64], log: bool) -> Bins {
    let mut places: Vec<f64> = values.iter().map(|v| if log { v.log10() } else { *v }).collect();
    places.sort_by(f64::total_cmp);
    let (Some(&low), Some(&high)) = (places.first(), places.last()) else {
        return Bins { edges: Vec::new(), counts: Vec::new() };
    };
    let back = |place: f64| if log { 10_f64.powf(place) } else { place };
    // Half of the span, twice: the span of ±f64::MAX overflows.
    let half_span = high / 2.0 - low / 2.0;
    if half_span <= 0.0 {
        let margin = if low.abs() > 0.0 { low.abs() / 2.0 } else { 0.5 };
        return Bins {
            edges: vec![back(low - margin), back(low + margin)],
            counts: vec![values.len()],
        };
    }
    let number = bin_count(&places, half_span);
    let edge = |i: usize| {
        let half = half_span / count(number) * count(i);
        if i == number { high } else { low + half + half }
    };
    let inner: Vec<f64> = (1..number).map(edge).collect();
    let mut counts = vec![0; number];
    for place in &places {
        counts[inner.partition_point(|edge| edge <= place)] += 1;
    }
    Bins { edges: (0..=number).map(|i| back(edge(i))).collect(), counts }
}

fn bin_count(sorted: &[f64], half_span: f64) -> usize {
    let quartile = |q: usize| sorted[(sorted.len() - 1) * q / 4];
    let half_iqr = quartile(3) / 2.0 - quartile(1) / 2.0;
    let n = count(sorted.len());
    let wanted =
        if half_iqr > 0.0 { half_span / (2.0 * half_iqr) * n.cbrt() } else { 1.0 + n.log2() };
    (5..60).find(|&number| count(number) >= wanted).unwrap_or(60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_counted_once() {
        let spread: Vec<f64> = (0..1000).map(|i| f64::from(i) * 0.37 % 11.0).collect();
        let cases: [&[f64]; 6] = [
            &[1.0],
            &[0.0, 0.0, 0.0],
            &[1.0, 2.0],
            &[f64::MAX, f64::MIN, 0.0],
            &[1.0, 1.0, 1.0, 1.0, 1.0, 9.0],
            &spread,
        ];
        for values in cases {
            let got = bins(values, false);
            assert_eq!(got.counts.iter().sum::<usize>(), values.len(), "{got:?}");
            assert_eq!(got.edges.len(), got.counts.len() + 1);
            assert!(got.edges.is_sorted(), "{got:?}");
            assert!(got.edges.iter().all(|edge| edge.is_finite()), "{got:?}");
        }
    }

    #[test]
    fn a_value_on_an_edge_belongs_to_the_bin_above_and_the_last_to_the_last() {
        let got = bins(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], false);
        assert_eq!(got.edges, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(got.counts, [1, 1, 1, 1, 2]);
    }

    #[test]
    fn logarithmic_bins_have_equal_ratios() {
        let got = bins(&[1.0, 10.0, 100.0, 1000.0, 1e4, 1e5], true);
        for (edge, want) in got.edges.iter().zip([1.0, 10.0, 100.0, 1e3, 1e4, 1e5]) {
            assert!((edge / want - 1.0).abs() < 1e-9, "{got:?}");
        }
        assert_eq!(bins(&[], true).counts.len(), 0);
    }
}
