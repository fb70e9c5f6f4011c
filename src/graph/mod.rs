//! Our intermediate representation: what a model is while requant works on it.

mod attr;
mod eval;
mod forms;
mod graft;
#[allow(clippy::module_inception)]
mod graph;
mod halves;
mod infer;
mod linear;
mod model;
mod node;
mod op;
mod sets;

pub use attr::{Attr, AttrValue, Constant, Storage};
pub use eval::{axis_of, broadcast, eval, slice_axis};
pub use forms::{Form, forms, since, square_of};
pub use graph::{Dim, Graph, NodeId, Port, Type, Value, ValueId, shape_text};
pub use halves::{half_since, stays_float32};
pub use infer::{Fact, Inferred, InputShapes, fold, infer, infer_body, infer_inlined, specialize};
pub use linear::{Linear, Recurrent, bias_behind, bounds, constant_behind, pads};
pub use model::{Model, Site};
pub use node::Node;
pub use op::{Facts, Flow, Op, Role};
pub use sets::Sets;
