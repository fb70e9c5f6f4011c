//! Types, shapes and constants of every value, found together in one walk: a shape that is known makes the ops that read it constants,
//! and a constant that is known makes the shapes that depend on it.

mod computed;
mod partial;
mod rules;
mod windows;

use super::{AttrValue, Dim, Graph, Model, Node, Op, Type, ValueId, eval};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// Shapes of inputs by name.
pub type InputShapes = BTreeMap<String, Vec<usize>>;

/// What is known of a value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fact {
    pub dtype: Option<DType>,
    /// `None`: not even the rank is known.
    pub shape: Option<Vec<Dim>>,
    pub constant: Option<Tensor>,
    /// Elements of an integer vector or scalar of which only some are known.
    partial: Option<Vec<Option<i64>>>,
}

/// Facts of all values of one graph.
#[derive(Debug, Clone, Default)]
pub struct Inferred {
    facts: Vec<Fact>,
}

impl Inferred {
    /// What is known of `v`; nothing, for a value that was added later.
    pub fn get(&self, v: ValueId) -> &Fact {
        static NOTHING: Fact = Fact { dtype: None, shape: None, constant: None, partial: None };
        self.facts.get(v.0 as usize).unwrap_or(&NOTHING)
    }

    /// The shape, where every dimension is a number.
    pub fn shape(&self, v: ValueId) -> Option<Vec<usize>> {
        self.get(v).known()
    }

    /// The branch that an If always takes, where its condition is known: the name of its attribute.
    pub fn taken_branch(&self, node: &Node) -> Option<&'static str> {
        let condition = self.get(node.input(0).filter(|_| node.op == Op::If)?).constant.as_ref()?;
        Some(if condition.bytes().iter().any(|b| *b != 0) { "then_branch" } else { "else_branch" })
    }

    /// What a body of `node` knows of the values around it, by name; `outer`: what is known around `g` itself.
    pub fn around(&self, g: &Graph, node: &Node, outer: &BTreeMap<String, Fact>) -> BTreeMap<String, Fact> {
        let mut scope = outer.clone();
        scope.extend(node.captures().iter().map(|v| (g.value(*v).name.clone(), self.get(*v).clone())));
        scope
    }

    fn set(&mut self, v: ValueId, fact: Fact) {
        let i = v.0 as usize;
        if self.facts.len() <= i {
            self.facts.resize(i + 1, Fact::default());
        }
        self.facts[i] = fact;
    }
}

impl Fact {
    fn tensor(t: Tensor) -> Self {
        Fact { dtype: Some(t.dtype()), shape: Some(t.shape().iter().map(|d| Dim::Known(*d)).collect()), constant: Some(t), partial: None }
    }

    fn of(dtype: Option<DType>, shape: Option<Vec<Dim>>) -> Self {
        Fact { dtype, shape, constant: None, partial: None }
    }

    fn known(&self) -> Option<Vec<usize>> {
        self.shape.as_ref()?.iter().map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect()
    }

    fn rank(&self) -> Option<usize> {
        Some(self.shape.as_ref()?.len())
    }

    /// Integers of a short vector, as far as known.
    fn elements(&self) -> Option<Vec<Option<i64>>> {
        match (&self.constant, &self.partial) {
            (Some(t), _) => Some(t.to_i64().ok()?.into_iter().map(Some).collect()),
            (None, p) => p.clone(),
        }
    }

    /// A tensor without elements is a constant.
    fn or_empty(mut self) -> Self {
        if let (None, Some(dtype), Some(shape)) = (&self.constant, self.dtype, self.known().filter(|s| s.contains(&0))) {
            self.constant = Tensor::new(dtype, shape, bytes::Bytes::new()).ok();
        }
        self
    }

