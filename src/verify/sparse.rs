//! Sparsity: masks by magnitude and by Wanda, and the 2:4 layout of CUTLASS.

use half::f16;

use super::checks::{Checks, number_behind, of_each, unknown};
use crate::error::{Error, Result};
use crate::model::{Mask, Pattern};
use crate::sparsity::semi_structured::{pack_cutlass, unpack_cutlass};
use crate::sparsity::wanda::add_square_norms;
use crate::sparsity::{MagnitudeSparsifier, WandaSparsifier};
use crate::tensor::Tensor;

/// 1 where a number stays.
fn bytes(mask: &Mask) -> Result<Tensor> {
    let (n, k) = mask.shape();
    let keeps = (0..n * k).map(|at| u8::from(mask.keeps(at / k, at % k))).collect::<Vec<u8>>();
    Tensor::new(keeps, &[n, k])
}

/// `mask2of4`; `wanda.s70.norm`, `.mask`; `pack24.values`, `.meta`
pub(super) fn sparsity(checks: &mut Checks) -> Result<()> {
    let w = checks.input("x")?;
    for name in checks.names_with("mask") {
        let numbers = name["mask".len()..].split_once("of").ok_or_else(|| unknown(&name))?;
        let (n, m) = (number_behind(numbers.0, "")?, number_behind(numbers.1, "")?);
        let config = MagnitudeSparsifier {
            pattern: Pattern::NOfM { n, m },
            ..MagnitudeSparsifier::default()
        };
        checks.exact(name, &bytes(&config.mask(&checks.cpu, &w)?)?)?;
    }
    wanda(checks, &w)?;
    if checks.contains("pack24.dense") {
        let dense = checks.input("pack24.dense")?;
        let (n, k) = dense.dims2()?;
        let numbers = dense.as_slice::<f16>()?;
        let packed = pack_cutlass(numbers, (n, k))?;
        unpacks(unpack_cutlass(&packed, (n, k))? == numbers)?;
        checks.exact("pack24.values", &Tensor::new(packed.values, &[n, k / 2])?)?;
        // A word of f16 covers 16 numbers.
        #[expect(clippy::cast_possible_truncation, reason = "words of 16 bits lie in the low half")]
        let words: Vec<i16> = packed.meta.iter().map(|word| (*word as u16).cast_signed()).collect();
        checks.exact("pack24.meta", &Tensor::new(words, &[n, k / 16])?)?;
    }
    if checks.contains("pack24i8.dense") {
        let dense = checks.input("pack24i8.dense")?;
        let (n, k) = dense.dims2()?;
        let numbers = dense.as_slice::<i8>()?;
        let packed = pack_cutlass(numbers, (n, k))?;
        unpacks(unpack_cutlass(&packed, (n, k))? == numbers)?;
        checks.exact("pack24i8.values", &Tensor::new(packed.values, &[n, k / 2])?)?;
        let words: Vec<i32> = packed.meta.iter().map(|word| word.cast_signed()).collect();
        checks.exact("pack24i8.meta", &Tensor::new(words, &[n, k / 32])?)?;
    }
    Ok(())
}

fn unpacks(same: bool) -> Result<()> {
    match same {
        true => Ok(()),
        false => Err(Error::invalid("what is packed 2:4 is unpacked as something else")),
    }
}

/// `unstructured` is half of a layer, `s70` is 70 % of it, `s24` is 2:4; all were calibrated with x0, x1, …
fn wanda(checks: &mut Checks, w: &Tensor) -> Result<()> {
    let (_, k) = w.dims2()?;
    let mut sums = vec![0.0; k];
    for i in 0_usize.. {
        let name = format!("wanda.x{i}");
        if !checks.contains(&name) {
            break;
        }
        add_square_norms(&mut sums, &checks.matrix_of(&name, k)?.to_f32_vec());
    }
    // torchao ranks by the square of the norm.
    let squared = WandaSparsifier { squared_norm: true, ..WandaSparsifier::default() };
    for prefix in checks.prefixes(".mask") {
        let config = match prefix.strip_prefix("wanda.") {
            Some("unstructured") => squared.clone(),
            Some("s24") => {
                WandaSparsifier { semi_structured_block_size: Some(4), ..squared.clone() }
            }
            Some(word) => {
                let percent = u8::try_from(number_behind(word, "s")?).unwrap_or(u8::MAX);
                WandaSparsifier { sparsity_level: f64::from(percent) / 100.0, ..squared.clone() }
            }
            None => return Err(unknown(&prefix)),
        };
        let norm = format!("{prefix}.norm");
        let golden = checks.golden(&norm)?;
        // Sums of squares in another order than torch's: a few units in the last place.
        let near = of_each(&golden, 2.0_f64.powi(-21), 0.0);
        checks.near(norm, &Tensor::new(sums.clone(), &[k])?, &near)?;
        // From the golden norms, so that a tie within that tolerance falls as it fell there.
        let mask = config.mask(&checks.cpu, w, &golden.to_f32_vec())?;
        checks.exact(format!("{prefix}.mask"), &bytes(&mask)?)?;
    }
    Ok(())
}
