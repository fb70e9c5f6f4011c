//! Multiple-choice knapsack: one choice for each item, so that all losses together are least and no sum of costs is above its limit.
//!
//! Start: Lagrangian relaxation. For multipliers λ ≥ 0 each item takes the choice of least `loss + Σ λ·cost` by itself; bisection finds the λ at which the
//! limits just hold. That gives a choice that fits and a bound below every other, and each choice whose bound lies above the one that fits drops out.
//! The core that is left is an integer program, solved exactly. (Sinha and Zoltners 1979, The Multiple-Choice Knapsack Problem.)

use good_lp::{Expression, ProblemVariables, Solution, SolverModel, Variable, solvers::microlp::microlp, variable};

/// One choice of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub loss: f64,
    /// One a limit; not negative.
    pub costs: Vec<f64>,
}

/// Choices that the integer program may hold.
const CORE: usize = 48;
/// A sum may lie above its limit by this share: rounding of sums.
const SLACK: f64 = 1e-12;

/// The smallest sum of cost `j` that is possible at all.
pub fn least(items: &[Vec<Choice>], j: usize) -> f64 {
    items.iter().map(|c| c.iter().map(|c| c.costs[j]).fold(f64::INFINITY, f64::min)).sum()
}

/// Sums of the costs of a selection.
pub fn costs(items: &[Vec<Choice>], chosen: &[usize], limits: usize) -> Vec<f64> {
    (0..limits).map(|j| items.iter().zip(chosen).map(|(c, &k)| c[k].costs[j]).sum()).collect()
}

/// The losses of a selection, added.
pub fn loss(items: &[Vec<Choice>], chosen: &[usize]) -> f64 {
    items.iter().zip(chosen).map(|(c, &k)| c[k].loss).sum()
}

fn fits(items: &[Vec<Choice>], chosen: &[usize], limits: &[f64]) -> bool {
    costs(items, chosen, limits.len()).iter().zip(limits).all(|(c, l)| *c <= l * (1.0 + SLACK))
}

/// Which choice of each item; `None` where nothing fits. Losses and costs are finite. Where many choices are close to each other, those that cannot be better
/// by more than a thousandth of the whole loss are left out, so that the time stays bounded.
pub fn choose(items: &[Vec<Choice>], limits: &[f64]) -> Option<Vec<usize>> {
    if items.iter().any(Vec::is_empty) || (0..limits.len()).any(|j| least(items, j) > limits[j] * (1.0 + SLACK)) {
        return None;
    }
    let lambda = multipliers(items, limits);
    let start = at(items, &lambda);
    let start = fits(items, &start, limits).then(|| fill(items, start, limits));
    // For one limit what is cheapest fits.
    let start = start.or_else(|| {
        let cheapest =
            items.iter().map(|c| first_least(c, |c| c.costs.iter().zip(limits).map(|(c, l)| c / l.max(f64::MIN_POSITIVE)).sum())).collect::<Vec<_>>();
        fits(items, &cheapest, limits).then(|| fill(items, cheapest, limits))
    });
    let reduced = |c: &Choice| reduced(c, &lambda);
    let mut bound: f64 = items.iter().map(|c| c.iter().map(reduced).fold(f64::INFINITY, f64::min)).sum();
    bound -= limits.iter().zip(&lambda).map(|(b, l)| b * l).sum::<f64>();
    let best = start.as_ref().map_or(f64::INFINITY, |s| loss(items, s));
    let scale = best.abs().max(bound.abs());
    let mut core: Vec<Vec<usize>> = Vec::new();
    for tolerance in [-1e-12, 1e-6, 1e-5, 1e-4, 1e-3] {
        core = items
            .iter()
            .enumerate()
            .map(|(i, choices)| {
                let least = choices.iter().map(reduced).fold(f64::INFINITY, f64::min);
                let open = |k: &usize| bound + reduced(&choices[*k]) - least <= best - tolerance * scale || start.as_ref().is_some_and(|s| s[i] == *k);
                (0..choices.len()).filter(open).collect()
            })
            .collect();
        if core.iter().map(Vec::len).filter(|n| *n > 1).sum::<usize>() <= CORE {
            break;
        }
    }
    match (solve(items, limits, &core).filter(|c| fits(items, c, limits)), start) {
        (Some(exact), Some(start)) => Some(if loss(items, &exact) < loss(items, &start) { exact } else { start }),
        (one, other) => one.or(other),
    }
}

