//! Narrow as an operator of tract's: float32 numbers rounded to float16 or bfloat16, half to even, and float32 still. What is too large becomes infinite,
//! as ONNX's Cast has it. With it, a model in a narrow type is computed as CPUs and accelerators do: in float32, each result rounded as it is stored.

use crate::tensor::DType;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// Name under which the operator is registered.
pub fn name() -> &'static str {
    crate::graph::Op::Narrow.spelling().1
}

/// The operator; true: to bfloat16, else to float16.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Narrow(bool);

/// Reads the operator from a node that `proto` wrote.
pub fn parse(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let to = node.get_attr::<i64>("to")? as i32;
    ensure!(to == DType::F16.onnx() || to == DType::BF16.onnx(), "Narrow rounds to float16 and bfloat16");
    Ok((expand(Narrow(to == DType::BF16.onnx())), vec![]))
}

impl Expansion for Narrow {
    fn name(&self) -> StaticName {
        name().into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(&'s self, s: &mut Solver<'r>, inputs: &'p [TensorProxy], outputs: &'p [TensorProxy]) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, f32::datum_type())?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.equals(&inputs[0].shape, &outputs[0].shape)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }

    fn runs_out_of_plan(&self) -> bool {
        false
    }
}

impl Op for Narrow {
    fn name(&self) -> StaticName {
        name().into()
    }

    op_as_typed_op!();
}

impl EvalOp for Narrow {
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut x = args_1!(inputs).into_tensor();
        let mut plain = x.try_as_plain_ram_mut()?;
        let values = plain.as_slice_mut::<f32>()?;
        if self.0 {
            values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
        } else {
            values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
        }
        Ok(tvec!(x.into_tvalue()))
    }
}

impl TypedOp for Narrow {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].datum_type.fact(inputs[0].shape.clone())))
    }
}
