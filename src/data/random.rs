//! Made-up samples: for trying a recipe out; no figure measured on them means anything.

use super::InputInfo;
use super::sample::made;
use crate::graph::Dim;
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::f64::consts::TAU;

/// Size of a symbolic dimension that is not the first.
const FREE: usize = 16;
/// The same of an image (rank 4 and more): what halves five times over.
const SIDE: usize = 64;

fn shape(input: &InputInfo) -> Vec<usize> {
    let of = |(i, d): (usize, &Dim)| match d {
        Dim::Known(n) => *n,
        _ if i == 0 => 1,
        _ if input.shape.as_ref().is_some_and(|s| s.len() > 3) && i > 1 => SIDE,
        _ => FREE,
    };
    input.shape.iter().flatten().enumerate().map(of).collect()
}

/// What was chosen where the model leaves a size open.
pub fn remarks(inputs: &[InputInfo]) -> Vec<String> {
    let open = |i: &&InputInfo| i.shape.as_ref().is_none_or(|s| s.iter().any(|d| !matches!(d, Dim::Known(_))));
    let said = |i: &InputInfo| format!("random input {} has shape {:?}", i.name, shape(i));
    inputs.iter().filter(open).map(said).chain(["random data: no figure below means anything".to_string()]).collect()
}

/// Sample `i`: floats are normally distributed, integers 0 or 1 (a small vocabulary is always in range).
pub fn sample(inputs: &[InputInfo], seed: u64, i: usize) -> BTreeMap<String, Tensor> {
    let tensor = |input: &InputInfo| {
        let start = input.name.bytes().fold(mix(seed ^ mix(i as u64)), |h, b| mix(h ^ u64::from(b)));
        let uniform = |k: usize| (mix(start.wrapping_add(k as u64)) >> 11) as f64 / (1u64 << 53) as f64;
        let shape = shape(input);
        let value = |k: usize| match input.dtype.is_float() {
            true => (-2.0 * (1.0 - uniform(2 * k)).ln()).sqrt() * (TAU * uniform(2 * k + 1)).cos(),
            false => (uniform(k) < 0.5) as u8 as f64,
        };
        made(input.dtype, &shape, value).unwrap_or_else(|_| Tensor::of(DType::U8, &[0], Vec::<u8>::new()))
    };
    inputs.iter().map(|i| (i.name.clone(), tensor(i))).collect()
}

/// Puts numbers into an order that the seed decides (Fisher and Yates).
pub fn shuffle(order: &mut [usize], seed: u64) {
    for i in (1..order.len()).rev() {
        order.swap(i, (mix(seed ^ mix(i as u64)) % (i as u64 + 1)) as usize);
    }
}

/// Mixes 64 bits. Source: Steele, Lea, Flood: SplitMix64 (OOPSLA 2014).
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
