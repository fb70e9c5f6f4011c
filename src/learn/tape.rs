//! The tape: what was computed, from what, and how a gradient passes back.

use super::buffers;
use crate::tensor::numel;
use std::sync::Arc;

/// A record of float32 operations on tensors of any rank, row-major. Every operation is a method that computes its value at once; operands whose
/// shapes do not fit are a programming error and panic, as slices do.
#[derive(Default)]
pub struct Tape {
    records: Vec<Record>,
}

/// A tensor on a tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Var(usize);

struct Record {
    value: Arc<Vec<f32>>,
    shape: Vec<usize>,
    /// Whether a parameter lies behind it.
    wanted: bool,
    /// Whether its gradient outlives the pass.
    kept: bool,
    back: Option<Back>,
}

/// Passes the gradient of an operation's value on to the operands.
type Back = Box<dyn Fn(&Tape, &[f32], &mut Grads) + Send>;

/// Gradients of one scalar, as found by [`Tape::backward`].
pub struct Grads {
    of: Vec<Option<Vec<f32>>>,
    wanted: Vec<bool>,
}

impl Tape {
    pub fn new() -> Tape {
        Tape::default()
    }

    /// A tensor that has no gradient.
    pub fn constant(&mut self, values: impl Into<Arc<Vec<f32>>>, shape: &[usize]) -> Var {
        self.leaf(values.into(), shape, false)
    }

    /// The same of a copy.
    pub fn copied(&mut self, values: &[f32], shape: &[usize]) -> Var {
        self.constant(buffers::copy(values), shape)
    }

    /// A tensor whose gradient is wanted.
    pub fn parameter(&mut self, values: impl Into<Arc<Vec<f32>>>, shape: &[usize]) -> Var {
        self.leaf(values.into(), shape, true)
    }

    fn leaf(&mut self, value: Arc<Vec<f32>>, shape: &[usize], wanted: bool) -> Var {
        assert_eq!(numel(shape), Some(value.len()), "{shape:?}");
        self.records.push(Record { value, shape: shape.to_vec(), wanted, kept: wanted, back: None });
        Var(self.records.len() - 1)
    }

    /// The elements of a tensor.
    pub fn value(&self, v: Var) -> &[f32] {
        &self.records[v.0].value
    }

    /// The same, shared.
    pub fn shared(&self, v: Var) -> Arc<Vec<f32>> {
        self.records[v.0].value.clone()
    }

    pub fn shape(&self, v: Var) -> &[usize] {
        &self.records[v.0].shape
    }

    /// The one element of a tensor that has one.
    pub fn scalar(&self, v: Var) -> f32 {
        self.value(v)[0]
    }

    /// Whether gradients pass through it: a parameter, or computed from one.
    pub fn is_wanted(&self, v: Var) -> bool {
        self.records[v.0].wanted
    }

    /// Asks for the gradient of a tensor that is no parameter, to be found in [`Grads`]. Before anything is computed from it.
    pub fn keep(&mut self, v: Var) {
        let record = &mut self.records[v.0];
        (record.wanted, record.kept) = (true, true);
    }

    /// What [`Tape::push`] will return next.
    pub(super) fn next(&self) -> Var {
        Var(self.records.len())
    }

    /// Records an operation on `operands`. `back` is called once, if ever, with the gradient of `value`.
    pub(super) fn push(
        &mut self,
        value: impl Into<Arc<Vec<f32>>>,
        shape: &[usize],
        operands: &[Var],
        back: impl Fn(&Tape, &[f32], &mut Grads) + Send + 'static,
    ) -> Var {
        let value = value.into();
        debug_assert_eq!(numel(shape), Some(value.len()), "{shape:?}");
        let wanted = operands.iter().any(|v| self.is_wanted(*v));
        let back: Option<Back> = if wanted { Some(Box::new(back)) } else { None };
        self.records.push(Record { value, shape: shape.to_vec(), wanted, kept: false, back });
        Var(self.records.len() - 1)
    }

    /// Gradients of a scalar with respect to the parameters, and to what [`Tape::keep`] asked for.
    pub fn backward(&self, loss: Var) -> Grads {
        assert_eq!(self.value(loss).len(), 1, "the loss is a scalar");
        self.backward_from(vec![(loss, vec![1.0])])
    }

    /// The same of a scalar that lies outside, whose gradients with respect to some tensors are given.
    pub fn backward_from(&self, seeds: Vec<(Var, Vec<f32>)>) -> Grads {
        let last = seeds.iter().map(|s| s.0.0 + 1).max().unwrap_or(0);
        let mut grads = Grads { of: vec![None; self.records.len()], wanted: self.records.iter().map(|r| r.wanted).collect() };
        seeds.into_iter().for_each(|(v, g)| grads.give(v, g));
        for (i, record) in self.records[..last].iter().enumerate().rev() {
            let Some(back) = &record.back else { continue };
            let Some(grad) = (if record.kept { grads.of[i].clone() } else { grads.of[i].take() }) else { continue };
            back(self, &grad, &mut grads);
            buffers::give_back(grad);
        }
        grads
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        for record in self.records.drain(..) {
            if let Ok(value) = Arc::try_unwrap(record.value) {
                buffers::give_back(value);
            }
        }
    }
}

impl Grads {
    /// The gradient with respect to a parameter or kept tensor; `None` where the loss does not depend on it.
    pub fn of(&self, v: Var) -> Option<&[f32]> {
        self.of[v.0].as_deref()
    }

    /// The same, taken out; zeros where the loss does not depend on it.
    pub fn take(&mut self, v: Var, len: usize) -> Vec<f32> {
        self.of[v.0].take().unwrap_or_else(|| vec![0.0; len])
    }

    /// Whether anyone waits for the gradient of `v`.
    pub(super) fn wants(&self, v: Var) -> bool {
        self.wanted[v.0]
    }

    /// Adds a gradient.
    pub(super) fn give(&mut self, v: Var, grad: Vec<f32>) {
        if !self.wants(v) {
            return;
        }
        match &mut self.of[v.0] {
            Some(sum) => {
                sum.iter_mut().zip(&grad).for_each(|(s, g)| *s += g);
                buffers::give_back(grad);
            }
            none => *none = Some(grad),
        }
    }

    /// Adds a gradient that `make` computes only if it is wanted.
    pub(super) fn give_with(&mut self, v: Var, make: impl FnOnce() -> Vec<f32>) {
        if self.wants(v) {
            self.give(v, make());
        }
    }

    /// Lets `add` add to the gradient of `v`, which has `len` elements, if it is wanted.
    pub(super) fn add_to(&mut self, v: Var, len: usize, add: impl FnOnce(&mut [f32])) {
        if self.wants(v) {
            add(self.of[v.0].get_or_insert_with(|| buffers::zeros(len)));
        }
    }
}
