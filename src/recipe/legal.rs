//! What a target, or a tensor's place, cannot hold of what was asked: said before anything is done.

use super::read::granularity_name;
use crate::quant::Timing;
use crate::target::{Granularity, Override, Profile, SchemeKeys, Slot, scale_word};

/// Why what was asked cannot be.
pub struct Refusal {
    /// The key at fault, and another that may have said the same; empty: all of them together.
    pub keys: [&'static str; 2],
    pub why: String,
}

/// Why `target` does not hold the scheme of weights, activations or biases that these keys amount to.
pub fn refusal(target: &Profile, slot: Slot, keys: &SchemeKeys) -> Option<Refusal> {
    let held = |keys, what: String, held: String| Some(Refusal { keys, why: format!("target {} does not hold {what}; it holds {held}", target.name) });
    let wrong = |key, why: &str| Some(Refusal { keys: [key, ""], why: why.to_string() });
    let formats = target.legal.formats(slot);
    if let Some(format) = keys.format.as_ref().filter(|f| !formats.is_empty() && !formats.contains(f))
        && (slot == Slot::Bias || !keys.is_none())
    {
        let what = if keys.is_none() { "a float bias".to_string() } else { format.clone() };
        return held(["format", "bits"], what, formats.join(", "));
    }
    if keys.is_none() {
        return None;
    }
    let granularity = keys.granularity.unwrap_or(Granularity::Tensor);
    let dynamic = keys.timing == Some(Timing::Dynamic);
    match slot {
        Slot::Weights if !target.legal.granularity.is_empty() && !target.legal.granularity.contains(&granularity) => {
            let words: Vec<&str> = target.legal.granularity.iter().map(|g| granularity_name(*g)).collect();
            let what = format!("one scale a {}", granularity_name(granularity));
            return held(["granularity", "block_size"], what, format!("one a {}", words.join(", a ")));
        }
        Slot::Weights | Slot::Bias if dynamic => {
            return wrong("timing", "`timing: dynamic` is for activations: weights and biases are known before the model runs");
        }
        Slot::Weights | Slot::Bias if granularity == Granularity::Token => return wrong("granularity", "`granularity: token` is for activations"),
        Slot::Activations if granularity == Granularity::Token && !dynamic => {
            return wrong("granularity", "scales a token are found when the model runs: `granularity: token` needs `timing: dynamic` beside it");
        }
        Slot::Activations if granularity == Granularity::Gate => return wrong("granularity", "`granularity: gate` is for the weights of recurrent layers"),
        Slot::Activations if granularity == Granularity::Channel && keys.axis.is_none() => {
            return wrong("granularity", "`granularity: channel` of activations needs the `axis` of the channels beside it");
        }
        _ => {}
    }
    if target.legal.symmetric.contains(&slot) && keys.symmetric == Some(false) {
        return held(["symmetric", "zero_point"], "a zero point from data".into(), "symmetric ones".into());
    }
    match keys.scheme(Some(0)) {
        Err(e) => Some(Refusal { keys: ["", ""], why: e.to_string() }),
        Ok(scheme) => {
            target.legal.refuses_scales(&scheme)?;
            let what = match scale_word(&scheme.scale) {
                "codes" => "scales that are codes".to_string(),
                word => format!("{word} scales"),
            };
            held(["scale", "format"], what, target.legal.scales.join(", "))
        }
    }
}

/// The same of an override, over the recipe's `weights`, `activations` and `bias`; what is said names the key.
pub fn override_refusal(target: &Profile, over: &Override, base: [&SchemeKeys; 3]) -> Option<String> {
    let [weights, activations, bias] = base.map(|base| move |asked: &SchemeKeys| asked.clone().over(base));
    let of = |key: &str, slot, keys: SchemeKeys| refusal(target, slot, &keys).map(|r| format!("{key}: {}", r.why));
    let set = &over.set;
    let named = [
        set.weights.as_ref().and_then(|asked| of("weights", Slot::Weights, weights(asked))),
        set.activations.as_ref().and_then(|asked| of("activations", Slot::Activations, activations(asked))),
        set.bias.as_ref().and_then(|asked| of("bias", Slot::Bias, bias(asked))),
    ];
    let outputs = set.outputs.iter().filter_map(|(slot, asked)| of(&format!("outputs.{slot}"), Slot::Activations, activations(asked)));
    // What stands at an input is a weight or flows.
    let inputs = set.inputs.iter().filter_map(|(slot, asked)| {
        refusal(target, Slot::Weights, &weights(asked))?;
        of(&format!("inputs.{slot}"), Slot::Activations, activations(asked))
    });
    named.into_iter().flatten().chain(outputs).chain(inputs).next()
}
