//! Looking into a model: where an error begins, what shapes it multiplies, what flows through it, which input channels carry
//! outliers, how a weight's values lie on its grid, what takes the time.

mod channels;
mod gpu_profile;
mod logger;
mod per_layer;
mod profile;
mod roofline;
mod shapes;
mod values;

pub use channels::{Channels, LayerChannels, channels};
pub use gpu_profile::GpuProfile;
pub use logger::{activation_stats, parameter_stats};
pub use per_layer::per_layer;
pub use profile::Profile;
pub use roofline::roofline;
pub use shapes::shapes;
pub use values::{ValuesConfig, distribution, inputs};
