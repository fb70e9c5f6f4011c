//! What a target's compiler makes of a model, anyone's, told from the file and the profile alone: which nodes run on codes, which in float, which another
//! processor runs, which are requantized for nothing, and what is refused. Each with its rule, the reason and a remedy.
//! A float model is judged by what converting it could make of each node.

mod codes;
mod file;
mod nodes;
#[cfg(test)]
mod tests;

use crate::graph::{Flow, InputShapes, Model, infer};
use crate::lift::lift;
use crate::target::{Fate, Profile};
use serde::Serialize;

/// What becomes of a node, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It deals in shapes, indices or conditions: nobody quantizes it.
    Exact,
    Integer,
    /// It hands codes on and changes their scale for nothing.
    Requantizes,
    Float,
    /// Another processor runs it: the graph is split.
    Split,
    Refused,
}

impl Verdict {
    pub const ALL: [Verdict; 6] = [Verdict::Exact, Verdict::Integer, Verdict::Requantizes, Verdict::Float, Verdict::Split, Verdict::Refused];

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Exact => "exact",
            Verdict::Integer => "integer",
            Verdict::Requantizes => "requantizes",
            Verdict::Float => "float",
            Verdict::Split => "split",
            Verdict::Refused => "refused",
        }
    }
}

impl From<Fate> for Verdict {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Float => Verdict::Float,
            Fate::Split => Verdict::Split,
            Fate::Refused => Verdict::Refused,
        }
    }
}

/// One node, or the model as a whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name in the file, or that of the tensor it makes; empty: the whole model.
    pub node: String,
    pub op: String,
    pub verdict: Verdict,
    /// The key of the profile that decides.
    pub rule: String,
    /// Empty: nothing is wrong.
    pub reason: String,
    pub remedy: String,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub target: String,
    /// The client that the profile was proven by; `no`: none.
    pub proven: String,
    /// Whether the file holds codes; if not, nodes are judged by what converting could make of them.
    pub quantized: bool,
    pub refused: usize,
    pub split: usize,
    pub float: usize,
    pub requantizes: usize,
    pub integer: usize,
    /// Every node, in the file's order; the model's own rows first.
    pub nodes: Vec<Row>,
}

impl Check {
    /// What somebody should know of.
    pub fn findings(&self) -> impl Iterator<Item = &Row> {
        self.nodes.iter().filter(|r| !r.reason.is_empty())
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let counts = [(self.refused, "refused"), (self.split, "split the graph"), (self.float, "float"), (self.requantizes, "requantize")];
        let told: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        let rest = if told.is_empty() { String::new() } else { format!(", {}", told.join(", ")) };
        let run = if self.quantized { "run on codes" } else { "could run on codes" };
        format!("{} nodes {run}{rest}", self.integer)
    }
}

/// Judges a model as it was read from its file.
pub fn check(model: &Model, profile: &Profile) -> Check {
    let quantized = has_codes(&model.graph);
    let mut lifted = model.clone();
    let mut rows = file::rows(model, profile);
    let split = rows.iter().find(|r| r.verdict == Verdict::Split).cloned();
    let mut words = match lift(&mut lifted) {
        Ok(_) => nodes::rows(&mut lifted, profile, quantized),
        Err(e) => {
            let reason = format!("it cannot be followed through, and is judged by its operators alone: {e}");
            rows.push(Row { reason, remedy: "start from the float model: `requant convert`".to_string(), ..row(Verdict::Float, "forms") });
            let inferred = infer(model, &InputShapes::new());
            nodes::by_op(model, profile, &inferred)
        }
    };
    for own in nodes::spelled(model, profile) {
        match words.iter_mut().find(|w| w.node == own.node) {
            Some(word) if word.verdict < Verdict::Split => *word = own,
            Some(_) => {}
            None => words.push(own),
        }
    }
    // What keeps the whole model from a chip keeps each node from it.
    if let Some(whole) = split {
        words.iter_mut().filter(|w| w.verdict != Verdict::Exact).for_each(|w| *w = Row { node: w.node.clone(), op: w.op.clone(), ..whole.clone() });
    }
    rows.extend(words);
    let count = |v: Verdict| rows.iter().filter(|r| r.verdict == v).count();
    Check {
        target: profile.name.clone(),
        proven: profile.proven.clone(),
        quantized,
        refused: count(Verdict::Refused),
        split: count(Verdict::Split),
        float: count(Verdict::Float),
        requantizes: count(Verdict::Requantizes),
        integer: count(Verdict::Integer),
        nodes: rows,
    }
}

/// Judges a float model under encodings, whose FakeQuants it holds: where a tensor that the target has in codes lacks an entry, the chip makes one up.
pub fn encoded(model: &Model, profile: &Profile) -> Check {
    let mut found = check(model, profile);
    // A float weight that the runtime quantizes unasked counts as run on codes elsewhere; here nobody said which.
    let lacks = |r: &Row| r.verdict == Verdict::Float && matches!(r.rule.as_str(), "operands" | "results") || r.rule == "shield" && !r.reason.is_empty();
    for row in found.nodes.iter_mut().filter(|r| lacks(r)) {
        match row.verdict {
            Verdict::Float => found.float -= 1,
            _ => found.integer -= 1,
        }
        found.refused += 1;
        let reason = format!("{}: without an entry the chip calibrates it anew, and says nothing", row.reason);
        *row = Row { verdict: Verdict::Refused, rule: "encodings".into(), reason, remedy: "add an entry for it".into(), ..row.clone() };
    }
    found
}

fn has_codes(g: &crate::graph::Graph) -> bool {
    g.nodes().any(|(_, n)| n.op.flow() == Flow::Quantize || n.bodies().any(|(_, b)| has_codes(b)))
}

/// A row about the whole model, to be filled in.
fn row(verdict: Verdict, rule: &str) -> Row {
    Row { node: String::new(), op: String::new(), verdict, rule: rule.to_string(), reason: String::new(), remedy: String::new() }
}
