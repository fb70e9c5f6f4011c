//! Equivalent float graphs that quantize better.

mod awq;
mod balance;
mod channels;
mod concat_pads;
mod cut_tail;
mod edit;
mod equalize;
mod fold_batch_norm;
mod fold_constants;
mod fold_forward;
mod fold_pads;
mod fuse;
mod orient;
mod part;
mod shift_negatives;
mod smooth;
mod spell_out;
#[cfg(test)]
mod testing;

pub use awq::{Awq, awq};
pub use balance::{Balance, Grid, balance};
pub use concat_pads::concat_pads;
pub use cut_tail::cut_tail;
pub use equalize::{Equalize, equalize};
pub use fold_batch_norm::fold_batch_norm;
pub use fold_constants::fold_constants;
pub use fold_pads::fold_pads;
pub use fuse::fuse;
pub use orient::orient;
pub use part::part;
pub use shift_negatives::{ShiftNegatives, shift_negatives};
pub use smooth::{Smooth, smooth};
pub use spell_out::spell_out;
