//! Our intermediate representation: what a model is while requant works on it.

mod attr;
mod bypass;
#[allow(clippy::module_inception)]
mod graph;
mod model;
mod op;

pub use attr::{Attr, AttrValue, Constant, Storage};
pub use graph::{Dim, Graph, Node, NodeId, Port, Type, Value, ValueId};
pub use model::{Model, Site};
pub use op::{Facts, Flow, Op, Role};
