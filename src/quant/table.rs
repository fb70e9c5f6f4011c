//! The quantizer table: stands beside the graph, is read when the engine runs.

use super::{Origin, Params, Scheme};

/// Names one quantizer. Two FakeQuant nodes with one id share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QuantizerId(pub u32);

/// Scheme from placing, parameters from ranging.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantizer {
    /// For people: the tensor it was made for.
    pub name: String,
    pub scheme: Scheme,
    pub params: Option<Params>,
}

/// All quantizers of a model, by id. Ids are never reused.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    rows: Vec<Quantizer>,
}

impl Table {
    /// Adds a quantizer without parameters.
    pub fn add(&mut self, name: impl Into<String>, scheme: Scheme) -> QuantizerId {
        self.rows.push(Quantizer { name: name.into(), scheme, params: None });
        QuantizerId(self.rows.len() as u32 - 1)
    }

    pub fn ids(&self) -> impl Iterator<Item = QuantizerId> + use<> {
        (0..self.rows.len() as u32).map(QuantizerId)
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The quantizer whose parameters serve `id`: follows `Same`.
    pub fn root(&self, mut id: QuantizerId) -> QuantizerId {
        for _ in 0..self.rows.len() {
            match &self[id].params {
                Some(Params { origin: Origin::Same(other), .. }) => id = *other,
                _ => break,
            }
        }
        id
    }
}

impl std::ops::Index<QuantizerId> for Table {
    type Output = Quantizer;
    fn index(&self, id: QuantizerId) -> &Quantizer {
        &self.rows[id.0 as usize]
    }
}

impl std::ops::IndexMut<QuantizerId> for Table {
    fn index_mut(&mut self, id: QuantizerId) -> &mut Quantizer {
        &mut self.rows[id.0 as usize]
    }
}
