//! Reading golden files, comparing with them, and the calls that need a kernel.

#![allow(dead_code, reason = "each test crate that includes this module uses a part of it")]

use std::collections::BTreeMap;
use std::path::Path;

use aolab::kernels::int8_activation::{self, Range};
use aolab::kernels::{Cpu, Isa, Shape, int8_linear};
use aolab::model::DenseWeight;
use aolab::quantization::config::dtype_to_dict;
use aolab::quantization::primitives::{MappingType, quantize_activation_per_token_absmax};
use aolab::quantization::{
    Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Recipe, read_weight,
};
use aolab::{DType, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

/// One golden file.
pub(crate) struct Family {
    name: String,
    bytes: Vec<u8>,
}

impl Family {
    pub(crate) fn read(name: &str) -> Family {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let path = path.join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Family { name: name.to_owned(), bytes }
    }

    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.name));
        fn of<T: aolab::tensor::Element>(bytes: &[u8], shape: &[usize]) -> Tensor {
            Tensor::new(bytemuck::pod_collect_to_vec::<u8, T>(bytes), shape).expect("its shape")
        }
        let (bytes, shape) = (view.data(), view.shape());
        match view.dtype() {
            Dtype::F32 => of::<f32>(bytes, shape),
            Dtype::BF16 => of::<half::bf16>(bytes, shape),
            Dtype::F16 => of::<half::f16>(bytes, shape),
            Dtype::I64 => of::<i64>(bytes, shape),
            Dtype::I32 => of::<i32>(bytes, shape),
            Dtype::I8 => of::<i8>(bytes, shape),
            Dtype::U8 => of::<u8>(bytes, shape),
            other => panic!("{name}: {other:?} is not among the golden dtypes"),
        }
    }

    /// Every tensor of the file is an input, or in the layout of one processor, or was computed: bit for bit.
    pub(crate) fn check(&self, computed: &BTreeMap<String, Tensor>, inputs: &[&str]) {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let mut compared = 0;
        for name in file.names() {
            if inputs.contains(&name) || name.ends_with(".packed_avx512") {
                continue;
            }
            let got = computed
                .get(name)
                .unwrap_or_else(|| panic!("{}: nobody computes {name}", self.name));
            compare(&format!("{}: {name}", self.name), &self.tensor(name), got);
            compared += 1;
        }
        assert!(compared > 0, "{}: nothing was compared", self.name);
    }
}

fn compare(name: &str, wanted: &Tensor, got: &Tensor) {
    assert_eq!(
        (wanted.dtype(), wanted.shape()),
        (got.dtype(), got.shape()),
        "{name}: dtype and shape"
    );
    let size = wanted.dtype().size();
    let pairs = wanted.bytes().chunks_exact(size).zip(got.bytes().chunks_exact(size));
    let (a, b) = (wanted.to_f32_vec(), got.to_f32_vec());
    let wrong: Vec<usize> = pairs
        .enumerate()
        .filter(|(i, (wanted, got))| wanted != got && !(a[*i].is_nan() && b[*i].is_nan()))
        .map(|(i, _)| i)
        .collect();
    if let Some(&first) = wrong.first() {
        panic!(
            "{name}: {} of {} differ, first at {first}: wanted {}, got {}",
            wrong.len(),
            a.len(),
            a[first],
            b[first]
        );
    }
}

/// i32 codes of an unsigned range in their container.
pub(crate) fn as_u8(codes: &Tensor) -> Tensor {
    let values = match codes.dtype() {
        DType::U8 => return codes.clone(),
        _ => codes.as_slice::<i32>().expect("i32 codes"),
    };
    let values = values.iter().map(|code| u8::try_from(*code).expect("a code of 8 bits"));
    Tensor::new(values.collect::<Vec<u8>>(), codes.shape()).expect("its shape")
}

pub(crate) fn transposed(matrix: &Tensor) -> Tensor {
    let (rows, columns) = matrix.dims2().expect("a matrix");
    let values = matrix.as_slice::<f32>().expect("f32");
    let order = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
    let turned: Vec<f32> = order.map(|at| values[at]).collect();
    Tensor::new(turned, &[columns, rows]).expect("its shape")
}

/// The tensors that `Int4WeightOnlyConfig` makes of `w`: qdata, scale, zero_point.
pub(crate) fn int4_weight_only(w: &Tensor, group_size: usize) -> Vec<Tensor> {
    let dense = DenseWeight::new(w.clone()).expect("a float matrix");
    let config = Int4WeightOnlyConfig { group_size, ..Int4WeightOnlyConfig::default() };
    let weight = config.quantize(&Cpu::new(Some(1)), &dense).expect("groups divide K");
    weight.tensors().into_iter().map(|(_, tensor)| tensor).collect()
}

