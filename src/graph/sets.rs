//! Disjoint sets of values: those that share a quantizer, or the scales of their channels.

use super::ValueId;
use std::collections::BTreeMap;

/// Disjoint sets of values; the lowest id of a set stands for it.
#[derive(Debug, Default)]
pub struct Sets {
    parent: BTreeMap<ValueId, ValueId>,
}

impl Sets {
    /// The value that stands for `v`'s set.
    pub fn root(&self, mut v: ValueId) -> ValueId {
        while let Some(&p) = self.parent.get(&v) {
            v = p;
        }
        v
    }

    /// Makes one set of two.
    pub fn join(&mut self, a: ValueId, b: ValueId) {
        let (a, b) = (self.root(a), self.root(b));
        if a != b {
            self.parent.insert(a.max(b), a.min(b));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_is_transitive_and_order_does_not_matter() {
        let v = ValueId;
        let (mut a, mut b) = (Sets::default(), Sets::default());
        for (x, y) in [(5, 3), (9, 5), (2, 8)] {
            a.join(v(x), v(y));
        }
        for (x, y) in [(8, 2), (5, 9), (3, 5)] {
            b.join(v(x), v(y));
        }
        for x in 0..10 {
            assert_eq!(a.root(v(x)), b.root(v(x)));
        }
        assert_eq!(a.root(v(9)), v(3));
        assert_eq!(a.root(v(2)), a.root(v(8)));
        assert_ne!(a.root(v(2)), a.root(v(9)));
    }
}
