//! Reading golden files and comparing with them.

#![allow(dead_code, reason = "each test crate that includes this module uses a part of it")]

use std::collections::BTreeMap;
use std::path::Path;

use aolab::Tensor;
use safetensors::{Dtype, SafeTensors};

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

    /// The bytes of a tensor, for dtypes that a [`Tensor`] does not have.
    pub(crate) fn raw(&self, name: &str) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.name));
        view.data().to_vec()
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

pub(crate) fn transposed(matrix: &Tensor) -> Tensor {
    let (rows, columns) = matrix.dims2().expect("a matrix");
    let values = matrix.as_slice::<f32>().expect("f32");
    let order = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
    let turned: Vec<f32> = order.map(|at| values[at]).collect();
    Tensor::new(turned, &[columns, rows]).expect("its shape")
}