    /// The value declares more than was found.
    fn or_declared(mut self, ty: &Type) -> Self {
        if let Type::Tensor { dtype, shape } = ty {
            self.dtype = self.dtype.or(*dtype);
            match (&mut self.shape, shape) {
                (None, Some(s)) => self.shape = Some(s.clone()),
                (Some(found), Some(s)) if found.len() == s.len() => {
                    for (f, d) in found.iter_mut().zip(s) {
                        if *f == Dim::Unknown {
                            *f = d.clone();
                        }
                    }
                }
                _ => {}
            }
        }
        self
    }
}

/// Types, shapes and constants of the outermost graph's values. Inputs named in `fixed` have those shapes; the rest as declared.
pub fn infer(model: &Model, fixed: &InputShapes) -> Inferred {
    let declared = fixed.is_empty();
    infer_graph(&model.graph, fixed, declared, &BTreeMap::new())
}

/// The same of a body, by what is known of the values around it, by name.
pub fn infer_body(body: &Graph, outer: &BTreeMap<String, Fact>) -> Inferred {
    infer_graph(body, &InputShapes::new(), true, outer)
}

/// `declared`: whether the file's own value_info may fill gaps; with inputs fixed it may speak of other shapes.
fn infer_graph(g: &Graph, fixed: &InputShapes, declared: bool, outer: &BTreeMap<String, Fact>) -> Inferred {
    let mut known = Inferred { facts: vec![Fact::default(); g.value_bound()] };
    for (id, v) in g.values() {
        let fact = match &v.constant {
            Some(c) if !g.inputs.contains(&id) => Fact::tensor(c.tensor.clone()),
            _ if v.producer().is_none() => {
                let mut fact = outer.get(&v.name).cloned().unwrap_or_default().or_declared(&v.ty);
                if let Some(shape) = fixed.get(&v.name) {
                    fact.shape = Some(shape.iter().map(|d| Dim::Known(*d)).collect());
                }
                fact
            }
            _ => continue,
        };
        known.set(id, fact);
    }
    for (_, node) in g.nodes() {
        let inputs: Vec<Option<&Fact>> = node.inputs().iter().map(|v| v.map(|v| known.get(v))).collect();
        let constants: Vec<Option<&Tensor>> = inputs.iter().map(|f| f.and_then(|f| f.constant.as_ref())).collect();
        let all = inputs.iter().zip(&constants).all(|(f, c)| f.is_none() || c.is_some());
        let folded = if all || matches!(node.op, Op::Shape | Op::Size) { evaluated(node, &inputs, &constants, all) } else { None };
        let facts = match folded {
            Some(tensors) => tensors.into_iter().map(Fact::tensor).collect(),
            None => match node.op {
                Op::If | Op::Loop | Op::Scan => bodies(g, node, &known, outer),
                _ => {
                    let mut facts = rules::outputs(node, &inputs);
                    if let Some(first) = facts.first_mut() {
                        first.partial = partial::elements(node, &inputs);
                        if let Some(all) = first.partial.as_ref().and_then(|p| p.iter().copied().collect::<Option<Vec<i64>>>()) {
                            first.constant = first
                                .known()
                                .and_then(|s| (first.dtype == Some(DType::I64) && s.iter().product::<usize>() == all.len()).then(|| Tensor::of_i64(&s, all)));
                        }
                    }
                    facts
                }
            },
        };
        let mut facts = facts.into_iter();
        for v in node.outputs() {
            let fact = facts.next().unwrap_or_default();
            if let Some(v) = v {
                let ty = &g.value(*v).ty;
                // What a node makes out of nothing (FakeQuant of stored codes) has the shape it is declared to have.
                let fact = match declared || node.op == Op::FakeQuant && node.input(0).is_none() {
                    true => fact.or_declared(ty),
                    // Types do not depend on shapes.
                    false => Fact { dtype: fact.dtype.or(g.value(*v).dtype()), ..fact },
                };
                known.set(*v, if node.quantizer().is_some() { fact } else { fact.or_empty() });
            }
        }
    }
    known
}

