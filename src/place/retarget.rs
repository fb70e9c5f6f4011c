//! A quantized file on its way to another target. The plan is the target's own; each quantizer of it that speaks of what had one in the file takes that
//! over, with its codes, wherever the target holds it: as it stands, or with the sign of its codes turned, which changes no number. Where it does not, the
//! target's scheme stands, over the range that the file's quantizer covered, or, with samples, over what these show.
//! Needs: a plan of the float graph, and what was taken off it. Declines: quantizers where the target wants none.

use super::fused::Floor;
use super::plan::{Plan, Planned, PortPlan};
use super::standing::{Standing, ends};
use super::wishes::Wishes;
use super::{Decision, Kind, Rules, insert};
use crate::error::{At, Error, Result};
use crate::graph::{Linear, Model, Node, NodeId, Op, Recurrent, Role, Site, ValueId, bounds};
use crate::note::Notes;
use crate::quant::{self, Codes, Format, Origin, Params, Quantizer, QuantizerId, ScaleKind, Scheme, Timing, Zero, Zeros};
use crate::target::{Granularity, Limit, Must, Slot, spelling};
use crate::tensor::{Tensor, pack};
use std::collections::{BTreeMap, BTreeSet};

/// What a user wants besides the target.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retarget {
    /// Whether there are samples: ranges that do not stay are then found anew.
    pub data: bool,
    /// Whether weights were asked for in a format: others do not stay.
    pub weights: bool,
    /// The same of activations.
    pub activations: bool,
    /// Whether the spelling takes weights in blocks that Q/DQ cannot say.
    pub packed: bool,
}

/// Places a model whose quantizers were taken off it.
///
/// # Errors
/// As [`super::place`]; values that the target quantizes, the file leaves float, and no sample shows.
pub fn retarget(model: &mut Model, rules: &Rules, standing: &Standing, how: Retarget) -> Result<(Notes, Vec<Decision>)> {
    let mut plan = super::plan(model, rules)?;
    let mut notes = std::mem::take(&mut plan.notes);
    let decisions = plan.decisions.clone();
    let codes = {
        let wishes = Wishes::of(model, rules)?;
        let mut m = Mover { model, rules, wishes, bound: rules.profile.bound(model), standing, how, notes: Notes::of("place"), kept: BTreeMap::new() };
        m.conversions(&mut plan);
        let codes = m.adopt(&mut plan)?;
        m.part(&mut plan);
        m.tell_removed(&plan);
        notes.append(m.notes);
        codes
    };
    insert::insert(model, plan)?;
    for ((node, slot), codes) in codes {
        let fake = model.graph.node(node).input(slot).and_then(|v| model.graph.value(v).producer());
        let (fake, _) = fake.ok_or_else(|| Error::failed("a port lost its quantizer"))?;
        model.codes.insert(Site::of(fake), codes);
    }
    drop_cuts(model, standing);
    Ok((notes, decisions))
}

/// What one planned quantizer serves.
#[derive(Debug, Default)]
struct Uses {
    values: Vec<ValueId>,
    ports: Vec<(NodeId, usize)>,
}

/// Codes for the ports of constants.
type PortCodes = BTreeMap<(NodeId, usize), Codes>;

struct Mover<'a> {
    model: &'a Model,
    rules: &'a Rules<'a>,
    wishes: Wishes<'a>,
    bound: BTreeMap<NodeId, Vec<&'a Limit>>,
    standing: &'a Standing,
    how: Retarget,
    notes: Notes,
    /// Planned quantizers that took over one of the file's, and which.
    kept: BTreeMap<usize, QuantizerId>,
}

fn uses(plan: &Plan) -> Vec<Uses> {
    let mut uses: Vec<Uses> = plan.quantizers.iter().map(|_| Uses::default()).collect();
    plan.stored.iter().chain(&plan.read).for_each(|(v, q)| uses[*q].values.push(*v));
    for (port, p) in &plan.ports {
        match p {
            PortPlan::Own(q) => uses[*q].ports.push(*port),
            PortPlan::Product { bias, .. } => uses[*bias].ports.push(*port),
        }
    }
    uses
}

/// One way to hold a quantizer: its scheme, its parameters, and what is added to every code.
#[derive(Clone)]
struct Form {
    scheme: Scheme,
    params: Params,
    turn: i32,
}

