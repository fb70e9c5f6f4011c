//! What a chip or runtime wants: profiles as read from `configs/targets/*.yaml`, and the keys in which people ask for schemes.

mod formats;
mod holds;
mod keys;
mod limits;
mod profile;
mod select;
pub mod spelling;

pub use formats::{FORMATS, NamedFormat, format_of, name_of};
pub use holds::{has_no_zero, is_pow2, is_symmetric};
pub use keys::{Granularity, ScaleKey, SchemeKeys, ZeroKey};
pub use limits::{Apart, Limit, Must};
pub use profile::{Fate, Fixed, Fuse, Legal, Profile, SCALES, Shift, Slot, Spelling, Term, scale_word};
pub use select::{Keep, Override, Place, Select, Wish, literal};
