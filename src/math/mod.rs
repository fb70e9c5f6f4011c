//! Linear algebra, without a word about models. Matrices are row-major where nothing else is said.

mod cholesky;
mod gram;
pub mod knapsack;
mod product;
mod wide;

pub use cholesky::cholesky;
pub use gram::{add_columns, add_gram};
pub use product::{Matrix, multiply};
pub use wide::{moments, sum_of, wide};