impl Mover<'_> {
    /// Ports that read a value under another quantizer than it has keep doing so, where the target has codes there and holds these.
    fn conversions(&mut self, plan: &mut Plan) {
        for (&(node, slot), &q) in &self.standing.reads {
            let Some(v) = self.model.graph.get_node(node).and_then(|n| n.input(slot)) else { continue };
            let Some(&own) = plan.stored.get(&v).or(plan.read.get(&v)) else { continue };
            if plan.kinds.get(&node) != Some(&Kind::Quantized) || plan.ports.contains_key(&(node, slot)) {
                continue;
            }
            let planned = Planned { params: None, ..plan.quantizers[own].clone() };
            let port = Uses { values: vec![], ports: vec![(node, slot)] };
            if self.fitting(&planned, &port, &[q]).is_ok() {
                plan.quantizers.push(planned);
                plan.ports.insert((node, slot), PortPlan::Own(plan.quantizers.len() - 1));
            }
        }
    }

    /// Puts the quantizer behind a Relu or Clip before it too, where the codes that were kept do not end where it cuts. That changes no number.
    fn part(&mut self, plan: &mut Plan) {
        let g = &self.model.graph;
        let mut parted = Vec::new();
        for &Floor { before: v, behind: y, exact } in &plan.floors {
            let Some(&q) = plan.stored.get(&y) else { continue };
            let (row, cut) = (&plan.quantizers[q], g.value(y).producer().and_then(|(n, _)| bounds(g, g.node(n))));
            if let (Some(p), Some(cut)) = (&row.params, cut)
                && !quant::swallows(&row.scheme, p, cut, exact)
            {
                plan.stored.insert(v, q);
                parted.push(g.value(v).name.clone());
            }
        }
        if let Some(first) = parted.first() {
            let more = if parted.len() > 1 { format!(" (and {} more)", parted.len() - 1) } else { String::new() };
            self.notes.changed(
                first,
                format!("has the codes of what a Relu or Clip makes of it{more}, which changes no number: codes that were kept go beyond what it cuts"),
            );
        }
    }

    /// The quantizers of the file that speak of what a planned one serves.
    fn olds(&self, uses: &Uses) -> Vec<QuantizerId> {
        let s = self.standing;
        let of_port = |(node, slot): &(NodeId, usize)| {
            let v = self.model.graph.node(*node).input(*slot)?;
            match s.constants.get(&v) {
                Some(held) => self.model.graph.constant(v).is_some_and(|c| c.tensor == held.stands).then_some(held.quantizer),
                None => s.reads.get(&(*node, *slot)).or(s.values.get(&v)).copied(),
            }
        };
        let mut olds: Vec<QuantizerId> = uses.values.iter().filter_map(|v| s.values.get(v).copied()).chain(uses.ports.iter().filter_map(of_port)).collect();
        olds.sort();
        olds.dedup();
        olds
    }

    fn adopt(&mut self, plan: &mut Plan) -> Result<PortCodes> {
        let (mut codes, mut again, mut fixed, mut open) = (PortCodes::new(), BTreeMap::<String, Vec<String>>::new(), 0usize, Vec::new());
        let (mut kept, mut turned) = (0usize, 0usize);
        for (i, uses) in uses(plan).iter().enumerate() {
            let product = uses.ports.iter().any(|p| matches!(plan.ports.get(p), Some(PortPlan::Product { .. })));
            if product || uses.values.is_empty() && uses.ports.is_empty() {
                continue;
            }
            let olds = self.olds(uses);
            let planned = &plan.quantizers[i];
            let flows = !uses.values.is_empty() || uses.ports.iter().any(|p| !self.is_constant(*p));
            if olds.is_empty() {
                if flows && planned.params.is_none() && planned.scheme.timing == Timing::Static {
                    open.push(planned.name.clone());
                }
                continue;
            }
            match self.fitting(planned, uses, &olds) {
                Ok(form) => {
                    for port in uses.ports.iter().filter(|p| self.is_constant(**p)) {
                        if let Some(c) = self.codes(*port, &form)? {
                            codes.insert(*port, c);
                        }
                    }
                    kept += 1;
                    turned += (form.turn != 0) as usize;
                    self.kept.insert(i, olds[0]);
                    plan.quantizers[i] = Planned { name: planned.name.clone(), scheme: form.scheme, params: Some(form.params) };
                }
                Err(why) => {
                    again.entry(why).or_default().push(planned.name.clone());
                    if planned.params.is_some() {
                        fixed += 1;
                    } else if flows && !self.how.data {
                        plan.quantizers[i].params = self.over(&olds, uses, &plan.quantizers[i])?;
                    }
                    if plan.quantizers[i].params.is_none() && flows && !self.how.data {
                        open.push(plan.quantizers[i].name.clone());
                    }
                }
            }
        }
        if let (Some(first), false) = (open.first(), self.how.data) {
            let more = if open.len() > 1 { format!(" and {} more", open.len() - 1) } else { String::new() };
            let target = &self.rules.profile.name;
            return Err(Error::usage(format!(
                "target {target} wants {first}{more} in codes, for which the file has no range: give --data, or keep their nodes float with --exclude"
            )));
        }
        let biases = self.biases(plan, &mut codes)?;
        let exactly = if turned > 0 { format!(", {turned} of them with the sign of their codes turned, which changes no number") } else { String::new() };
        self.notes
            .changed("", format!("{kept} quantizers of the file are kept{exactly}, and the codes of {} constants, {biases} biases among them", codes.len()));
        let ranges = if self.how.data { "over what the samples show" } else { "over the range that they covered" };
        for (why, names) in again {
            let more = if names.len() > 1 { format!(" (and {} more)", names.len() - 1) } else { String::new() };
            self.notes.changed(&names[0], format!("made anew{more}, {ranges}: {why}"));
        }
        if fixed > 0 {
            self.notes.changed("", format!("{fixed} quantizers have the range that the target fixes"));
        }
        Ok(codes)
    }

    fn is_constant(&self, (node, slot): (NodeId, usize)) -> bool {
        self.model.graph.node(node).input(slot).is_some_and(|v| self.model.graph.constant(v).is_some())
    }

    /// What the file's quantizers become where the target holds them; or why it does not.
    fn fitting(&self, planned: &Planned, uses: &Uses, olds: &[QuantizerId]) -> std::result::Result<Form, String> {
        let table = &self.standing.table;
        let first = &table[olds[0]];
        let parts = |q: &Quantizer| q.params.as_ref().map(|p| (p.scale.clone(), p.zero.clone(), p.curve.clone()));
        if olds[1..].iter().any(|q| table[*q].scheme.format != first.scheme.format || parts(&table[*q]) != parts(first)) {
            return Err("what shares one quantizer on the target has several in the file".into());
        }
        if first.scheme.timing != planned.scheme.timing {
            return Err("scales are found at another time than in the file".into());
        }
        let Some(params) = &first.params else { return Err("the file gives no scale".into()) };
        let own = Form { scheme: first.scheme.clone(), params: params.clone(), turn: 0 };
        if let Some(fixed) = planned.params.as_ref().filter(|p| p.origin == Origin::Fixed) {
            let same = fixed.scale == params.scale && (0..fixed.scale.len()).all(|i| fixed.zero_at(i) == params.zero_at(i));
            if planned.scheme.format != first.scheme.format || !same {
                return Err("the target knows its range".into());
            }
        }
        // But for weights of layers, the target's own sign comes first, so that all around a node are alike.
        let weight = uses.ports.iter().any(|(node, slot)| Linear::of(&self.model.graph, *node).is_some_and(|l| l.constant && l.weight_slot == *slot));
        let turned = turned(&own);
        let mut forms: Vec<&Form> = std::iter::once(&own).chain(&turned).collect();
        if turned.as_ref().is_some_and(|t| !weight && t.scheme.format == planned.scheme.format) {
            forms.reverse();
        }
        match forms.into_iter().find(|form| self.refused(planned, uses, form).is_none()) {
            Some(form) => Ok(self.as_planned(form.clone(), planned)),
            None => Err(self.refused(planned, uses, &own).unwrap_or_default()),
        }
    }

    /// Words of the scheme that say the same of these parameters are the plan's, by which later steps go.
    fn as_planned(&self, mut form: Form, planned: &Planned) -> Form {
        if matches!(planned.scheme.scale, ScaleKind::Pow2(_)) && form.scheme.scale == ScaleKind::Exact(crate::tensor::DType::F32) {
            form.scheme.scale = planned.scheme.scale.clone();
        }
        if let (Zeros::Integer(z), Zero::Fixed(fixed)) = (&form.params.zero, planned.scheme.zero)
            && z.iter().all(|z| *z == fixed)
        {
            form.scheme.zero = planned.scheme.zero;
        }
        form.params.origin = Origin::Fitted;
        form
    }

    /// Why the target does not hold a form at one of its places.
    fn refused(&self, planned: &Planned, uses: &Uses, form: &Form) -> Option<String> {
        let profile = self.rules.profile;
        let g = &self.model.graph;
        let (scheme, params) = (&form.scheme, Some(&form.params));
        let opset = |shape: Option<&[usize]>| match spelling::qdq_opset(scheme, shape) {
            Err(_) if self.how.packed && shape.is_some() => None,
            Err(why) => Some(why),
            Ok(need) => profile.opset.filter(|most| *most < need).map(|most| format!("{scheme} needs opset {need}, and the target reads at most {most}")),
        };
        let integer = |f: Format| matches!(f, Format::Int { .. });
        let alike = |a: Format, b: Format| a == b || integer(a) && integer(b) && a.bits() == b.bits();
        let asked = |asked: bool| asked && !alike(scheme.format, planned.scheme.format);
        let limits = |node: NodeId, slot: Slot, result: bool| {
            self.bound.get(&node).and_then(|bound| bound.iter().find_map(|l| l.refuses(slot, scheme, params, result, false)))
        };
        for &v in &uses.values {
            if asked(self.how.activations || self.wishes.asks_of_value(v)) {
                return Some(format!("{} was asked for", planned.scheme));
            }
            if !scheme.blocks.is_tensor() {
                return Some("the target has one scale a tensor".into());
            }
            let readers = g.value(v).uses().iter().find_map(|p| limits(p.node, Slot::Activations, false));
            let maker = g.value(v).producer().and_then(|(n, _)| limits(n, Slot::Activations, true).or_else(|| self.uneven(n, form)));
            let why = profile.legal.refuses(Slot::Activations, scheme, params).or(readers).or(maker).or_else(|| opset(None));
            if why.is_some() {
                return why;
            }
        }
        for &(node, slot) in &uses.ports {
            let n = g.node(node);
            let linear = Linear::of(g, node).filter(|l| l.weight_slot == slot);
            let constant = n.input(slot).and_then(|v| g.constant(v)).map(|c| c.tensor.shape());
            let weight = constant.is_some()
                && n.op.role(slot) != Role::Bias
                && (linear.is_some() || !planned.scheme.blocks.is_tensor() || Recurrent::of(g, node).is_some());
            let kind = match (n.op.role(slot), weight) {
                (Role::Bias, _) => Slot::Bias,
                (_, true) => Slot::Weights,
                _ => Slot::Activations,
            };
            if asked(if weight { self.how.weights } else { self.how.activations } || self.wishes.asks_of_port(node, slot)) {
                return Some(format!("{} was asked for", planned.scheme));
            }
            let granular = || self.granular(node, linear.as_ref(), planned, scheme, weight);
            let why = profile.legal.refuses(kind, scheme, params).or_else(|| limits(node, kind, false)).or_else(granular).or_else(|| opset(constant));
            if why.is_some() {
                return why;
            }
        }
        None
    }

    /// Why a node may not make such codes: it cannot make all of them. A Clip that the highest code makes a Relu is written as one.
    fn uneven(&self, node: NodeId, form: &Form) -> Option<String> {
        let limit = self.bound.get(&node)?.iter().find(|l| l.must == Must::Floor)?;
        let bounds = bounds(&self.model.graph, self.model.graph.node(node));
        let relu = bounds.is_some_and(|(least, most)| least == 0.0 && quant::ends(&form.scheme, &form.params).1 <= most);
        let fine = relu || quant::cuts_evenly(&form.scheme, &form.params, bounds);
        (!fine).then(|| format!("has codes that it cannot make: {}", limit.why))
    }

    /// Why scales of a constant do not lie as the target has them.
    fn granular(&self, node: NodeId, linear: Option<&Linear>, planned: &Planned, scheme: &Scheme, weight: bool) -> Option<String> {
        if !weight {
            let alike = scheme.blocks.is_tensor() || scheme.blocks == planned.scheme.blocks;
            return (!alike).then(|| format!("the target has {} there", planned.scheme.blocks));
        }
        let (held, _) = self.rules.profile.granularities(self.bound.get(&node).map_or(&[][..], Vec::as_slice));
        let holds = |own: Granularity| held.is_empty() || held.contains(&own);
        let rank = linear.and_then(|l| self.model.graph.constant(l.weight)).map_or(0, |c| c.tensor.rank()) as i32;
        let of = |axis: i32| if axis < 0 { axis + rank } else { axis };
        let own = if scheme.blocks.is_tensor() {
            Granularity::Tensor
        } else if scheme.blocks.channel_axis().is_some() {
            Granularity::Channel
        } else {
            Granularity::Block
        };
        if !holds(own) {
            return Some(format!("the target does not hold {}", scheme.blocks));
        }
        let Some(l) = linear else {
            let alike = scheme.blocks.is_tensor() || scheme.blocks == planned.scheme.blocks || scheme.blocks.block_axis().is_some();
            return (!alike).then(|| format!("the target has {} there", planned.scheme.blocks));
        };
        let astray = scheme.blocks.channel_axis().is_some_and(|a| of(a) != l.out_axis as i32);
        astray.then(|| "its scales do not lie along output channels".into())
    }

    /// Codes of the constant at a port, where the file holds them.
    fn codes(&self, (node, slot): (NodeId, usize), form: &Form) -> Result<Option<Codes>> {
        let held = self.model.graph.node(node).input(slot).and_then(|v| self.standing.constants.get(&v));
        let Some(codes) = held.and_then(|h| h.codes.as_ref()) else { return Ok(None) };
        if form.turn == 0 {
            return Ok(Some(codes.clone()));
        }
        let storage = form.scheme.format.storage().ok_or_else(|| Error::failed("a format without a type"))?;
        let moved: Vec<i32> = codes.unpack().into_iter().map(|c| c + form.turn).collect();
        Ok(Some(Codes(Tensor::new(storage, codes.0.shape().to_vec(), pack::pack(&moved, storage).into())?)))
    }

    /// Parameters of a planned quantizer that cover what the file's did, as far as a Relu or Clip lets values go.
    fn over(&self, olds: &[QuantizerId], uses: &Uses, planned: &Planned) -> Result<Option<Params>> {
        let rows = olds.iter().map(|q| &self.standing.table[*q]);
        let ranges: Vec<(f32, f32)> = rows.filter_map(|r| ends(&r.scheme, r.params.as_ref())).collect();
        if ranges.len() < olds.len() || planned.scheme.timing == Timing::Dynamic || !planned.scheme.blocks.is_tensor() {
            return Ok(None);
        }
        let (lo, hi) = ranges.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), (lo, hi)| (a.min(*lo), b.max(*hi)));
        let g = &self.model.graph;
        let cut = |v: &ValueId| g.value(*v).producer().and_then(|(n, _)| bounds(g, g.node(n))).unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
        let all = uses.values.iter().map(cut).reduce(|(a, b), (lo, hi)| (a.min(lo), b.max(hi)));
        let (lo, hi) = all.map_or((lo, hi), |(least, most)| (lo.max(least.min(hi)), hi.min(most.max(lo))));
        quant::fit_range(&planned.scheme, &[lo], &[hi]).at(|| &planned.name).map(Some)
    }

    /// Codes of biases, where input and weight keep the scales whose product theirs is.
    fn biases(&self, plan: &Plan, codes: &mut PortCodes) -> Result<usize> {
        let mut n = 0;
        for (&(node, slot), port) in &plan.ports {
            let PortPlan::Product { bias, input, weight } = port else { continue };
            let (Some(_), Some(_)) = (self.kept.get(input), self.kept.get(weight)) else { continue };
            let Some(held) = self.model.graph.node(node).input(slot).and_then(|v| self.standing.constants.get(&v)) else { continue };
            let row = &self.standing.table[held.quantizer];
            let (Some(old), Some(c)) = (&row.params, &held.codes) else { continue };
            let (Some(x), Some(w)) = (&plan.quantizers[*input].params, &plan.quantizers[*weight].params) else { continue };
            let near = |i: usize| (x.scale_at(0) * w.scale[i] / old.scale_at(i) - 1.0).abs() < 1e-6;
            let one = old.scale.len() == 1 || old.scale.len() == w.scale.len();
            if row.scheme.format == plan.quantizers[*bias].scheme.format && one && (0..w.scale.len()).all(near) {
                codes.insert((node, slot), c.clone());
                n += 1;
            }
        }
        Ok(n)
    }

    /// Says of which values and constants the target wants no codes, and why.
    fn tell_removed(&mut self, plan: &Plan) {
        let mut gone: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let g = &self.model.graph;
        let served: BTreeSet<ValueId> =
            plan.stored.keys().chain(plan.read.keys()).copied().chain(plan.ports.keys().filter_map(|(n, s)| g.node(*n).input(*s))).collect();
        for v in self.standing.values.keys().chain(self.standing.constants.keys()).filter(|v| g.has_value(**v) && !served.contains(v)) {
            let nodes = g.value(*v).producer().map(|(n, _)| n).into_iter().chain(g.value(*v).uses().iter().map(|p| p.node));
            let float = |n: NodeId| if let Some(Kind::Float(why)) = plan.kinds.get(&n) { Some(why.clone()) } else { None };
            let why = nodes.into_iter().find_map(float).unwrap_or_else(|| "the target has no codes there".into());
            gone.entry(why).or_default().push(g.value(*v).name.clone());
        }
        for (why, names) in gone {
            self.notes.declined_alike(&names, |more| format!("its quantizer is taken away{more}: {why}"));
        }
    }
}