/// The first index of least value.
fn first_least(choices: &[Choice], value: impl Fn(&Choice) -> f64) -> usize {
    (0..choices.len()).min_by(|a, b| value(&choices[*a]).total_cmp(&value(&choices[*b]))).unwrap_or(0)
}

/// Loss and costs of a choice under these multipliers.
fn reduced(choice: &Choice, lambda: &[f64]) -> f64 {
    choice.loss + choice.costs.iter().zip(lambda).map(|(c, l)| c * l).sum::<f64>()
}

/// What each item takes under these multipliers; of equals the cheaper.
fn at(items: &[Vec<Choice>], lambda: &[f64]) -> Vec<usize> {
    let value = |c: &Choice| reduced(c, lambda);
    let spent = |c: &Choice| c.costs.iter().sum::<f64>();
    let better = |c: &[Choice], a: &usize, b: &usize| value(&c[*a]).total_cmp(&value(&c[*b])).then(spent(&c[*a]).total_cmp(&spent(&c[*b])));
    items.iter().map(|c| (0..c.len()).min_by(|a, b| better(c, a, b)).unwrap_or(0)).collect()
}

/// Multipliers at which every limit just holds, one after the other by bisection.
fn multipliers(items: &[Vec<Choice>], limits: &[f64]) -> Vec<f64> {
    let mut lambda = vec![0.0; limits.len()];
    for _ in 0..if limits.len() > 1 { 8 } else { 1 } {
        for j in 0..limits.len() {
            let holds = |l: f64| {
                let mut with = lambda.clone();
                with[j] = l;
                costs(items, &at(items, &with), limits.len())[j] <= limits[j] * (1.0 + SLACK)
            };
            if holds(0.0) {
                lambda[j] = 0.0;
                continue;
            }
            let (mut low, mut high) = (0.0, f64::MIN_POSITIVE.sqrt());
            while !holds(high) && high < f64::MAX / 1e9 {
                (low, high) = (high, high * 16.0);
            }
            for _ in 0..200 {
                let middle = 0.5 * (low + high);
                if holds(middle) { high = middle } else { low = middle }
            }
            lambda[j] = high;
        }
    }
    lambda
}

/// Spends what is left: again and again the change that takes most loss off for what it costs, while it fits.
fn fill(items: &[Vec<Choice>], mut chosen: Vec<usize>, limits: &[f64]) -> Vec<usize> {
    loop {
        let spent = costs(items, &chosen, limits.len());
        let mut best: Option<(f64, usize, usize)> = None;
        for (i, choices) in items.iter().enumerate() {
            let now = &choices[chosen[i]];
            for (k, c) in choices.iter().enumerate().filter(|(_, c)| c.loss < now.loss) {
                let more = |j: usize| c.costs[j] - now.costs[j];
                if (0..limits.len()).any(|j| spent[j] + more(j) > limits[j] * (1.0 + SLACK)) {
                    continue;
                }
                let share: f64 = (0..limits.len()).map(|j| (more(j) / limits[j].max(f64::MIN_POSITIVE)).max(0.0)).sum();
                let gain = (now.loss - c.loss) / share.max(1e-12);
                if best.is_none_or(|b| gain > b.0) {
                    best = Some((gain, i, k));
                }
            }
        }
        match best {
            Some((_, i, k)) => chosen[i] = k,
            None => return chosen,
        }
    }
}

