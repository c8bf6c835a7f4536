//! What several integration tests need: a writer of GGUF files, a little model in one, random numbers.
#![allow(dead_code, unreachable_pub, reason = "a part that each test binary uses in its own way")]

pub mod model;

use aolab::kernels::ggml::{self, BlockType};

/// A 64-bit linear congruential generator with a mixed output (xorshift-multiply).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 16
    }

    /// A number from −1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 - 1.0
    }

    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// A GGUF file in the making. Every field is open, so that a test can lie in any of them.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub version: u32,
    pub alignment: u64,
    /// Key, type, the bytes of the value.
    pub keys: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<GgufTensor>,
    /// In place of the true counts.
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct GgufTensor {
    pub name: String,
    /// The innermost dimension first.
    pub dims: Vec<u64>,
    pub ty: u32,
    pub data: Vec<u8>,
    /// In place of the true offset.
    pub offset: Option<u64>,
}

impl Default for Gguf {
    fn default() -> Gguf {
        let (keys, tensors) = (Vec::new(), Vec::new());
        Gguf { version: 3, alignment: 32, keys, tensors, tensor_count: None, key_count: None }
    }
}

pub fn text_bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn array(kind: u32, len: usize, elements: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = [&kind.to_le_bytes()[..], &(len as u64).to_le_bytes()].concat();
    elements.for_each(|element| bytes.extend(element));
    bytes
}

impl Gguf {
    pub fn key(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.keys.push((key.to_owned(), kind, value));
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8, text_bytes(value));
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4, value.to_le_bytes().to_vec());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6, value.to_le_bytes().to_vec());
    }

    pub fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7, vec![u8::from(value)]);
    }

    pub fn texts(&mut self, key: &str, values: &[String]) {
        let value = array(8, values.len(), values.iter().map(|value| text_bytes(value)));
        self.key(key, 9, value);
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        let value = array(5, values.len(), values.iter().map(|value| value.to_le_bytes().to_vec()));
        self.key(key, 9, value);
    }

    pub fn f32s(&mut self, key: &str, values: &[f32]) {
        let value = array(6, values.len(), values.iter().map(|value| value.to_le_bytes().to_vec()));
        self.key(key, 9, value);
    }

    /// Adds a tensor of `dims` (the innermost first), quantized to `ty`.
    pub fn tensor(&mut self, name: &str, dims: &[u64], ty: BlockType, values: &[f32]) {
        let mut data = vec![0; ty.nbytes(values.len()).expect("whole blocks")];
        ggml::quantize(ty, values, &mut data);
        let (name, dims, ty) = (name.to_owned(), dims.to_vec(), ty.ggml_id());
        self.tensors.push(GgufTensor { name, dims, ty, data, offset: None });
    }

    pub fn named(&mut self, name: &str) -> &mut GgufTensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a tensor of the test")
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.keys {
            out.extend(text_bytes(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut next = 0_u64;
        for tensor in &self.tensors {
            out.extend(text_bytes(&tensor.name));
            out.extend(u32::try_from(tensor.dims.len()).expect("few").to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.ty.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(next).to_le_bytes());
            next = (next + tensor.data.len() as u64).next_multiple_of(self.alignment);
        }
        let align = usize::try_from(self.alignment).expect("small");
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(align), 0);
            out.extend(&tensor.data);
        }
        out
    }
}
