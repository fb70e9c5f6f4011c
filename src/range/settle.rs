//! Fills in what follows from other quantizers: `Same` and `Product`. A bias that would overflow its integers raises its weight's scale, channel by channel.
//! Source: ONNX's convention for int32 biases (scale = input scale · weight scale, zero point 0).

use crate::error::{At, Error, Result};
use crate::graph::Model;
use crate::note::Notes;
use crate::quant::{Curve, Origin, Params, QuantizerId, ScaleKind, Zeros};

/// Products, once their factors are known. Quantizers that have scales already keep them unless they are products.
pub fn settle(model: &mut Model, notes: &mut Notes) -> Result<()> {
    for (node, id) in model.constant_sites() {
        let Some(Params { origin: Origin::Product(x, w), .. }) = model.quantizers[id].params else { continue };
        let value = model.graph.node(node).input(0).expect("a FakeQuant reads something");
        let bias = model.graph.constant(value).expect("it is a constant site").tensor.to_f32()?.into_owned();
        let name = model.quantizers[id].name.clone();
        product(model, id, x, w, &bias, notes).at(|| &name)?;
    }
    Ok(())
}

fn product(model: &mut Model, id: QuantizerId, x: QuantizerId, w: QuantizerId, bias: &[f32], notes: &mut Notes) -> Result<()> {
    let t = &mut model.quantizers;
    let (x, w) = (t.root(x), t.root(w));
    let missing = || Error::failed("its input's or weight's scale is not known yet");
    let input = t[x].params.as_ref().ok_or_else(missing)?.scale_at(0);
    let top = t[id].scheme.format.code_range().ok_or_else(|| Error::failed("a bias needs an integer format"))?.1 as f64;
    let pow2 = matches!(t[w].scheme.scale, ScaleKind::Pow2(_));
    let weights = t[w].params.as_mut().ok_or_else(missing)?;
    let channels = weights.scale.len();
    let mut raised = Vec::new();
    for (c, s) in weights.scale.iter_mut().enumerate() {
        let largest = if channels == 1 { bias.iter().fold(0.0f32, |m, b| m.max(b.abs())) } else { bias.get(c).map_or(0.0, |b| b.abs()) };
        // A margin of one part in ten thousand keeps the rounded code inside.
        let least = largest as f64 * 1.0001 / top / input as f64;
        if (*s as f64) < least {
            *s = if pow2 { 2f64.powf(least.log2().ceil()) as f32 } else { least as f32 };
            raised.push(c);
        }
    }
    let scale: Vec<f32> = weights.scale.iter().map(|s| s * input).collect();
    if let Some(zero) = scale.iter().position(|s| *s <= 0.0 || !s.is_finite()) {
        return Err(Error::failed(format!("the product of input and weight scale of channel {zero} is not a positive number")));
    }
    t[id].params = Some(Params { scale, nested: None, zero: Zeros::None, curve: Curve::Linear, origin: Origin::Product(x, w) });
    if !raised.is_empty() {
        notes.changed(&t[w].name, format!("scale of {} of {channels} channels raised so that the bias fits its integers", raised.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Node;
    use crate::quant::{Blocks, Scheme};
    use crate::tensor::Tensor;

    fn with_bias(bias: Vec<f32>) -> (Model, QuantizerId, QuantizerId) {
        let mut m = Model::default();
        let x = m.quantizers.add("x", Scheme::int(8, false));
        let w = m.quantizers.add("w", Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) });
        let b = m.quantizers.add("b", Scheme { blocks: Blocks::channel(0), ..Scheme::int(32, true) });
        m.quantizers[x].params = Some(Params::tensor(0.5, Some(0)));
        m.quantizers[w].params = Some(Params { scale: vec![0.25, 1e-12], ..Params::tensor(1.0, None) });
        m.quantizers[b].params = Some(Params { origin: Origin::Product(x, w), ..Params::tensor(0.0, None) });
        let v = m.graph.add_constant("bias", Tensor::of_f32(&[2], bias));
        let out = m.graph.add_value("bias_dq");
        m.graph.add_node(Node::fake_quant(b, "fb"), &[Some(v)], &[Some(out)]);
        (m, w, b)
    }

    #[test]
    fn a_bias_has_the_product_of_the_scales() {
        let (mut m, w, b) = with_bias(vec![1.0, 1e-4]);
        let mut notes = Notes::of("calibrate");
        settle(&mut m, &mut notes).unwrap();
        assert_eq!(m.quantizers[w].params.as_ref().unwrap().scale, [0.25, 1e-12]);
        assert_eq!(m.quantizers[b].params.as_ref().unwrap().scale, [0.125, 0.5e-12]);
        assert!(notes.list().is_empty());
    }

    #[test]
    fn a_bias_that_overflows_raises_its_channels_weight_scale() {
        let (mut m, w, b) = with_bias(vec![1.0, 1.0]);
        let mut notes = Notes::of("calibrate");
        settle(&mut m, &mut notes).unwrap();
        let scale = &m.quantizers[w].params.as_ref().unwrap().scale;
        assert_eq!(scale[0], 0.25);
        let code = 1.0 / m.quantizers[b].params.as_ref().unwrap().scale[1] as f64;
        assert!(code < i32::MAX as f64 && code > i32::MAX as f64 * 0.999, "{code}");
        assert_eq!(notes.list().len(), 1);
    }
}
