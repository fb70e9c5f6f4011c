//! The cheapest set of units to raise so that a measured loss stays below a limit. Units are ranked by the noise that each causes for its cost; how far down
//! the ranking one must go is found by halving; then single units are taken back, the dearest first, and exchanged for cheaper ones, as long as the limit holds.
//! Every decision rests on a measurement; estimates only say what to try next.
//! Source: a ranked list and a search along it (Wu et al. 2020, section 6.1; Pandey et al. 2023, A Practical Mixed Precision Algorithm, section 3).

use crate::error::Result;
use std::collections::{BTreeMap, BTreeSet};

/// Units by number.
pub type Raised = BTreeSet<usize>;

/// What is known beforehand.
pub struct Fewest<'a> {
    /// The noise that each unit causes by itself.
    pub noises: &'a [f64],
    /// What a set costs.
    pub cost: &'a dyn Fn(&Raised) -> f64,
    /// Largest loss.
    pub most: f64,
    /// Measurements at most; the ranking itself always takes what it needs, about the logarithm of the number of units.
    pub tries: usize,
}

/// What the search came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Met(Raised),
    /// Not even with all raised; the loss then.
    Missed(f64),
}

struct Search<'a, F> {
    how: &'a Fewest<'a>,
    measure: F,
    known: BTreeMap<Raised, f64>,
    /// By noise for cost, best first.
    ranked: Vec<usize>,
}

/// Searches; `measure` says what is lost where a set is raised, and is asked once for each.
pub fn fewest(how: &Fewest, measure: impl FnMut(&Raised) -> Result<f64>) -> Result<Outcome> {
    let n = how.noises.len();
    let mut s = Search { how, measure, known: BTreeMap::new(), ranked: ranked(how) };
    if s.holds(&Raised::new())? {
        return Ok(Outcome::Met(Raised::new()));
    }
    let all: Raised = (0..n).collect();
    if !s.holds(&all)? {
        return Ok(Outcome::Missed(s.known[&all]));
    }
    let prefix = |ranked: &[usize], k: usize| ranked[..k].iter().copied().collect::<Raised>();
    let (mut fails, mut holds) = (0, n);
    while holds - fails > 1 {
        let middle = fails.midpoint(holds);
        let set = prefix(&s.ranked, middle);
        if s.holds(&set)? { holds = middle } else { fails = middle }
    }
    let mut chosen = prefix(&s.ranked, holds);
    loop {
        let cost = (how.cost)(&chosen);
        s.take_back(&mut chosen)?;
        s.exchange(&mut chosen)?;
        if (how.cost)(&chosen) >= cost {
            return Ok(Outcome::Met(chosen));
        }
    }
}

fn ranked(how: &Fewest) -> Vec<usize> {
    let costs: Vec<f64> = (0..how.noises.len()).map(|i| (how.cost)(&Raised::from([i]))).collect();
    let least = costs.iter().copied().filter(|c| *c > 0.0).fold(f64::INFINITY, f64::min);
    // What costs nothing counts as a thousandth of the cheapest.
    let floor = if least.is_finite() { least / 1000.0 } else { 1.0 };
    let mut ranked: Vec<usize> = (0..costs.len()).collect();
    ranked.sort_by(|a, b| (how.noises[*b] / costs[*b].max(floor)).total_cmp(&(how.noises[*a] / costs[*a].max(floor))).then(a.cmp(b)));
    ranked
}

