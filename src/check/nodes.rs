//! One verdict a node: by the profile's lists and limits, then by what stands around it.

use super::codes::{Codes, is_cut_evenly, same};
use super::{Row, Verdict};
use crate::graph::{Flow, Graph, Inferred, InputShapes, Linear, Model, Node, NodeId, Op, Recurrent, Role, ValueId, constant_behind, infer};
use crate::quant::QuantizerId;
use crate::target::{Fate, Granularity, Limit, Must, Profile, Slot, Spelling, name_of};
use crate::tensor::DType;
use std::collections::BTreeMap;

/// What is to be said of a node.
struct Word {
    verdict: Verdict,
    rule: &'static str,
    reason: String,
    remedy: String,
}

impl Word {
    fn new(verdict: impl Into<Verdict>, rule: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Word {
        Word { verdict: verdict.into(), rule, reason: reason.into(), remedy: remedy.into() }
    }

    fn fine(verdict: Verdict, rule: &'static str) -> Word {
        Word::new(verdict, rule, "", "")
    }
}

fn row_of(g: &Graph, node: &Node, word: Word) -> Row {
    let made = || node.outputs().iter().flatten().next().map(|v| g.value(*v).name.clone()).unwrap_or_default();
    Row {
        node: if node.name.is_empty() { made() } else { node.name.clone() },
        op: node.op_type.to_string(),
        verdict: word.verdict,
        rule: word.rule.to_string(),
        reason: word.reason,
        remedy: word.remedy,
    }
}

/// A model of which only the ops are looked at.
pub fn by_op(model: &Model, profile: &Profile, inferred: &Inferred) -> Vec<Row> {
    let barred = profile.barred(model, inferred);
    let speaks = model.graph.nodes().filter(|(_, n)| n.op.flow() != Flow::Quantize);
    let word = |id, node: &Node| by_lists(profile, inferred, node, barred.get(&id).copied()).unwrap_or(Word::fine(Verdict::Integer, "quantize"));
    speaks.map(|(id, node)| row_of(&model.graph, node, word(id, node))).collect()
}

/// Rows of operators that are on codes by themselves, in spellings that the target reads.
pub fn spelled(model: &Model, profile: &Profile) -> Vec<Row> {
    let barred = profile.barred(model, &Inferred::default());
    let reads = |s: Spelling| profile.forms.as_ref().is_none_or(|f| f.contains(&s));
    let word = |id: NodeId, node: &Node| match (barred.get(&id), Spelling::of(node.op)) {
        (Some(limit), _) => Some(Word::new(limit.then, "limits", limit.why.clone(), limit.remedy.clone())),
        (None, Spelling::QOperator | Spelling::Dynamic) => Some(Word::fine(Verdict::Integer, "forms")),
        (None, Spelling::WeightOnly) => Some(Word::new(Verdict::Float, "forms", "only its weights are codes", "")),
        _ => None,
    };
    let own = model.graph.nodes().filter(|(_, n)| n.op.flow() == Flow::Quantize && n.op != Op::FakeQuant && reads(Spelling::of(n.op)));
    own.filter_map(|(id, n)| Some(row_of(&model.graph, n, word(id, n)?))).collect()
}

/// What lists and limits say of a node, wherever it stands; `None`: it can run on codes.
fn by_lists(profile: &Profile, inferred: &Inferred, node: &Node, barred: Option<&Limit>) -> Option<Word> {
    if let Some(limit) = barred {
        return Some(Word::new(limit.then, "limits", limit.why.clone(), limit.remedy.clone()));
    }
    let reals = node.outputs().iter().flatten().next().is_some_and(|v| inferred.get(*v).dtype.is_none_or(DType::is_float));
    if node.op.flow() == Flow::Meta || node.op != Op::Other && !reals {
        return Some(Word::fine(Verdict::Exact, "exact"));
    }
    if profile.float.contains(&node.op) {
        let reason = if profile.quantize.is_empty() { String::new() } else { format!("the target runs {} in float", node.op_type) };
        return Some(Word::new(Verdict::Float, "float", reason, ""));
    }
    if [&profile.quantize, &profile.moves, &profile.weights_only].iter().any(|l| l.contains(&node.op)) {
        return None;
    }
    let reason = match profile.others {
        Fate::Float => format!("the target does not run {} on codes", node.op_type),
        Fate::Split => format!("the target does not run {}: the graph is split around it", node.op_type),
        Fate::Refused => format!("the target does not know {}", node.op_type),
    };
    let remedy = match profile.spelled.contains(&node.op) {
        true => "`requant convert` for this target writes it in operators that it runs",
        false => "rewrite the model without it, or cut the model there",
    };
    Some(Word::new(profile.others, "others", reason, remedy))
}

/// Rows of a lifted model. Constants that are codes are given a tensor, so that weights are seen as such.
pub fn rows(model: &mut Model, profile: &Profile, quantized: bool) -> Vec<Row> {
    let inferred = infer(model, &InputShapes::new());
    let sites: Vec<(NodeId, crate::tensor::Tensor)> = model.codes.iter().filter(|(s, _)| s.path.is_empty()).map(|(s, c)| (s.node, c.0.clone())).collect();
    for (id, tensor) in sites {
        if model.graph.get_node(id).is_some_and(|n| n.input(0).is_none()) {
            let v = model.graph.add_constant("codes", tensor);
            model.graph.set_input(id, 0, Some(v));
        }
    }
    if !quantized {
        return by_op(model, profile, &inferred);
    }
    let judge = Judge {
        model,
        profile,
        inferred: &inferred,
        codes: Codes::of(model, profile, &inferred),
        barred: profile.barred(model, &inferred),
        bound: profile.bound(model),
    };
    let mut words: BTreeMap<NodeId, Word> = BTreeMap::new();
    for (id, node) in model.graph.nodes().filter(|(_, n)| n.op != Op::FakeQuant) {
        let word = judge.word(id, node, &words);
        words.insert(id, word);
    }
    judge.unfuse(&mut words);
    model.graph.nodes().filter_map(|(id, node)| Some(row_of(&model.graph, node, words.remove(&id)?))).collect()
}

struct Judge<'a> {
    model: &'a Model,
    profile: &'a Profile,
    inferred: &'a Inferred,
    codes: Codes,
    barred: BTreeMap<NodeId, &'a Limit>,
    bound: BTreeMap<NodeId, Vec<&'a Limit>>,
}

