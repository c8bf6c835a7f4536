/// The shape of a linear layer's call: `y (m, n) = x (m, k) · W (n, k)ᵀ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows of the activation: tokens.
    pub m: usize,
    /// Rows of the weight: output features.
    pub n: usize,
    /// Columns of both: input features.
    pub k: usize,
}
