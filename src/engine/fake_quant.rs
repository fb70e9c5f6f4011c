//! FakeQuant as an operator of tract's. It holds only its quantizer's number: scheme and parameters are looked up when it runs,
//! in the rows bound to the running thread, so that one plan serves every table. (tract hands shared resources to the outermost
//! plan only; bodies of If and Scan run in plans of their own, on the same thread.)

use crate::quant::{Params, Scheme, fake_quantize};
use crate::tensor::{DType, Tensor as Ours};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// Name under which the operator is registered.
pub fn name() -> &'static str {
    crate::graph::Op::FakeQuant.spelling().1
}

/// Scheme and parameters by quantizer number: what a run reads.
pub type Rows = BTreeMap<u32, (Scheme, Option<Params>)>;

thread_local! {
    static ROWS: RefCell<Option<Rc<Rows>>> = const { RefCell::new(None) };
}

/// Runs `f` with `rows` bound to this thread.
pub fn with_rows<T>(rows: &Rc<Rows>, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<Rc<Rows>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ROWS.set(self.0.take());
        }
    }
    let _restore = Restore(ROWS.replace(Some(rows.clone())));
    f()
}

/// Fake-quantizes a tensor of any floating-point type.
pub fn apply(x: &Ours, scheme: &Scheme, params: Option<&Params>) -> crate::Result<Ours> {
    let mut values = x.to_f32()?.into_owned();
    fake_quantize(&mut values, x.shape(), scheme, params)?;
    of_f32(x.dtype(), x.shape(), values)
}

/// A tensor of floating-point type `dtype` with these values.
pub fn of_f32(dtype: DType, shape: &[usize], values: Vec<f32>) -> crate::Result<Ours> {
    Ok(match dtype {
        DType::F32 => Ours::of_f32(shape, values),
        DType::F16 => Ours::of(dtype, shape, values.into_iter().map(|v| half::f16::from_f32(v).to_bits()).collect()),
        DType::F64 => Ours::of(dtype, shape, values.into_iter().map(f64::from).collect()),
        other => return Err(crate::Error::failed(format!("{other} values cannot be fake-quantized"))),
    })
}

/// The operator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FakeQuant(u32);

/// Reads the operator from a node that `proto` wrote.
pub fn parse(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    Ok((expand(FakeQuant(node.get_attr::<i64>("quantizer")? as u32)), vec![]))
}

impl Expansion for FakeQuant {
    fn name(&self) -> StaticName {
        name().into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(&'s self, s: &mut Solver<'r>, inputs: &'p [TensorProxy], outputs: &'p [TensorProxy]) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        s.equals(&inputs[0].shape, &outputs[0].shape)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }

    fn runs_out_of_plan(&self) -> bool {
        false
    }
}

impl Op for FakeQuant {
    fn name(&self) -> StaticName {
        name().into()
    }

    op_as_typed_op!();
}

impl EvalOp for FakeQuant {
    // Never evaluated while the plan is built: the parameters are not those of the run.
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let rows = ROWS.with_borrow(|r| r.clone()).context("no quantizer table is bound")?;
        let (scheme, params) = rows.get(&self.0).with_context(|| format!("quantizer {} is not in the table", self.0))?;
        let mut x = args_1!(inputs).into_tensor();
        if x.datum_type() == f32::datum_type() {
            let shape = x.shape().to_vec();
            fake_quantize(x.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?, &shape, scheme, params.as_ref())?;
            return Ok(tvec!(x.into_tvalue()));
        }
        let y = apply(&super::tensors::of_tract(x.into_arc_tensor())?, scheme, params.as_ref())?;
        Ok(tvec!(super::tensors::to_tract(&y)?.into_tvalue()))
    }
}

impl TypedOp for FakeQuant {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].datum_type.fact(inputs[0].shape.clone())))
    }
}