const CONVERT: &str = "convert the float model for this target";

impl Judge<'_> {
    fn name(&self, v: ValueId) -> &str {
        &self.model.graph.value(v).name
    }

    /// The verdict on a node, after those on the nodes before it.
    fn word(&self, id: NodeId, node: &Node, before: &BTreeMap<NodeId, Word>) -> Word {
        if let Some(word) = by_lists(self.profile, self.inferred, node, self.barred.get(&id).copied()) {
            return word;
        }
        if self.profile.weights_only.contains(&node.op) {
            return self.illegal(id, node).unwrap_or(Word::new(Verdict::Float, "weights_only", "only its weights are codes", ""));
        }
        let emulated = || {
            let reason = || format!("the target computes {} in float, between codes", node.op_type);
            let alone = !node.inputs().iter().flatten().any(|v| self.codes.is_inner(*v));
            (alone && self.profile.emulated.contains(&node.op)).then(|| Word::new(Verdict::Float, "emulated", reason(), ""))
        };
        let unasked = || {
            let weight = node.input(1).filter(|w| self.model.graph.constant(*w).is_some() && self.is_quantized_unasked(node, 1))?;
            let reason = format!("its float weight {} is quantized unasked, with one scale a tensor", self.name(weight));
            Some(Word::new(Verdict::Integer, "shield", reason, CONVERT))
        };
        let word = self.operands(node, before).or_else(|| self.illegal(id, node)).or_else(|| self.result(node)).or_else(emulated).or_else(unasked);
        let word = word.unwrap_or_else(|| self.shared(node));
        let barred = self.bound.get(&id).and_then(|b| b.iter().find(|l| l.must == Must::Codes)).filter(|_| word.verdict == Verdict::Float);
        match barred {
            Some(l) => Word::new(l.then, "limits", format!("{}: {}", word.reason, l.why), l.remedy.clone()),
            None => word,
        }
    }

    /// An operand that is no codes.
    fn operands(&self, node: &Node, before: &BTreeMap<NodeId, Word>) -> Option<Word> {
        let g = &self.model.graph;
        for (slot, v) in node.inputs().iter().enumerate().filter_map(|(s, v)| Some((s, (*v)?))) {
            let scaled = self.profile.normalization.is_some() && node.scales();
            let all = scaled || self.profile.code_constants.contains(&node.op);
            let counts = node.flows(slot) || all && node.op.role(slot) == Role::Constant;
            if !counts || self.codes.get(v).is_some() || self.inferred.get(v).dtype.is_some_and(|t| !t.is_float()) {
                continue;
            }
            if let Some(c) = g.constant(v) {
                let stays = self.profile.float_constants.contains(&node.op);
                let one = !stays && c.tensor.len() <= 1 && node.op.flow() == Flow::Arithmetic || node.op.flow() == Flow::Move;
                if !all && one || self.is_quantized_unasked(node, slot) {
                    continue;
                }
                return Some(Word::new(Verdict::Float, "operands", format!("its constant {} is float", self.name(v)), CONVERT));
            }
            let maker = g.value(v).producer().and_then(|(n, _)| before.get(&n));
            match maker {
                Some(w) if self.codes.is_inner(v) && w.verdict == Verdict::Integer => continue,
                Some(w) if self.codes.is_inner(v) => return Some(Word::new(w.verdict, w.rule, w.reason.clone(), w.remedy.clone())),
                _ => {}
            }
            return Some(Word::new(Verdict::Float, "operands", format!("its operand {} is float", self.name(v)), CONVERT));
        }
        None
    }

    /// Whether the runtime quantizes a float weight that stands between codes.
    fn is_quantized_unasked(&self, node: &Node, slot: usize) -> bool {
        slot == 1 && self.profile.shield.contains(&node.op) && node.input(0).is_some_and(|x| self.codes.get(x).is_some()) && self.result(node).is_none()
    }

    /// A result that somebody takes as float.
    fn result(&self, node: &Node) -> Option<Word> {
        let g = &self.model.graph;
        let v = node.outputs().iter().flatten().copied().find(|v| !g.value(*v).uses().is_empty() || g.is_output(*v))?;
        if self.profile.float_results.contains(&node.op) && !self.is_cut(node, v) || node.op.flow() == Flow::Recurrent {
            return None;
        }
        let fine = self.codes.is_inner(v) || self.codes.is_stored(g, v) || self.codes.get(v).is_some() && !g.is_output(v);
        if fine {
            return None;
        }
        let who = if g.is_output(v) { "leaves the model".to_string() } else { "is read".to_string() };
        Some(Word::new(Verdict::Float, "results", format!("its result {} {who} as float", self.name(v)), CONVERT))
    }

    /// Whether what would vanish into the quantizer behind it cuts more of a result than that does.
    fn is_cut(&self, node: &Node, v: ValueId) -> bool {
        let g = &self.model.graph;
        let [port] = g.value(v).uses() else { return false };
        let mut vanishing = self.profile.fuse.iter().filter(|f| f.floor && f.producers.contains(&node.op));
        !self.codes.is_inner(v) && g.get_node(port.node).is_some_and(|n| vanishing.any(|f| f.followers.contains(&n.op)))
    }

    /// Codes that the target does not hold at one of the node's slots.
    fn illegal(&self, id: NodeId, node: &Node) -> Option<Word> {
        let g = &self.model.graph;
        let linear = Linear::of(g, id);
        let recurrent = Recurrent::of(g, id);
        for (slot, v) in node.inputs().iter().enumerate().filter_map(|(s, v)| Some((s, (*v)?))) {
            let is_weight = linear.as_ref().is_some_and(|l| l.constant && l.weight_slot == slot) || recurrent.is_some() && Recurrent::WEIGHTS.contains(&slot);
            let kind = match node.op.role(slot) {
                Role::Bias => Slot::Bias,
                _ if is_weight => Slot::Weights,
                Role::Activation | Role::Weight => Slot::Activations,
                _ => continue,
            };
            let of_codes = || self.codes.get(v).and_then(|q| self.limited(id, q, kind, v, false));
            let word = match self.codes.get(v) {
                Some(q) => self.held(q, kind, v),
                None if kind == Slot::Bias => self.profile.legal.refuses_format(Slot::Bias, "none").map(|why| self.illegal_word(v, why)),
                None => None,
            };
            let granular = || match &linear {
                Some(l) => self.granular(id, l, self.codes.get(v).filter(|_| is_weight)?),
                None => self.one_scale(id, v, self.codes.get(v)?),
            };
            if let Some(word) = word.or_else(of_codes).or_else(granular) {
                return Some(word);
            }
        }
        if let Some(word) = self.normalization(node) {
            return Some(word);
        }
        let out = self.codes.behind(g, node.output(0)?);
        let result = |q| self.held(q, Slot::Activations, out).or_else(|| self.limited(id, q, Slot::Activations, out, true));
        self.codes.taken(self.model, out).find_map(|(_, q)| result(q))
    }

    /// A normalization whose scale is in another format than the target's.
    fn normalization(&self, node: &Node) -> Option<Word> {
        let wanted = self.profile.normalization.as_ref().filter(|_| node.scales())?.format.as_deref()?;
        let v = node.input(1)?;
        let is = name_of(self.model.quantizers[self.codes.get(v)?].scheme.format)?;
        let reason = || format!("its scale {} is {is}, and the target wants {wanted}", self.name(v));
        (is != wanted).then(|| Word::new(Verdict::Float, "normalization", reason(), CONVERT))
    }

    /// What the profile's limits say of codes at a kind of slot. Of a result, only its format is asked.
    fn limited(&self, id: NodeId, q: QuantizerId, kind: Slot, v: ValueId, result: bool) -> Option<Word> {
        let row = &self.model.quantizers[q];
        let once = !result && self.is_read_once(v);
        let below = || result && kind == Slot::Activations && !is_cut_evenly(self.model, self.model.graph.node(id), q);
        let refuses = |l: &Limit| match l.must {
            Must::Floor => below().then(|| format!("has codes that it cannot make: {}", l.why)),
            Must::Alike => if result && kind == Slot::Activations { self.unlike(id, q) } else { None }.map(|other| format!("{other}: {}", l.why)),
            _ => l.refuses(kind, &row.scheme, row.params.as_ref(), result, once),
        };
        let said = |l: &&Limit| Some((l.then, l.remedy.clone(), refuses(l)?));
        let (then, remedy, why) = self.bound.get(&id)?.iter().find_map(said)?;
        Some(Word::new(then, "limits", format!("{} {why}", self.name(v)), remedy))
    }

    /// An operand in other codes than the result's, or with more than one scale. The weight of a product is none.
    fn unlike(&self, id: NodeId, result: QuantizerId) -> Option<String> {
        let (node, table) = (self.model.graph.node(id), &self.model.quantizers);
        let weight = Linear::of(&self.model.graph, id).filter(|l| l.constant).map(|l| l.weight_slot);
        let constants = self.profile.code_constants.contains(&node.op);
        let counts = |slot: usize, v: ValueId| match constant_behind(&self.model.graph, v) {
            Some(_) => constants && (node.flows(slot) || node.op.role(slot) == Role::Constant),
            None => node.flows(slot),
        };
        let slots = (0..node.inputs().len()).filter(|slot| Some(*slot) != weight && node.op.role(*slot) != Role::Bias);
        let operands = slots.filter_map(|slot| Some((slot, node.input(slot)?))).filter(|(slot, v)| counts(*slot, *v));
        let mut operands = operands.filter_map(|(_, v)| Some((v, self.codes.get(v)?)));
        let format = |q: QuantizerId| name_of(table[q].scheme.format).unwrap_or("a codebook");
        operands.find_map(|(v, q)| match (table[q].scheme.format == table[result].scheme.format, table[q].scheme.blocks.is_tensor()) {
            (false, _) => Some(format!("and its operand {} differ: {} and {}", self.name(v), format(result), format(q))),
            (_, false) => Some(format!("is made of {}, which has more than one scale", self.name(v))),
            _ => None,
        })
    }

    /// Whether codes are made for one reader.
    fn is_read_once(&self, v: ValueId) -> bool {
        let g = &self.model.graph;
        let of = |v: ValueId| g.value(v).uses().len() + g.is_output(v) as usize;
        let Some((maker, _)) = g.value(v).producer() else { return of(v) == 1 };
        let Some(x) = g.node(maker).input(0).filter(|_| g.node(maker).op == Op::FakeQuant) else { return of(v) == 1 };
        let all =
            g.value(x).uses().iter().filter_map(|p| g.get_node(p.node)).filter(|n| n.op == Op::FakeQuant).filter_map(|n| n.output(0)).map(of).sum::<usize>();
        g.constant(x).is_none() && all == 1
    }

    /// The word on a tensor that the target does not hold as it is.
    fn illegal_word(&self, v: ValueId, why: String) -> Word {
        Word::new(self.profile.legal.otherwise, "legal", format!("{} {why}", self.name(v)), CONVERT)
    }

    /// Whether the target holds a quantizer at a kind of slot.
    fn held(&self, q: QuantizerId, kind: Slot, v: ValueId) -> Option<Word> {
        let row = &self.model.quantizers[q];
        if kind == Slot::Activations && name_of(row.scheme.format).is_some_and(|f| self.profile.legal.taken.iter().any(|t| t == f)) {
            return None;
        }
        Some(self.illegal_word(v, self.profile.legal.refuses(kind, &row.scheme, row.params.as_ref())?))
    }

    /// Whether a weight's scales lie as the target wants them: along output channels, if not one a tensor.
    fn granular(&self, id: NodeId, linear: &Linear, q: QuantizerId) -> Option<Word> {
        let blocks = &self.model.quantizers[q].scheme.blocks;
        let name = self.name(linear.weight);
        let rank = self.inferred.get(linear.weight).shape.as_ref().map_or(0, Vec::len) as i32;
        let (held, limit) = self.profile.granularities(self.bound.get(&id).map_or(&[][..], Vec::as_slice));
        let otherwise = limit.map_or(self.profile.legal.otherwise, |l| l.then);
        let (why, remedy) = limit.map_or((String::new(), CONVERT), |l| (format!(": {}", l.why), if l.remedy.is_empty() { CONVERT } else { &l.remedy }));
        let (own, word) = match (blocks.is_tensor(), blocks.channel_axis()) {
            (true, _) => (Granularity::Tensor, "one scale"),
            (_, Some(axis)) => {
                let axis = if axis < 0 { axis + rank } else { axis };
                if axis != linear.out_axis as i32 {
                    let reason = format!("{name} has scales along axis {axis}, and output channels lie along axis {}", linear.out_axis);
                    return Some(Word::new(self.profile.legal.otherwise, "axis", reason, CONVERT));
                }
                (Granularity::Channel, "a scale a channel")
            }
            _ => (Granularity::Block, "a scale a block"),
        };
        let bad = !held.is_empty() && !held.contains(&own);
        bad.then(|| Word::new(otherwise, if limit.is_some() { "limits" } else { "legal" }, format!("{name} has {word}{why}"), remedy))
    }

    /// A constant of more than one scale, where a limit asks for one.
    fn one_scale(&self, id: NodeId, v: ValueId, q: QuantizerId) -> Option<Word> {
        let (held, limit) = self.profile.granularities(self.bound.get(&id)?);
        let limit = limit.filter(|_| !self.model.quantizers[q].scheme.blocks.is_tensor() && held == [Granularity::Tensor])?;
        Some(Word::new(limit.then, "limits", format!("{} has more than one scale: {}", self.name(v), limit.why), limit.remedy.clone()))
    }

    /// Whether what is moved or joined keeps its quantizer.
    fn shared(&self, node: &Node) -> Word {
        let moves = self.profile.moves.contains(&node.op) && node.op.flow() == Flow::Move;
        let joins = self.profile.join.contains(&node.op);
        let (Some(out), true) = (node.output(0), moves || joins) else { return Word::fine(Verdict::Integer, "quantize") };
        let table = &self.model.quantizers;
        let rows = node.input(0).filter(|_| moves).and_then(|v| self.codes.get(v)).filter(|q| !table[*q].scheme.blocks.is_tensor());
        if rows.is_some() {
            return Word::new(Verdict::Float, "moves", "its table has a scale a row: rows are made float", "");
        }
        let operands = || (0..node.inputs().len()).filter(|s| node.flows(*s)).filter_map(|s| node.input(s));
        for (_, q) in self.codes.taken(self.model, out) {
            for v in operands() {
                let Some(own) = self.codes.get(v).filter(|own| !same(table, *own, q)) else { continue };
                // Another format is asked for, not stumbled into.
                if table[own].scheme.format == table[q].scheme.format {
                    let reason = format!("{} and {} have scales of their own", self.name(v), self.name(out));
                    return Word::new(Verdict::Requantizes, if moves { "moves" } else { "join" }, reason, "give input and output one scale and zero point");
                }
            }
        }
        Word::fine(Verdict::Integer, if moves { "moves" } else { "quantize" })
    }

    /// A follower that does not run on codes takes its producer with it: together they are one. Of a producer whose result may be float only one does that
    /// brings codes of its own.
    fn unfuse(&self, words: &mut BTreeMap<NodeId, Word>) {
        let g = &self.model.graph;
        for (id, node) in g.nodes().rev() {
            let Some(v) = node.output(0).filter(|v| self.codes.is_inner(*v)) else { continue };
            let Some(port) = g.value(v).uses().first() else { continue };
            let coded = || g.node(port.node).inputs().iter().flatten().any(|x| self.codes.get(*x).is_some());
            let bound = |f: &&Word| f.verdict > Verdict::Requantizes && (!self.profile.float_results.contains(&node.op) || coded());
            let Some(f) = words.get(&port.node).filter(bound) else { continue };
            if words.get(&id).is_some_and(|w| w.verdict == Verdict::Integer) {
                let word = Word::new(Verdict::Float, f.rule, format!("what is computed with it is not on codes: {}", f.reason), f.remedy.clone());
                words.insert(id, word);
            }
        }
    }
}