impl<F: FnMut(&Raised) -> Result<f64>> Search<'_, F> {
    fn holds(&mut self, set: &Raised) -> Result<bool> {
        let loss = match self.known.get(set) {
            Some(loss) => *loss,
            None => {
                let loss = (self.measure)(set)?;
                self.known.insert(set.clone(), loss);
                loss
            }
        };
        Ok(loss <= self.how.most)
    }

    /// Whether `set` costs less than `than` and holds; not asked where measurements have run out.
    fn better(&mut self, set: &Raised, than: f64) -> Result<bool> {
        let open = self.known.contains_key(set) || self.known.len() < self.how.tries;
        Ok(open && (self.how.cost)(set) < than && self.holds(set)?)
    }

    /// Takes single units back, the dearest first; of those alike, the one that harms least.
    fn take_back(&mut self, chosen: &mut Raised) -> Result<()> {
        let mut order: Vec<(f64, usize)> = Vec::new();
        for &i in chosen.iter() {
            let without: Raised = chosen.iter().copied().filter(|j| *j != i).collect();
            order.push(((self.how.cost)(chosen) - (self.how.cost)(&without), i));
        }
        let noise = |i: usize| self.how.noises[i];
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(noise(a.1).total_cmp(&noise(b.1))).then(a.1.cmp(&b.1)));
        for (_, i) in order {
            let without: Raised = chosen.iter().copied().filter(|j| *j != i).collect();
            if self.better(&without, (self.how.cost)(chosen))? {
                *chosen = without;
            }
        }
        Ok(())
    }

    /// Exchanges raised units for others that take off about as much noise and cost less: one for several, or several for one.
    fn exchange(&mut self, chosen: &mut Raised) -> Result<()> {
        let noise = |i: usize| self.how.noises[i];
        'again: loop {
            let cost = (self.how.cost)(chosen);
            let mut candidates: Vec<(f64, Raised)> = Vec::new();
            let outside: Vec<usize> = self.ranked.iter().copied().filter(|i| !chosen.contains(i)).collect();
            let mut inside: Vec<usize> = chosen.iter().copied().collect();
            inside.sort_by(|a, b| noise(*a).total_cmp(&noise(*b)).then(a.cmp(b)));
            for &old in &inside {
                for from in 0..outside.len() {
                    let mut with = chosen.clone();
                    with.remove(&old);
                    for &new in &outside[from..] {
                        with.insert(new);
                        candidates.push(((self.how.cost)(&with), with.clone()));
                    }
                }
            }
            for &new in &outside {
                for from in 0..inside.len() {
                    let mut with = chosen.clone();
                    with.insert(new);
                    for &old in inside[from..].iter().take(4) {
                        with.remove(&old);
                        candidates.push(((self.how.cost)(&with), with.clone()));
                    }
                }
            }
            let taken_off = |set: &Raised| set.iter().map(|i| noise(*i)).sum::<f64>();
            let now = taken_off(chosen);
            candidates.retain(|(c, set)| *c < cost && taken_off(set) > 0.7 * now);
            candidates.sort_by(|a, b| taken_off(&b.1).total_cmp(&taken_off(&a.1)).then(a.0.total_cmp(&b.0)).then(a.1.cmp(&b.1)));
            candidates.dedup();
            // Estimates are good enough that what is far down the list is not worth a measurement.
            for (_, set) in candidates.into_iter().take(12) {
                if self.better(&set, cost)? {
                    *chosen = set;
                    continue 'again;
                }
            }
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: &mut u64) -> f64 {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*seed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Losses that add up, with neighbours that make each other worse, in steps as samples give them.
    #[test]
    fn close_to_brute_force_for_equal_costs_and_for_unequal_ones() {
        let mut seed = 11;
        let (mut worst, mut all, mut best) = (1.0f64, 0.0, 0.0);
        for round in 0..60 {
            let n = 8;
            let noises: Vec<f64> = (0..n).map(|_| (5.0 * noise(&mut seed) - 5.0).exp()).collect();
            let costs: Vec<f64> = (0..n).map(|_| if round % 2 == 0 { 1.0 } else { (4.0 * noise(&mut seed)).exp() }).collect();
            let pairs: Vec<f64> = (0..n).map(|_| 0.3 * noise(&mut seed)).collect();
            let cost = |set: &Raised| set.iter().map(|i| costs[*i]).sum::<f64>();
            let loss = |set: &Raised| {
                let left = |i: usize| if set.contains(&i) { 0.0 } else { noises[i] };
                let sum: f64 = (0..n).map(|i| left(i) + pairs[i] * (left(i) * left((i + 1) % n)).sqrt()).sum();
                (sum * 256.0).floor() / 256.0
            };
            let most = 0.3 * loss(&Raised::new()) * noise(&mut seed);
            let sets = (0..1u32 << n).map(|code| (0..n).filter(|i| code >> i & 1 == 1).collect::<Raised>());
            let least = sets.filter(|s| loss(s) <= most).map(|s| cost(&s)).fold(f64::INFINITY, f64::min);
            let mut asked = BTreeSet::new();
            let how = Fewest { noises: &noises, cost: &cost, most, tries: 48 };
            let Outcome::Met(found) = fewest(&how, |s| {
                assert!(asked.insert(s.clone()), "asked twice");
                Ok(loss(s))
            })
            .unwrap() else {
                panic!("all raised lose nothing")
            };
            assert!(loss(&found) <= most && asked.len() <= 48 + 8, "round {round}");
            worst = worst.max(if least > 0.0 { cost(&found) / least } else { 1.0 });
            all += cost(&found);
            best += least;
        }
        assert!(worst <= 1.2 && all <= 1.03 * best, "{worst} {}", all / best);
    }

    #[test]
    fn nothing_is_raised_where_nothing_must_be_and_a_limit_that_cannot_be_met_is_told() {
        let how = Fewest { noises: &[0.1, 0.2], cost: &|s| s.len() as f64, most: 0.5, tries: 9 };
        assert_eq!(fewest(&how, |_| Ok(0.4)).unwrap(), Outcome::Met(Raised::new()));
        assert_eq!(fewest(&how, |s| Ok(0.9 - 0.1 * s.len() as f64)).unwrap(), Outcome::Missed(0.7));
    }
}