/// The node's outputs as constants: because its inputs are, or because it only asks for a shape that is known.
fn evaluated(node: &Node, inputs: &[Option<&Fact>], constants: &[Option<&Tensor>], all: bool) -> Option<Vec<Tensor>> {
    if matches!(node.op, Op::Shape | Op::Size) {
        let dims = inputs.first().copied().flatten()?.known()?;
        if node.op == Op::Size {
            return Some(vec![Tensor::of_i64(&[], vec![dims.iter().map(|d| *d as i64).product()])]);
        }
        let (a, b) = eval::shape_window(node.int("start"), node.int("end"), dims.len());
        return Some(vec![Tensor::of_i64(&[b - a], dims[a..b].iter().map(|d| *d as i64).collect())]);
    }
    // Errors in a node surface where it is run.
    if all { eval::eval(node, constants) } else { None }
}

/// Facts that both branches of an If agree on; of loops, types only.
fn bodies(g: &Graph, node: &Node, known: &Inferred, outer: &BTreeMap<String, Fact>) -> Vec<Fact> {
    let scope = known.around(g, node, outer);
    let mut joined: Option<Vec<Fact>> = None;
    // Of an If whose condition is known only one branch is ever taken.
    let taken = known.taken_branch(node);
    let is_taken = |name: &str| taken.is_none_or(|branch| name == branch);
    for (_, body) in node.bodies().filter(|(name, _)| is_taken(name)) {
        let inner = infer_graph(body, &InputShapes::new(), true, &scope);
        let skip = if node.op == Op::Loop { 1 } else { 0 };
        let facts: Vec<Fact> =
            body.outputs.iter().skip(skip).map(|v| inner.get(*v).clone()).map(|f| if taken.is_some() { f } else { Fact::of(f.dtype, f.shape) }).collect();
        joined = Some(match joined {
            None => facts,
            Some(old) => old.into_iter().zip(facts).map(|(a, b)| join(a, b)).collect(),
        });
    }
    let mut facts = joined.unwrap_or_default();
    if node.op != Op::If {
        facts.iter_mut().for_each(|f| f.shape = None);
    }
    facts
}

fn join(a: Fact, b: Fact) -> Fact {
    let dtype = if a.dtype == b.dtype { a.dtype } else { None };
    let shape = match (a.shape, b.shape) {
        (Some(x), Some(y)) if x.len() == y.len() => Some(x.into_iter().zip(y).map(|(p, q)| if p == q { p } else { Dim::Unknown }).collect()),
        _ => None,
    };
    Fact::of(dtype, shape)
}

/// The same, with the branches that are always taken in the place of their Ifs; and how many these were.
pub fn infer_inlined(model: &mut Model, fixed: &InputShapes) -> (Inferred, usize) {
    let mut inlined = 0;
    loop {
        // What a branch holds may make the condition of another If a constant.
        let inferred = infer(model, fixed);
        match model.inline_branches(&inferred) {
            0 => return (inferred, inlined),
            n => inlined += n,
        }
    }
}

/// The model for inputs of fixed shapes: what became constant is folded, in bodies too, branches that are always taken stand in the place of their Ifs,
/// dead nodes and constants are gone, declared shapes are those inferred. Ids and names of what survives are unchanged.
pub fn specialize(mut m: Model, fixed: &InputShapes) -> crate::Result<Model> {
    for (name, shape) in fixed {
        let id =
            m.graph.find_value(name).filter(|v| m.graph.inputs.contains(v)).ok_or_else(|| crate::Error::usage(format!("the model has no input {name}")))?;
        let dtype = m.graph.value(id).dtype();
        m.graph.value_mut(id).ty = Type::Tensor { dtype, shape: Some(shape.iter().map(|d| Dim::Known(*d)).collect()) };
    }
    let (inferred, _) = infer_inlined(&mut m, fixed);
    let whole = m.codes.keys().all(|site| site.path.len() < 2);
    fold_bodies(&mut m.graph, &inferred, &BTreeMap::new(), whole);
    fold_also(&mut m.graph, &inferred, true);
    m.graph.remove_dead();
    m.graph.value_info.clear();
    // What the file says of other shapes would contradict these.
    let made: Vec<ValueId> = m.graph.values().filter(|(_, v)| v.producer().is_some()).map(|(id, _)| id).collect();
    for v in made {
        let (dtype, fact) = (m.graph.value(v).dtype(), inferred.get(v));
        if let ty @ (Type::Tensor { .. } | Type::Unknown) = &mut m.graph.value_mut(v).ty {
            *ty = Type::Tensor { dtype: fact.dtype.or(dtype), shape: fact.shape.clone() };
        }
    }
    Ok(m)
}

