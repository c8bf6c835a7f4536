//! The workflow int8_weight_only against torchao's Int8Tensor: codes and scales, bit for bit.

use aolab::Tensor;
use aolab::kernels::Cpu;
use aolab::model::DenseWeight;
use aolab::quantization::{Int8WeightOnlyConfig, Recipe};
use safetensors::SafeTensors;

#[test]
fn codes_and_scales_equal_torchao() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/int8_dynamic_act.safetensors");
    let bytes = std::fs::read(path).expect("the golden file");
    let file = SafeTensors::deserialize(&bytes).expect("valid safetensors");
    let data = |name: &str| file.tensor(name).expect("a golden tensor").data().to_vec();
    let x: Vec<f32> = bytemuck::pod_collect_to_vec(&data("x"));
    let weight = DenseWeight::new(Tensor::new(x, &[14, 64]).expect("14 rows")).expect("dense");
    let made = Int8WeightOnlyConfig::default()
        .quantize(&Cpu::new(Some(1)), &weight)
        .expect("int8 takes any shape");
    let tensors: Vec<Vec<u8>> = made.tensors().iter().map(|(_, t)| t.bytes().to_vec()).collect();
    for name in ["int8tensor.symmetric.rr0.q", "int8tensor.symmetric.rr0.scale"] {
        assert!(tensors.contains(&data(name)), "no stored tensor equals {name}");
    }
}
