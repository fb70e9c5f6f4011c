//! Writes a Clip from 0 as the Relu that it is where no code behind it lies above its upper bound, for targets that compute a Clip wrongly which cuts codes
//! off at one end alone. Exact. Needs quantizers with their scales. Declines: nothing.

use crate::graph::{Graph, Model, Node, NodeId, Op, Port, ValueId, bounds};
use crate::note::Notes;
use crate::quant;
use crate::target::{Must, Profile};

/// Looks at the Clips of whose codes a limit of the target asks that they end evenly.
pub fn relus(model: &mut Model, target: &Profile) -> Notes {
    let mut notes = Notes::of("lower");
    let asked = target.bound(model).into_iter().filter(|(_, limits)| limits.iter().any(|l| l.must == Must::Floor));
    let asked: Vec<NodeId> = asked.map(|(id, _)| id).filter(|id| is_relu(model, *id)).collect();
    for id in &asked {
        let g = &mut model.graph;
        let at = g.position(*id);
        let clip = g.remove_node(*id);
        let mut relu = Node::new(Op::Relu, clip.name.clone());
        relu.came_from = clip.came_from.clone();
        g.insert_node(at, relu, &[clip.input(0)], &[clip.output(0)]);
        clip.inputs().iter().skip(1).flatten().for_each(|v| g.remove_idle(*v));
    }
    if !asked.is_empty() {
        notes.changed("", format!("{} Clips are written as Relus: no code behind them lies above their upper bound", asked.len()));
    }
    notes
}

/// Whether a node is a Clip from 0 whose quantizers all begin below 0, and end at its upper bound or before.
fn is_relu(model: &Model, id: NodeId) -> bool {
    let g: &Graph = &model.graph;
    let node = g.node(id);
    let (Op::Clip, Some(y), Some((least, most))) = (node.op, node.output(0), bounds(g, node)) else { return false };
    let fits = |p: &Port| {
        let q = g.get_node(p.node).and_then(Node::quantizer).map(|q| &model.quantizers[model.quantizers.root(q)]);
        let params = q.and_then(|q| Some((&q.scheme, q.params.as_ref()?)));
        params.is_some_and(|(scheme, p)| quant::ends(scheme, p).1 <= most && quant::cut_ends(scheme, p, (least, most)) == [true, false])
    };
    let uses = |v: ValueId| g.value(v).uses();
    least == 0.0 && !g.is_output(y) && !uses(y).is_empty() && uses(y).iter().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Curve, Origin, Params, Scheme, Zeros};
    use crate::target::Limit;
    use crate::tensor::Tensor;

    /// x → Clip(least, 6) → Q/DQ in uint8 with this scale and zero point → y: what stands there then.
    fn written(least: f32, scale: f32, zero: i32, asked: bool) -> Op {
        let mut m = Model::default();
        let q = m.quantizers.add("y", Scheme::int(8, false));
        m.quantizers[q].params =
            Some(Params { scale: vec![scale], nested: None, zero: Zeros::Integer(vec![zero]), curve: Curve::Linear, origin: Origin::Fitted });
        let g = &mut m.graph;
        let [x, c, y] = ["x", "c", "y"].map(|n| g.add_value(n));
        let bounds = [least, 6.0].map(|n| Some(g.add_constant(&format!("n{n}"), Tensor::scalar(n))));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::new(Op::Clip, "clip"), &[Some(x), bounds[0], bounds[1]], &[Some(c)]);
        g.add_node(Node::fake_quant(q, "fake"), &[Some(c)], &[Some(y)]);
        let limits = if asked { vec![Limit { ops: vec![Op::Clip], must: Must::Floor, ..Limit::default() }] } else { vec![] };
        let notes = relus(&mut m, &Profile { limits, ..Profile::default() });
        let op = m.graph.nodes().next().unwrap().1.op;
        assert_eq!(notes.list().len(), (op == Op::Relu) as usize);
        op
    }

    #[test]
    fn a_clip_whose_upper_bound_no_code_reaches_is_a_relu() {
        assert_eq!(written(0.0, 1.0 / 32.0, 128, true), Op::Relu);
        assert_eq!(written(0.0, 1.0 / 32.0, 128, false), Op::Clip, "nobody asks");
        assert_eq!(written(0.0, 1.0 / 16.0, 128, true), Op::Clip, "codes up to 7.9: it cuts at both ends");
        assert_eq!(written(0.0, 6.0 / 255.0, 0, true), Op::Clip, "it cuts nothing");
        assert_eq!(written(-1.0, 1.0 / 32.0, 128, true), Op::Clip);
    }
}
