//! Linear algebra, without a word about models. Matrices are row-major where nothing else is said.

mod cholesky;
mod gram;

pub use cholesky::cholesky;
pub use gram::{add_gram, product};