/// The integer program over the choices that are open.
fn solve(items: &[Vec<Choice>], limits: &[f64], core: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut chosen: Vec<usize> = core.iter().map(|open| open.first().copied().unwrap_or(0)).collect();
    let free: Vec<usize> = (0..items.len()).filter(|i| core[*i].len() > 1).collect();
    if free.is_empty() {
        return Some(chosen);
    }
    let mut left = limits.to_vec();
    for i in (0..items.len()).filter(|i| core[*i].len() <= 1) {
        left.iter_mut().zip(&items[i][chosen[i]].costs).for_each(|(l, c)| *l -= c);
    }
    // Numbers near one suit the solver.
    let largest = free.iter().flat_map(|&i| core[i].iter().map(move |&k| items[i][k].loss.abs())).fold(f64::MIN_POSITIVE, f64::max);
    let unit = |j: usize| free.iter().flat_map(|&i| core[i].iter().map(move |&k| items[i][k].costs[j])).fold(f64::MIN_POSITIVE, f64::max);
    let mut variables = ProblemVariables::new();
    let x: Vec<Vec<(usize, Variable)>> = free.iter().map(|&i| core[i].iter().map(|&k| (k, variables.add(variable().binary()))).collect()).collect();
    let terms = |of: &dyn Fn(&Choice) -> f64| -> Expression {
        free.iter().zip(&x).flat_map(|(&i, x)| x.iter().map(move |(k, v)| (i, *k, *v))).map(|(i, k, v)| v * of(&items[i][k])).sum()
    };
    let mut problem = variables.minimise(terms(&|c| c.loss / largest)).using(microlp);
    for x in &x {
        problem = problem.with(x.iter().map(|(_, v)| Expression::from(*v)).sum::<Expression>().eq(1.0));
    }
    for (j, left) in left.iter().enumerate() {
        let unit = unit(j);
        problem = problem.with(terms(&|c| c.costs[j] / unit).leq(left / unit));
    }
    let solution = problem.solve().ok()?;
    for (&i, x) in free.iter().zip(&x) {
        let (k, _) = x.iter().max_by(|a, b| solution.value(a.1).total_cmp(&solution.value(b.1)))?;
        chosen[i] = *k;
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in 0..1 that look random.
    fn noise(seed: &mut u64) -> f64 {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*seed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Layers with three widths: wider costs more and mostly loses less.
    fn layers(n: usize, limits: usize, seed: &mut u64) -> Vec<Vec<Choice>> {
        let layer = |seed: &mut u64| {
            let size = (10.0 * noise(seed) - 3.0).exp();
            let hurt = (8.0 * noise(seed) - 4.0).exp();
            [2.0, 4.0, 8.0]
                .iter()
                .map(|bits: &f64| Choice {
                    loss: hurt * 4f64.powf(-bits) * (0.3 + noise(seed)),
                    costs: (0..limits).map(|j| size * bits * if j == 0 { 1.0 } else { 0.2 + noise(seed) }).collect(),
                })
                .collect()
        };
        (0..n).map(|_| layer(seed)).collect()
    }

    fn brute_force(items: &[Vec<Choice>], limits: &[f64]) -> Option<f64> {
        let n = 3usize.pow(items.len() as u32);
        let of = |code: usize| (0..items.len()).map(|i| code / 3usize.pow(i as u32) % 3).collect::<Vec<_>>();
        (0..n).map(of).filter(|c| fits(items, c, limits)).map(|c| loss(items, &c)).min_by(f64::total_cmp)
    }

    #[test]
    fn as_good_as_brute_force_under_one_limit_and_under_two() {
        let mut seed = 7;
        let mut met = 0;
        for round in 0..30 {
            let limits = 1 + round % 2;
            let items = layers(8, limits, &mut seed);
            let share = 0.2 + 0.8 * noise(&mut seed);
            let limit: Vec<f64> = (0..limits).map(|j| share * items.iter().map(|c| c[2].costs[j]).sum::<f64>()).collect();
            let (want, got) = (brute_force(&items, &limit), choose(&items, &limit));
            assert_eq!(want.is_some(), got.is_some(), "round {round}");
            if let (Some(want), Some(got)) = (want, got) {
                met += 1;
                assert!(fits(&items, &got, &limit) && loss(&items, &got) <= want * (1.0 + 1e-9), "round {round}: {want} {}", loss(&items, &got));
            }
        }
        assert!(met > 20, "{met}");
    }

    #[test]
    fn many_layers_end_near_the_bound_and_limits_that_are_wide_or_cannot_hold_are_told() {
        let mut seed = 3;
        let items = layers(300, 1, &mut seed);
        let full: f64 = items.iter().map(|c| c[2].costs[0]).sum();
        let limit = [0.4 * full];
        let got = choose(&items, &limit).unwrap();
        let lambda = multipliers(&items, &limit);
        let bound = items.iter().map(|c| c.iter().map(|c| c.loss + lambda[0] * c.costs[0]).fold(f64::INFINITY, f64::min)).sum::<f64>() - lambda[0] * limit[0];
        assert!(loss(&items, &got) <= bound * 1.001, "{} {bound}", loss(&items, &got));
        let free = choose(&items, &[full]).unwrap();
        assert!(items.iter().zip(&free).all(|(c, &k)| c.iter().all(|o| o.loss >= c[k].loss)));
        assert_eq!(choose(&items, &[0.9 * least(&items, 0)]), None);
        assert!(choose(&items, &[least(&items, 0)]).is_some());
    }
}
