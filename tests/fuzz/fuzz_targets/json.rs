//! Any bytes as config.json, as a quantization's configuration and as tokenizer.json.
#![no_main]

use aolab::data::Tokenizer;
use aolab::model::ModelConfig;
use aolab::quantization::{config_from_dict, config_to_dict};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_json(bytes, None)
        && let Ok(ids) = tokenizer.encode("hello </s> 12 naïve \u{1F680}", true)
    {
        let _ = tokenizer.decode(&ids);
    }
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    if let Ok(config) = ModelConfig::from_json(&json)
        && config.head_dim <= 4096
    {
        let _ = config.inv_freq();
    }
    if let Ok(recipe) = config_from_dict(&json) {
        let again = config_to_dict(recipe.as_ref());
        config_from_dict(&again).expect("what is written is read");
    }
});
