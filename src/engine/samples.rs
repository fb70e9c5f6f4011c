//! Parallel over samples, merged in their order: the bytes that come out do not depend on the number of threads.

use crate::error::Result;
use crate::interrupt;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What the threads share: the next sample to take, results that wait for their turn, and whether to stop.
struct Shared<T> {
    next: usize,
    merged: usize,
    done: BTreeMap<usize, Result<T>>,
    stop: bool,
}

/// Runs `run` for samples `0..n` on `threads` threads (at least one), each with a state of its own from `init`, and hands the results to
/// `merge` on the caller's thread in the order of the samples. At most twice as many results wait as there are threads.
///
/// # Errors
/// That of the lowest sample whose `run` or `merge` fails; an interrupt, between two samples.
pub fn over_samples<S, T: Send>(
    n: usize,
    threads: usize,
    init: impl Fn() -> Result<S> + Sync,
    run: impl Fn(&mut S, usize) -> Result<T> + Sync,
    mut merge: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    let threads = threads.clamp(1, n.max(1));
    if threads == 1 {
        let mut state = None;
        for i in 0..n {
            interrupt::check()?;
            if state.is_none() {
                state = Some(init()?);
            }
            let result = run(state.as_mut().expect("made above"), i)?;
            merge(i, result)?;
        }
        return interrupt::check();
    }
    let shared = Mutex::new(Shared { next: 0, merged: 0, done: BTreeMap::new(), stop: false });
    let changed = Condvar::new();
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let wait = |guard| changed.wait(guard).unwrap_or_else(PoisonError::into_inner);

    let worker = || {
        // Whatever ends this thread, a panic included, the others must hear of it.
        let _stop = OnUnwind(|| {
            lock().stop = true;
            changed.notify_all();
        });
        let mut state: Option<S> = None;
        loop {
            let mut s = lock();
            while !s.stop && s.next < n && s.next >= s.merged + 2 * threads {
                s = wait(s);
            }
            if s.stop || s.next >= n {
                return;
            }
            let i = s.next;
            s.next += 1;
            drop(s);
            let result = (|| {
                interrupt::check()?;
                if state.is_none() {
                    state = Some(init()?);
                }
                run(state.as_mut().expect("made above"), i)
            })();
            lock().done.insert(i, result);
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(worker);
        }
        let mut outcome = Ok(());
        for i in 0..n {
            let mut s: MutexGuard<Shared<T>> = lock();
            while !s.stop && !s.done.contains_key(&i) {
                s = wait(s);
            }
            let Some(result) = s.done.remove(&i) else { break };
            s.merged = i + 1;
            drop(s);
            changed.notify_all();
            outcome = interrupt::check().and(result).and_then(|r| merge(i, r));
            if outcome.is_err() {
                break;
            }
        }
        lock().stop = true;
        changed.notify_all();
        outcome
    })
}

/// What `run` gives for each of the samples `0..n`, in their order; else as [`over_samples`].
pub fn each_sample<S, T: Send>(
    n: usize,
    threads: usize,
    init: impl Fn() -> Result<S> + Sync,
    run: impl Fn(&mut S, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let mut all = Vec::with_capacity(n);
    over_samples(n, threads, init, run, |_, one| {
        all.push(one);
        Ok(())
    })?;
    Ok(all)
}

/// Runs a closure if the thread unwinds.
struct OnUnwind<F: Fn()>(F);

impl<F: Fn()> Drop for OnUnwind<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::Duration;

    /// Later samples finish sooner.
    fn slow(i: usize) {
        std::thread::sleep(Duration::from_micros(((7 * i) % 13 * 100) as u64));
    }

    #[test]
    fn results_are_merged_in_order_on_any_number_of_threads() {
        for threads in [0, 1, 2, 3, 8, 100] {
            let mut seen = Vec::new();
            let run = |made: &mut usize, i: usize| {
                slow(i);
                *made += 1;
                Ok(i * i)
            };
            over_samples(
                40,
                threads,
                || Ok(0usize),
                run,
                |i, sq| {
                    seen.push((i, sq));
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(seen, (0..40).map(|i| (i, i * i)).collect::<Vec<_>>(), "{threads} threads");
        }
    }

    #[test]
    fn few_results_wait_however_slow_the_first_is() {
        let (started, merged, most) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let run = |_: &mut (), i: usize| {
            most.fetch_max(started.fetch_add(1, SeqCst) + 1 - merged.load(SeqCst), SeqCst);
            if i == 0 {
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        };
        over_samples(
            200,
            3,
            || Ok(()),
            run,
            |_, ()| {
                merged.fetch_add(1, SeqCst);
                Ok(())
            },
        )
        .unwrap();
        // One more than the window may have been handed to `merge` but not counted yet.
        assert!(most.load(SeqCst) <= 2 * 3 + 1, "{most:?}");
    }

    #[test]
    fn the_error_of_the_lowest_sample_wins() {
        for threads in [1, 2, 4] {
            let run = |_: &mut (), i: usize| {
                if i == 5 {
                    std::thread::sleep(Duration::from_millis(20));
                }
                if i >= 5 { Err(Error::failed(format!("sample {i}"))) } else { Ok(i) }
            };
            let mut merged = 0;
            let e = over_samples(
                50,
                threads,
                || Ok(()),
                run,
                |_, _| {
                    merged += 1;
                    Ok(())
                },
            );
            assert_eq!(e.unwrap_err().to_string(), "sample 5");
            assert_eq!(merged, 5);
            let e = over_samples(50, threads, || Ok(()), |_, i| Ok(i), |i, _| if i == 3 { Err(Error::failed("merge 3")) } else { Ok(()) });
            assert_eq!(e.unwrap_err().to_string(), "merge 3");
            let e = over_samples(9, threads, || Err::<(), _>(Error::failed("no state")), |_, i| Ok(i), |_, _| Ok(()));
            assert_eq!(e.unwrap_err().to_string(), "no state");
        }
        over_samples(0, 2, || Err::<(), _>(Error::failed("no state")), |_, i| Ok(i), |_, _| Ok(())).unwrap();
    }

    #[test]
    fn a_panic_on_a_thread_does_not_hang_the_others() {
        let run = |_: &mut (), i: usize| if i == 3 { panic!("as the test wants") } else { Ok(i) };
        let outcome = std::panic::catch_unwind(|| over_samples(50, 3, || Ok(()), run, |_, _| Ok(())));
        assert!(outcome.is_err());
    }
}
