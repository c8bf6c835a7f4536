//! The list of workflows: from it come the reading of configurations and weights, and the support table.

use std::sync::Arc;

use super::config::Typed;
use super::stored::Stored;
use super::{
    Recipe, auto_round, awq, bitnet, codebook, codebook_coreml, embedding, float8,
    float8_dynamic_int4, floatx, gguf, gptq, groupwise_lut, int4_dynamic_int4, int4_weight_only,
    int8_dynamic, int8_dynamic_int4, int8_dynamic_intx, int8_lut, int8_static, int8_weight_only,
    intx_weight_only, module_swap, mx, nf4, nvfp4, sinq, smoothquant, spinquant, uintx_bit_packed,
    uintx_weight_only,
};
use crate::error::Result;
use crate::model::Weight;
use crate::table::Table;

/// What there is to know of a workflow.
#[derive(Clone, Copy, Debug)]
pub struct Workflow {
    /// Its command: `int4-weight-only`.
    pub name: &'static str,
    /// The ids of what it does in the list of torchao's features.
    pub ids: &'static [&'static str],
    /// torchao's configuration class.
    pub config_type: &'static str,
    /// The `_type` of its weights in files.
    pub weight_type: &'static str,
    /// Which granularities it takes.
    pub granularity: &'static str,
    /// The kernels that multiply with its weights.
    pub kernel: &'static str,
    pub(super) config_from_dict: fn(&Typed<'_>) -> Result<Arc<dyn Recipe>>,
    pub(super) read_weight: fn(&Typed<'_>, Stored) -> Result<Arc<dyn Weight>>,
}

/// Every workflow.
pub const WORKFLOWS: &[Workflow] = &[
    auto_round::WORKFLOW,
    awq::WORKFLOW,
    bitnet::WORKFLOW,
    codebook::WORKFLOW,
    codebook_coreml::WORKFLOW,
    embedding::TIED_WORKFLOW,
    embedding::WORKFLOW,
    float8::DYNAMIC,
    float8::STATIC,
    float8::WEIGHT_ONLY,
    float8_dynamic_int4::WORKFLOW,
    floatx::WORKFLOW,
    gguf::WORKFLOW,
    gptq::WORKFLOW,
    groupwise_lut::WORKFLOW,
    int4_dynamic_int4::WORKFLOW,
    int4_weight_only::WORKFLOW,
    int8_dynamic::WORKFLOW,
    int8_dynamic_int4::WORKFLOW,
    int8_dynamic_intx::WORKFLOW,
    int8_lut::WORKFLOW,
    int8_static::WORKFLOW,
    int8_weight_only::WORKFLOW,
    intx_weight_only::WORKFLOW,
    module_swap::WORKFLOW,
    mx::DYNAMIC,
    mx::WEIGHT_ONLY,
    nf4::WORKFLOW,
    nvfp4::DYNAMIC,
    nvfp4::WEIGHT_ONLY,
    sinq::WORKFLOW,
    smoothquant::WORKFLOW,
    spinquant::WORKFLOW,
    uintx_bit_packed::DYNAMIC,
    uintx_bit_packed::WORKFLOW,
    uintx_weight_only::WORKFLOW,
];

/// The workflows as a table, as the README shows them.
pub fn support_table() -> Result<Table> {
    let mut table = Table::new("Workflows")
        .column("workflow")
        .column("torchao")
        .column("granularity")
        .column("CPU kernel")
        .column("ids");
    for workflow in WORKFLOWS {
        table.push([
            workflow.name.into(),
            workflow.config_type.into(),
            workflow.granularity.into(),
            workflow.kernel.into(),
            workflow.ids.join(", ").into(),
        ])?;
    }
    Ok(table)
}
