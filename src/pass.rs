//! What every step has in common: the state of the model that it needs and leaves, and how it tells of its progress.

/// How far a model has come. A step declares the states it accepts and the one it leaves; the driver refuses an order that cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// No quantizers yet.
    Float,
    /// Quantizers stand, without parameters.
    Placed,
    /// Scales and zero points are known.
    Fitted,
    /// Weights are codes.
    Rounded,
    /// Written in ONNX's own quantized ops.
    Lowered,
}

impl State {
    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            State::Float => "float",
            State::Placed => "placed",
            State::Fitted => "fitted",
            State::Rounded => "rounded",
            State::Lowered => "lowered",
        }
    }
}

/// Where progress and remarks go. Rooms below `cli` never print: they speak here.
pub trait Progress: Sync {
    /// A step begins that will tick `total` times (0: unknown).
    fn begin(&self, step: &str, total: u64);
    /// `n` more of the step's ticks are done.
    fn tick(&self, n: u64);
    /// The step is over.
    fn end(&self);
    /// One line for people.
    fn say(&self, line: &str);
}

/// Progress that nobody watches.
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64) {}
    fn tick(&self, _: u64) {}
    fn end(&self) {}
    fn say(&self, _: &str) {}
}