/// Folds what is constant within the bodies of a graph; what is constant around a body and read there becomes a constant of its own. `inline`: bodies
/// of bodies store no codes, whose sites would change, so that branches may take the place of Ifs.
fn fold_bodies(g: &mut Graph, inferred: &Inferred, outer: &BTreeMap<String, Fact>, inline: bool) {
    for id in g.order().to_vec() {
        if g.node(id).bodies().next().is_none() {
            continue;
        }
        let scope = inferred.around(g, g.node(id), outer);
        for body in g.node_mut(id).bodies_mut() {
            let mut inner = infer_body(body, &scope);
            while inline && !body.inline_taken(&inner).is_empty() {
                inner = infer_body(body, &scope);
            }
            fold_bodies(body, &inner, &scope, inline);
            let given: Vec<ValueId> = body.values().map(|(v, _)| v).filter(|v| body.is_outer(*v) && !body.is_output(*v)).collect();
            for v in given {
                if let Some(t) = &inner.get(v).constant {
                    body.value_mut(v).constant = Some(t.clone().into());
                    body.initializers.push(v);
                }
            }
            fold(body, &inner);
            body.remove_dead();
        }
        g.refresh_captures(id);
    }
}

/// Replaces nodes whose outputs are all constants, and none the graph's, by initializers. Returns how many went.
pub fn fold(g: &mut Graph, inferred: &Inferred) -> usize {
    fold_also(g, inferred, false)
}

/// The same, those that make outputs of the graph as well if so wished.
fn fold_also(g: &mut Graph, inferred: &Inferred, also_outputs: bool) -> usize {
    let mut folded = 0;
    for id in g.order().to_vec() {
        let node = g.node(id);
        let outputs: Vec<ValueId> = node.outputs().iter().flatten().copied().collect();
        if node.quantizer().is_some()
            || outputs.is_empty()
            || !outputs.iter().all(|v| inferred.get(*v).constant.is_some() && (also_outputs || !g.is_output(*v)))
        {
            continue;
        }
        // A Constant node's tensor keeps the way the file stored it.
        let stored = match node.attr("value") {
            Some(AttrValue::Tensor(c)) if node.op == Op::Constant => Some(c.clone()),
            _ => None,
        };
        g.remove_node(id);
        for v in outputs {
            let constant = stored.clone().unwrap_or_else(|| inferred.get(v).constant.clone().expect("checked above").into());
            g.value_mut(v).constant = Some(constant);
            g.initializers.push(v);
            g.value_info.retain(|x| *x != v);
        }
        folded += 1;
    }
    folded
}

