//! `gate:` of a recipe: what the result must reach to be written. Judged per output and per part of an output; the worst counts.

use super::Report;

/// `gate:` of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Gate {
    pub sqnr_db: Option<f64>,
    pub cosine: Option<f64>,
    pub agreement: Option<f64>,
    pub coverage: Option<f64>,
    pub top1_drop: Option<f64>,
    pub eval_drop: Option<f64>,
}

impl Gate {
    /// Every key that was set, with its limit.
    pub fn limits(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let Gate { sqnr_db, cosine, agreement, coverage, top1_drop, eval_drop } = *self;
        let all =
            [("sqnr_db", sqnr_db), ("cosine", cosine), ("agreement", agreement), ("coverage", coverage), ("top1_drop", top1_drop), ("eval_drop", eval_drop)];
        all.into_iter().filter_map(|(key, limit)| Some((key, limit?)))
    }

    /// Why `report` is below: one text a key that was missed.
    pub fn failures(&self, report: &Report) -> Vec<String> {
        let mut failures = Vec::new();
        for (key, limit) in self.limits() {
            let least = !key.ends_with("_drop");
            // The worst of those measured; what is no number is worse than any.
            let worse = |a: &(String, f64), b: &(String, f64)| b.1.is_nan() || !a.1.is_nan() && (b.1 < a.1) == least && b.1 != a.1;
            match measured(report, key).into_iter().reduce(|a, b| if worse(&a, &b) { b } else { a }) {
                Some((name, value)) if value.is_nan() || (if least { value < limit } else { value > limit }) => {
                    failures.push(format!("{key} of {name} is {value:.4}, the gate wants {limit}"));
                }
                Some(_) => {}
                None => failures.push(format!("{key} was not measured, and the gate wants {limit}")),
            }
        }
        failures
    }
}

/// What `key` is of each output and part that it is known of, by name.
fn measured(r: &Report, key: &str) -> Vec<(String, f64)> {
    let mut all = Vec::new();
    for o in &r.outputs {
        let mut put = |name: &str, value: Option<f64>| all.extend(value.map(|v| (name.to_string(), v)));
        match key {
            // Outputs that are no real numbers have shares of equal elements instead.
            "sqnr_db" if o.equal.is_none() => put(&o.name, Some(o.sqnr_db.0)),
            "cosine" if o.equal.is_none() => put(&o.name, Some(o.cosine)),
            "agreement" => put(&o.name, o.agreement),
            "top1_drop" => put(&o.name, o.accuracy.map(|a| a.reference - a.converted)),
            _ => {}
        }
        for p in &o.parts {
            let name = format!("{} in {}", p.name, o.name);
            match key {
                "sqnr_db" => put(&name, Some(p.sqnr_db.0)),
                "cosine" => put(&name, Some(p.cosine)),
                "agreement" => put(&name, p.agreement),
                _ => {}
            }
        }
    }
    match key {
        "coverage" => all.push(("the written file".into(), r.coverage.cov8)),
        "eval_drop" => all.extend(r.eval.as_ref().map(|e| ("the command's number".into(), e.reference - e.converted))),
        _ => {}
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::tests::full;
    use super::super::{Db, Eval, PartRow};
    use super::*;

    #[test]
    fn the_gate_names_what_was_missed() {
        let r = full();
        assert!(Gate::default().failures(&r).is_empty());
        let gate = Gate { sqnr_db: Some(25.0), cosine: Some(0.9), agreement: Some(0.96), coverage: Some(0.5), top1_drop: Some(0.05), eval_drop: Some(0.01) };
        let failures = gate.failures(&r);
        assert_eq!(failures.len(), 5, "{failures:?}");
        let words = ["sqnr_db of y is 20", "agreement of y", "coverage", "top1_drop of y is 0.1", "eval_drop of the command's number is 0.0200"];
        for (failure, word) in failures.iter().zip(words) {
            assert!(failure.contains(word), "{failure}");
        }
        let unmeasured = Gate { sqnr_db: Some(1.0), eval_drop: Some(1.0), ..Gate::default() }.failures(&Report::new("0"));
        assert!(unmeasured.len() == 2 && unmeasured.iter().all(|f| f.contains("was not measured")), "{unmeasured:?}");
    }

    #[test]
    fn the_worst_part_counts_and_what_is_no_number_is_worst() {
        let mut r = full();
        let gate = Gate { sqnr_db: Some(15.0), ..Gate::default() };
        let part = |name: &str, db: f64| PartRow { name: name.into(), sqnr_db: Db(db), cosine: 1.0, agreement: None };
        r.outputs[0].parts = vec![part("boxes", 40.0), part("scores", 12.0)];
        assert_eq!(gate.failures(&r), ["sqnr_db of scores in y is 12.0000, the gate wants 15"]);
        r.outputs[0].parts = vec![part("boxes", f64::NAN), part("scores", 12.0)];
        assert!(gate.failures(&r)[0].contains("boxes in y is NaN"));
        // The float model may be the worse one.
        r.eval = Some(Eval { command: String::new(), reference: 0.5, converted: 0.6 });
        assert!(Gate { eval_drop: Some(0.0), ..Gate::default() }.failures(&r).is_empty());
    }
}