/// The same numbers on codes of the other sign.
fn turned(own: &Form) -> Option<Form> {
    let Format::Int { bits: bits @ ..=16, signed, narrow: false } = own.scheme.format else { return None };
    let half = 1i32 << (bits - 1);
    let turn = if signed { half } else { -half };
    let zeros: Vec<i32> = match &own.params.zero {
        Zeros::None => vec![turn],
        Zeros::Integer(z) => z.iter().map(|z| z + turn).collect(),
        Zeros::Real(_) => return None,
    };
    let none = !signed && zeros.iter().all(|z| *z == 0);
    let zero = if none { Zeros::None } else { Zeros::Integer(zeros) };
    let scheme =
        Scheme { format: Format::Int { bits, signed: !signed, narrow: false }, zero: if none { Zero::None } else { Zero::Integer }, ..own.scheme.clone() };
    Some(Form { scheme, params: Params { zero, ..own.params.clone() }, turn })
}

/// Clips that cut nothing but what the quantizers behind them cut go; those that only these quantizers' upper ends make more than a Relu become one.
fn drop_cuts(model: &mut Model, standing: &Standing) {
    for &id in &standing.cuts {
        let g = &model.graph;
        let Some(node) = g.get_node(id).filter(|n| n.op == Op::Clip) else { continue };
        let (Some(x), Some(y), Some((_, most))) = (node.input(0), node.output(0), bounds(g, node)) else { continue };
        let behind = |p: &crate::graph::Port| {
            let row = &model.quantizers[model.quantizers.root(g.get_node(p.node)?.quantizer()?)];
            ends(&row.scheme, row.params.as_ref())
        };
        let all: Option<Vec<(f32, f32)>> = g.value(y).uses().iter().map(behind).collect();
        let Some(all) = all.filter(|a| !a.is_empty() && !g.is_output(y)) else { continue };
        if all.iter().any(|(_, hi)| *hi > most) {
            continue;
        }
        let (name, at) = (node.name.clone(), g.position(id));
        let bounds: Vec<ValueId> = node.inputs()[1..].iter().flatten().copied().collect();
        let g = &mut model.graph;
        if all.iter().any(|(lo, _)| *lo < 0.0) {
            g.remove_node(id);
            g.insert_node(at, Node::new(Op::Relu, name), &[Some(x)], &[Some(y)]);
        } else {
            let name = g.value(y).name.clone();
            if g.bypass(id) && !g.is_output(x) {
                g.rename_value(x, &name);
            }
        }
        bounds.into_iter().for_each(|v| g.remove_idle(v));
    }
}