impl Graph {
    /// Removes nodes and constants that no output depends on. Returns how many nodes went.
    pub fn remove_dead(&mut self) -> usize {
        let mut removed = 0;
        for id in self.order().to_vec().into_iter().rev() {
            let dead = self.node(id).outputs().iter().flatten().all(|v| self.value(*v).uses().is_empty() && !self.is_output(*v));
            if dead {
                let outputs: Vec<ValueId> = self.node(id).outputs().iter().flatten().copied().collect();
                self.remove_node(id);
                outputs.into_iter().for_each(|v| self.remove_value(v));
                removed += 1;
            }
        }
        let idle: Vec<ValueId> =
            self.initializers.iter().copied().filter(|v| self.value(*v).uses().is_empty() && !self.is_output(*v) && !self.inputs.contains(v)).collect();
        idle.into_iter().for_each(|v| self.remove_value(v));
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// x[N,3,4,4] → Shape → Gather(1…) → Concat(-1) → Reshape(x)
    fn chain() -> (Model, ValueId) {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, s, c, t, y] = ["x", "s", "c", "t", "y"].map(|n| g.add_value(n));
        let dims = vec![Dim::Symbol("N".into()), Dim::Known(3), Dim::Known(4), Dim::Known(4)];
        g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(dims) };
        let one = g.add_constant("one", Tensor::of_i64(&[1], vec![1]));
        let rest = g.add_constant("rest", Tensor::of_i64(&[1], vec![-1]));
        g.inputs.push(x);
        g.outputs.push(y);
        g.add_node(Node::new(Op::Shape, "shape"), &[Some(x)], &[Some(s)]);
        g.add_node(Node::new(Op::Gather, "gather"), &[Some(s), Some(one)], &[Some(c)]);
        g.add_node(Node::new(Op::Concat, "concat").with("axis", 0i64), &[Some(rest), Some(c)], &[Some(t)]);
        g.add_node(Node::new(Op::Reshape, "reshape"), &[Some(x), Some(t)], &[Some(y)]);
        (m, y)
    }

    #[test]
    fn a_known_element_of_a_symbolic_shape_folds() {
        let (m, y) = chain();
        let inferred = infer(&m, &InputShapes::new());
        let target = m.graph.find_value("t").unwrap();
        assert_eq!(inferred.get(target).constant.as_ref().unwrap().to_i64().unwrap(), [-1, 3]);
        assert_eq!(inferred.get(y).shape, Some(vec![Dim::Unknown, Dim::Known(3)]));
    }

    #[test]
    fn with_inputs_fixed_everything_is_known_and_chains_vanish() {
        let (m, y) = chain();
        let fixed = InputShapes::from([("x".to_string(), vec![2, 3, 4, 4])]);
        assert_eq!(infer(&m, &fixed).shape(y), Some(vec![32, 3]));
        let s = specialize(m.clone(), &fixed).unwrap();
        let ops: Vec<Op> = s.graph.nodes().map(|(_, n)| n.op).collect();
        assert_eq!(ops, [Op::Reshape]);
        assert!(specialize(m.clone(), &InputShapes::from([("z".to_string(), vec![])])).is_err());
    }

    /// The shape of what `node` makes of inputs of these shapes.
    fn shape_of(node: Node, inputs: &[&[usize]]) -> Option<Vec<usize>> {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let y = g.add_value("y");
        let mut fixed = InputShapes::new();
        for (i, s) in inputs.iter().enumerate() {
            let x = g.add_value(&format!("x{i}"));
            g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: None };
            g.inputs.push(x);
            fixed.insert(format!("x{i}"), s.to_vec());
        }
        let inputs: Vec<_> = g.inputs.iter().copied().map(Some).collect();
        g.outputs.push(y);
        g.add_node(node, &inputs, &[Some(y)]);
        infer(&m, &fixed).shape(y)
    }

    #[test]
    fn rarer_ops_have_their_shapes() {
        let of = |op: Op| Node::new(op, "n");
        assert_eq!(shape_of(of(Op::EyeLike), &[&[3, 4]]), Some(vec![3, 4]));
        assert_eq!(shape_of(of(Op::GatherND), &[&[5, 6, 7, 8], &[2, 9, 2]]), Some(vec![2, 9, 7, 8]));
        assert_eq!(shape_of(of(Op::GatherND).with("batch_dims", 1i64), &[&[5, 6, 7, 8], &[5, 9, 2]]), Some(vec![5, 9, 8]));
        assert_eq!(shape_of(of(Op::GatherND), &[&[5], &[9, 2]]), None);
        assert_eq!(shape_of(of(Op::GridSample), &[&[2, 3, 8, 8], &[2, 5, 6, 2]]), Some(vec![2, 3, 5, 6]));
        assert_eq!(shape_of(of(Op::RoiAlign).with("output_height", 7i64).with("output_width", 5i64), &[&[1, 3, 8, 8], &[9, 4], &[9]]), Some(vec![9, 3, 7, 5]));
        assert_eq!(shape_of(of(Op::ReverseSequence), &[&[4, 2], &[2]]), Some(vec![4, 2]));
        assert_eq!(shape_of(of(Op::Attention), &[&[1, 8, 5, 16], &[1, 2, 7, 16], &[1, 2, 7, 24]]), Some(vec![1, 8, 5, 24]));
        let flat = of(Op::Attention).with("q_num_heads", 8i64).with("kv_num_heads", 2i64);
        assert_eq!(shape_of(flat, &[&[1, 5, 128], &[1, 7, 32], &[1, 7, 48]]), Some(vec![1, 5, 192]));
    }

    #[test]
    fn einsum_has_the_sizes_of_its_letters() {
        let shape = |equation: &str, inputs: &[&[usize]]| shape_of(Node::new(Op::Einsum, "e").with("equation", equation), inputs);
        assert_eq!(shape("i, j -> i j", &[&[3], &[4]]), Some(vec![3, 4]));
        assert_eq!(shape("bhid,bhjd->bhij", &[&[2, 8, 5, 16], &[2, 8, 7, 16]]), Some(vec![2, 8, 5, 7]));
        assert_eq!(shape("...ij,...jk->...ik", &[&[6, 1, 2, 3], &[5, 3, 4]]), Some(vec![6, 5, 2, 4]));
        assert_eq!(shape("ij,jk", &[&[2, 3], &[3, 4]]), Some(vec![2, 4]));
        assert_eq!(shape("b...,b...->...", &[&[2, 3], &[2, 3]]), Some(vec![3]));
        assert_eq!(shape("ii->i", &[&[4, 4]]), Some(vec![4]));
        assert_eq!(shape("ij->", &[&[4, 4]]), Some(vec![]));
        // Too few axes, or a letter from nowhere: nothing is said.
        assert_eq!(shape("ijk->i", &[&[4, 4]]), None);
        assert_eq!(shape("ij->k", &[&[4, 4]]), None);
    }

    #[test]
    fn bodies_fold_by_what_is_known_around_them() {
        let mut then = Graph::default();
        let [x, dims, y, size] = ["x", "dims", "y", "size"].map(|n| then.add_value(n));
        let [c, z] = ["c", "z"].map(|n| then.add_value(n));
        then.add_node(Node::new(Op::Shape, "shape"), &[Some(x)], &[Some(dims)]);
        then.add_node(Node::new(Op::Mul, "mul"), &[Some(dims), Some(c)], &[Some(size)]);
        then.add_node(Node::new(Op::ConstantOfShape, "zeros"), &[Some(size)], &[Some(z)]);
        then.add_node(Node::new(Op::Concat, "concat").with("axis", 0i64), &[Some(x), Some(z)], &[Some(y)]);
        then.outputs.push(y);
        let mut other = Graph::default();
        let x = other.add_value("x");
        other.outputs.push(x);
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, which, y] = ["x", "which", "y"].map(|n| g.add_value(n));
        g.add_constant("c", Tensor::of_i64(&[1], vec![2]));
        g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Unknown]) };
        g.value_mut(which).ty = Type::Tensor { dtype: Some(DType::Bool), shape: Some(vec![]) };
        (g.inputs, g.outputs) = (vec![x, which], vec![y]);
        g.add_node(Node::new(Op::If, "if").with("then_branch", then).with("else_branch", other), &[Some(which)], &[Some(y)]);
        let s = specialize(m.clone(), &InputShapes::from([("x".to_string(), vec![3]), ("which".to_string(), vec![])])).unwrap();
        let (_, node) = s.graph.nodes().next().unwrap();
        let (_, body) = node.bodies().next().unwrap();
        assert_eq!(body.nodes().map(|(_, n)| n.op).collect::<Vec<_>>(), [Op::Concat]);
        let zeros = body.nodes().next().unwrap().1.input(1).unwrap();
        assert_eq!(body.constant(zeros).unwrap().tensor.shape(), [6]);
        assert_eq!(node.captures(), [x]);
    }
}
