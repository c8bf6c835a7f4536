//! Looking into a model: which input channels carry outliers, how a weight's values lie on its grid.

mod channels;
mod values;

pub use channels::{Channels, LayerChannels, channels};
pub use values::{ValuesConfig, distribution, inputs};