/// `act · dequantize(q)ᵀ` on every instruction set's kernel, with the weight read back as a file's would be.
pub(crate) fn int4_linear(
    q: &Tensor,
    (scale, zero): (&Tensor, &Tensor),
    group_size: usize,
    act: &Tensor,
) -> Vec<IsaResult> {
    let (n, k) = q.dims2().expect("a matrix");
    let (pairs, _) = q.as_slice::<u8>().expect("u8 codes").as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[even, odd]| even | (odd << 4)).collect();
    let meta = json!({ "_type": "Int4Weight", "_version": 1, "_data": {
        "dtype": dtype_to_dict(scale.dtype()), "group_size": group_size,
        "int4_packing_format": { "_type": "Int4PackingFormat", "_data": "TILE_PACKED_TO_4D" } } });
    let tensors = vec![
        ("qdata".to_owned(), Tensor::new(bytes, &[n, k / 2]).expect("its shape")),
        ("scale".to_owned(), scale.clone()),
        ("zero_point".to_owned(), zero.clone()),
    ];
    let weight = read_weight(&meta, tensors, (n, k)).expect("a sound weight");
    let x = act.to_f32_vec();
    let m = x.len() / k;
    let dense = weight.dequantize().expect("dequantizes").to_f32_vec();
    let sums = |at: usize| {
        let (row, column) = (at / n, at % n);
        let products = x[row * k..][..k].iter().zip(&dense[column * k..][..k]);
        products.map(|(x, w)| f64::from(*x) * f64::from(*w)).collect::<Vec<f64>>()
    };
    let amounts: Vec<f64> =
        (0..m * n).map(|at| sums(at).iter().map(|product| product.abs()).sum()).collect();
    let run = |isa: Isa| {
        let mut y = vec![f32::NAN; m * n];
        weight.linear(&Cpu::with_isa(isa, Some(1)), &x, m, &mut y).expect("runs");
        IsaResult { isa: isa.name(), y, amounts: amounts.clone() }
    };
    Isa::available().into_iter().map(run).collect()
}

/// What one instruction set gave, with Σ|x·w| of each result.
pub(crate) struct IsaResult {
    isa: &'static str,
    y: Vec<f32>,
    amounts: Vec<f64>,
}

/// torch's product rounds dequantized weights, and for bf16 the result too, to bf16 (8 bits): 2⁻⁷ of Σ|x·w| covers
/// both; in f32 its order of additions differs: 2⁻¹⁶ does.
pub(crate) fn check_int4_mm(wanted: &Tensor, results: &[IsaResult]) {
    let tolerance =
        if wanted.dtype() == DType::BF16 { 2.0_f64.powi(-7) } else { 2.0_f64.powi(-16) };
    let wanted = wanted.to_f32_vec();
    for IsaResult { isa, y, amounts } in results {
        for (at, (y, wanted)) in y.iter().zip(&wanted).enumerate() {
            let error = (f64::from(*y) - f64::from(*wanted)).abs();
            let allowed = tolerance * amounts[at] + 1e-9;
            assert!(error <= allowed, "{isa}: y[{at}] is {y}, wanted {wanted} ± {allowed}");
        }
    }
}

/// The kernel that quantizes activations, and the workflow that quantizes weights, find what the primitives find.
pub(crate) fn check_int8_kernels(
    x: &Tensor,
    [q, scale, zero]: [&Tensor; 3],
    mapping: MappingType,
    reduce_range: bool,
) {
    let (m, values) = (x.shape()[0], x.to_f32_vec());
    let range = if reduce_range { Range::REDUCED } else { Range::FULL };
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(1));
        let (mut codes, mut scales) = (vec![99_i8; values.len()], vec![f32::NAN; m]);
        let mut zeros = vec![0; m];
        if mapping == MappingType::Asymmetric {
            int8_activation::asymmetric(&cpu, &values, &mut codes, &mut scales, &mut zeros, range);
        } else {
            int8_activation::symmetric(&cpu, &values, &mut codes, &mut scales, range);
        }
        let name = isa.name();
        assert_eq!(codes, q.as_slice::<i8>().expect("i8"), "{name}: codes, {mapping}");
        assert_eq!(scales, scale.as_slice::<f32>().expect("f32"), "{name}: scales, {mapping}");
        let wanted = zero.as_slice::<i8>().expect("i8").iter().map(|zero| i32::from(*zero));
        assert_eq!(zeros, wanted.collect::<Vec<i32>>(), "{name}: zero points, {mapping}");
    }
    if mapping == MappingType::Symmetric {
        let config = Int8DynamicActivationInt8WeightConfig { reduce_range, ..Default::default() };
        let dense = DenseWeight::new(x.clone()).expect("a float matrix");
        let weight = config.quantize(&Cpu::new(Some(1)), &dense).expect("quantizes");
        for ((name, tensor), wanted) in weight.tensors().iter().zip([q, scale]) {
            compare(&format!("the workflow's {name}"), wanted, tensor);
        }
    }
}

/// `_quant_int8_dynamic_per_token_linear`: absmax activations of ±127, integer products, two scales.
pub(crate) fn int8_dynamic_linear(x: &Tensor, q: &Tensor, scale: &Tensor) -> Tensor {
    let (codes, act_scale) = quantize_activation_per_token_absmax(x).expect("per token");
    let ((m, k), (n, _)) = (x.dims2().expect("a matrix"), q.dims2().expect("a matrix"));
    let weight = int8_linear::Weight {
        qdata: q.as_slice().expect("i8"),
        scale: scale.as_slice().expect("f32"),
        row_sums: None,
    };
    let activation = int8_linear::Activation {
        q: codes.as_slice().expect("i8"),
        scale: act_scale.as_slice().expect("f32"),
        zero_point: None,
    };
    let mut y = vec![f32::NAN; m * n];
    int8_linear::dynamic(&Cpu::new(Some(1)), weight, activation, &mut y, Shape { m, n, k });
    Tensor::new(y, &[m, n]).expect("its shape")
}
