//! Losses and gradients summed over samples, each on a tape of its own.

use crate::engine::over_samples;
use crate::error::Result;

/// Runs `run` for each of `samples` on `threads` threads and adds up, in their order, the losses and the gradients that it returns (as many, and as
/// long, for each sample): the same bytes on any number of threads. Of no samples: 0 and nothing.
pub fn over_batch(samples: &[usize], threads: usize, run: impl Fn(usize) -> Result<(f64, Vec<Vec<f32>>)> + Sync) -> Result<(f64, Vec<Vec<f32>>)> {
    let mut total: Option<(f64, Vec<Vec<f32>>)> = None;
    over_samples(
        samples.len(),
        threads,
        || Ok(()),
        |_, i| run(samples[i]),
        |_, (loss, grads)| {
            match &mut total {
                None => total = Some((loss, grads)),
                Some((sum, all)) => {
                    *sum += loss;
                    for (all, grad) in all.iter_mut().zip(&grads) {
                        all.iter_mut().zip(grad).for_each(|(a, g)| *a += g);
                    }
                }
            }
            Ok(())
        },
    )?;
    Ok(total.unwrap_or_default())
}
