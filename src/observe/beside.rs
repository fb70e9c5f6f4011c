//! What other steps want to know of the float model, while samples run through it for their ranges.

use crate::error::Result;
use crate::graph::ValueId;
use crate::tensor::Tensor;

/// What is to be done with what one sample showed, once those before it had their turn.
pub type Turn<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Looks at further values of the float model in a pass over the samples.
pub trait Beside: Sync {
    /// The values.
    fn values(&self) -> &[ValueId];

    /// Looks at them in the `i`th sample, on any thread. Turns are taken in the order of the samples, so that sums do not depend on threads.
    ///
    /// # Errors
    /// A tensor that is not what the step expects.
    fn see(&self, i: usize, tensors: &[Tensor]) -> Result<Turn<'_>>;
}
