//! Operators on the host, in every element type, exactly as their texts say: integers wrap in their own width, doubles
//! are computed as doubles, 16-bit floats as f32 and then rounded.
//!
//! In:  a node and its inputs.
//! Out: its outputs, or an error; nothing is allocated beyond [`Limits`].
//! Not here: fast f32 arithmetic (`segment.rs`), recurrent operators, control flow.
//! Source: [Operators](https://onnx.ai/onnx/operators/).

mod arithmetic;
mod attention;
mod cast;
mod convolution;
mod create;
mod fourier;
mod linear;
mod movement;
mod normalize;
mod quantize;
mod reduce;
mod resize;
mod select;
mod sequence;
mod strides;

use super::element::ElementType;
use super::graph::Node;
use super::value::{Array, Value};
use crate::error::{Result, bail};

pub(super) use cast::{converted, narrowed, to_f32, widened};
pub(super) use convolution::{Window, kernel_of, transposed};
pub(super) use linear::Product;
#[cfg(feature = "cpu")]
pub(super) use linear::transposed_matrix;
pub(super) use movement::{Cuts, axis_order, reshaped, squeezed, stacked, taken, unsqueezed};
pub(super) use reduce::{reduced_axes, reduced_shape};
pub(super) use strides::broadcast_shape;

/// What the evaluation of a graph may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Elements of a tensor.
    pub(super) max_elements: usize,
    /// Multiply-adds of a segment, see `segment.rs`.
    pub(super) max_multiply_adds: f64,
    /// Iterations of all Loops and Scans together.
    pub(super) max_iterations: u64,
    /// Bytes of all values that are alive at a time.
    pub(super) max_bytes: usize,
}

impl Limits {
    /// The number of elements of a shape, if they may be taken.
    pub(super) fn elements(&self, shape: &[usize]) -> Result<usize> {
        let product = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        match product {
            Some(elements) if elements <= self.max_elements => Ok(elements),
            _ => bail!(
                Unsupported,
                "expected a tensor of at most {} elements (OnnxOptions::max_elements), found shape {:?}",
                self.max_elements,
                &shape[..shape.len().min(8)]
            ),
        }
    }
}

impl Limits {
    /// Refuses more tensors in a sequence, or slices of one, than a model has use for: each takes memory of its own.
    pub(super) fn pieces(&self, count: usize) -> Result<()> {
        const MOST_PIECES: usize = 1 << 16;
        if count > MOST_PIECES {
            bail!(Unsupported, "expected at most {MOST_PIECES} tensors, found {count}");
        }
        Ok(())
    }

    /// Refuses more multiply-adds than may be taken.
    pub(super) fn work(&self, multiply_adds: f64) -> Result<()> {
        if multiply_adds > self.max_multiply_adds {
            bail!(
                Unsupported,
                "expected at most {:e} multiply-adds (OnnxOptions::max_multiply_adds), found {multiply_adds:e}",
                self.max_multiply_adds
            );
        }
        Ok(())
    }
}

/// A node with its inputs.
pub(super) struct Call<'a> {
    pub(super) node: &'a Node,
    pub(super) inputs: &'a [Option<&'a Value>],
    pub(super) limits: Limits,
}

type Outputs = Result<Vec<Value>>;

impl<'a> Call<'a> {
    fn value(&self, index: usize) -> Result<&'a Value> {
        match self.inputs.get(index).copied().flatten() {
            Some(value) => Ok(value),
            None => bail!(InvalidFile, "input {index}: expected one, found none"),
        }
    }

    fn array(&self, index: usize) -> Result<&'a Array> {
        self.value(index)?.array(&format!("input {index}"))
    }

    fn optional(&self, index: usize) -> Result<Option<&'a Array>> {
        match self.inputs.get(index).copied().flatten() {
            Some(value) => Ok(Some(value.array(&format!("input {index}"))?)),
            None => Ok(None),
        }
    }

    fn arrays(&self) -> Result<Vec<&'a Array>> {
        (0..self.inputs.len()).map(|i| self.array(i)).collect()
    }

    /// Integers that are an input, or were an attribute in earlier versions.
    fn integers(&self, index: usize, attribute: &str) -> Result<Option<Vec<i64>>> {
        match self.optional(index)? {
            Some(array) => Ok(Some(array.integers(attribute)?)),
            None => Ok(self.node.ints(attribute)?.map(<[i64]>::to_vec)),
        }
    }

    /// The axis that an attribute names.
    fn axis(&self, default: i64, rank: usize) -> Result<usize> {
        axis_of(self.node.int("axis")?.unwrap_or(default), rank)
    }
}

/// An axis, counted from the end where it is negative.
pub(super) fn axis_of(axis: i64, rank: usize) -> Result<usize> {
    let wide = rank as i64;
    match if axis < 0 { axis + wide } else { axis } {
        n if (0..wide).contains(&n) => Ok(n as usize),
        _ => bail!(InvalidInput, "axis: expected {} to {}, found {axis}", -wide, wide - 1),
    }
}

fn one(array: Array) -> Outputs {
    Ok(vec![array.into()])
}

/// How an operator is computed.
type Run = fn(&Call<'_>) -> Outputs;

/// An operator of ONNX's own domain.
struct Operator {
    run: Run,
    /// Attributes that it has in some version; others are refused.
    attributes: &'static [&'static str],
    /// Moves elements without looking at them, so that every type is as good as another.
    moves: bool,
}

/// The operator, if it is computed here.
fn operator(op_type: &str) -> Option<Operator> {
    let (run, attributes, moves): (Run, &'static [&'static str], bool) = match op_type {
        "Identity" => (movement::identity, &[], true),
        "Dropout" => (movement::dropout, &["ratio", "seed", "is_test"], true),
        "Reshape" => (movement::reshape, &["shape", "allowzero"], true),
        "Flatten" => (movement::flatten, &["axis"], true),
        "Squeeze" => (movement::squeeze, &["axes"], true),
        "Unsqueeze" => (movement::unsqueeze, &["axes"], true),
        "Transpose" => (movement::transpose, &["perm"], true),
        "Expand" => (movement::expand, &[], true),
        "Tile" => (movement::tile, &[], true),
        "Slice" => (movement::slice, &["starts", "ends", "axes"], true),
        "Split" => (movement::split, &["axis", "split", "num_outputs"], true),
        "Concat" => (movement::concat, &["axis"], true),
        "Pad" => (movement::pad, &["mode", "pads", "value", "paddings"], true),
        "DepthToSpace" => (movement::depth_to_space, &["blocksize", "mode"], true),
        "SpaceToDepth" => (movement::space_to_depth, &["blocksize", "mode"], true),
        "ReverseSequence" => (movement::reverse_sequence, &["batch_axis", "time_axis"], true),
        "Trilu" => (movement::trilu, &["upper"], true),
        "CenterCropPad" => (movement::center_crop_pad, &["axes"], true),
        "Gather" => (select::gather, &["axis"], true),
        "GatherElements" => (select::gather_elements, &["axis"], true),
        "GatherND" => (select::gather_nd, &["batch_dims"], true),
        "Scatter" | "ScatterElements" => (select::scatter_elements, &["axis", "reduction"], false),
        "ScatterND" => (select::scatter_nd, &["reduction"], false),
        "Where" => (select::choose, &[], true),
        "Compress" => (select::compress, &["axis"], true),
        "NonZero" => (select::non_zero, &[], true),
        "Unique" => (select::unique, &["axis", "sorted"], false),
        "OneHot" => (select::one_hot, &["axis"], true),
        "TopK" => (reduce::top_k, &["axis", "k", "largest", "sorted"], false),
        "Shape" => (create::shape, &["start", "end"], true),
        "Size" => (create::size, &[], true),
        "ConstantOfShape" => (create::constant_of_shape, &["value"], true),
        "Range" => (create::range, &["stash_type"], false),
        "EyeLike" => (create::eye_like, &["dtype", "k"], true),
        "HannWindow" | "HammingWindow" | "BlackmanWindow" => (create::window, &["output_datatype", "periodic"], true),
        "Cast" => (cast::cast, &["to", "saturate", "round_mode"], true),
        "CastLike" => (cast::cast_like, &["saturate", "round_mode"], true),
        "Add" | "Sub" | "Mul" | "Div" => (arithmetic::binary, &["axis", "broadcast", "consumed_inputs"], false),
        "Mod" => (arithmetic::modulo, &["fmod"], false),
        "Pow" => (arithmetic::power, &["axis", "broadcast"], false),
        "PRelu" => (arithmetic::prelu, &[], false),
        "BitShift" => (arithmetic::bit_shift, &["direction"], false),
        "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => (arithmetic::bitwise, &[], false),
        "BitwiseNot" => (arithmetic::bitwise_not, &[], false),
        "And" | "Or" | "Xor" => (arithmetic::logical, &["axis", "broadcast"], true),
        "Not" => (arithmetic::not, &[], true),
        "Equal" | "Greater" | "Less" | "GreaterOrEqual" | "LessOrEqual" => {
            (arithmetic::compare, &["axis", "broadcast"], true)
        }
        "Max" | "Min" | "Sum" | "Mean" => (arithmetic::variadic, &["consumed_inputs"], false),
        "Abs" | "Neg" | "Sign" | "Relu" => (arithmetic::unary_number, &["consumed_inputs"], false),
        "Clip" => (arithmetic::clip, &["min", "max", "consumed_inputs"], false),
        "IsNaN" => (arithmetic::is_nan, &[], false),
        "IsInf" => (arithmetic::is_inf, &["detect_negative", "detect_positive"], false),
        _ if arithmetic::function_attributes(op_type).is_some() => {
            (arithmetic::function, arithmetic::function_attributes(op_type).unwrap_or_default(), false)
        }
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2"
        | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare" => {
            (reduce::reduce, &["axes", "keepdims", "noop_with_empty_axes"], false)
        }
        "ArgMax" | "ArgMin" => (reduce::arg, &["axis", "keepdims", "select_last_index"], false),
        "CumSum" | "CumProd" => (reduce::cumulate, &["exclusive", "reverse"], false),
        "Softmax" | "LogSoftmax" | "Hardmax" => (normalize::softmax, &["axis"], false),
        "LayerNormalization" => (normalize::layer_norm, &["axis", "epsilon", "stash_type"], false),
        "RMSNormalization" => (normalize::rms_norm, &["axis", "epsilon", "stash_type"], false),
        "GroupNormalization" => (normalize::group_norm, &["epsilon", "num_groups", "stash_type"], false),
        "InstanceNormalization" => (normalize::instance_norm, &["epsilon", "consumed_inputs"], false),
        "BatchNormalization" => (
            normalize::batch_norm,
            &["epsilon", "momentum", "training_mode", "spatial", "is_test", "consumed_inputs"],
            false,
        ),
        "LpNormalization" => (normalize::lp_norm, &["axis", "p"], false),
        "MeanVarianceNormalization" => {
            (normalize::mean_variance, &["axes", "across_channels", "normalize_variance"], false)
        }
        "LRN" => (normalize::local_response, &["alpha", "beta", "bias", "size"], false),
        "MatMul" => (linear::matmul, &[], false),
        "Gemm" => (linear::gemm, &["alpha", "beta", "transA", "transB", "broadcast"], false),
        "MatMulInteger" => (linear::matmul_integer, &[], false),
        "Einsum" => (linear::einsum, &["equation"], false),
        "Det" => (linear::det, &[], false),
        "Conv" => (convolution::conv, &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"], false),
        "ConvTranspose" => (
            convolution::conv_transpose,
            &["auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"],
            false,
        ),
        "ConvInteger" => {
            (convolution::conv_integer, &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"], false)
        }
        "MaxPool" | "AveragePool" | "LpPool" => (
            convolution::pool,
            &[
                "auto_pad",
                "ceil_mode",
                "count_include_pad",
                "dilations",
                "kernel_shape",
                "pads",
                "storage_order",
                "strides",
                "p",
            ],
            false,
        ),
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => (convolution::global_pool, &["p"], false),
        "QuantizeLinear" => {
            (quantize::quantize, &["axis", "block_size", "output_dtype", "precision", "saturate"], true)
        }
        "DequantizeLinear" => (quantize::dequantize, &["axis", "block_size", "output_dtype"], true),
        "DynamicQuantizeLinear" => (quantize::dynamic, &[], true),
        "Attention" => (
            attention::attention,
            &[
                "is_causal",
                "kv_num_heads",
                "left_window_size",
                "right_window_size",
                "q_num_heads",
                "qk_matmul_output_mode",
                "scale",
                "softcap",
                "softmax_precision",
            ],
            false,
        ),
        "RotaryEmbedding" => {
            (attention::rotary_embedding, &["interleaved", "num_heads", "rotary_embedding_dim"], false)
        }
        "Resize" | "Upsample" => (
            resize::resize,
            &[
                "antialias",
                "axes",
                "coordinate_transformation_mode",
                "cubic_coeff_a",
                "exclude_outside",
                "extrapolation_value",
                "keep_aspect_ratio_policy",
                "mode",
                "nearest_mode",
                "scales",
            ],
            false,
        ),
        "DFT" => (fourier::dft, &["axis", "inverse", "onesided"], false),
        "STFT" => (fourier::stft, &["onesided"], false),
        "SequenceConstruct" => (sequence::construct, &[], true),
        "SequenceEmpty" => (sequence::empty, &["dtype"], true),
        "SequenceAt" => (sequence::at, &[], true),
        "SequenceInsert" => (sequence::insert, &[], true),
        "SequenceErase" => (sequence::erase, &[], true),
        "SequenceLength" => (sequence::length, &[], true),
        "SplitToSequence" => (sequence::split, &["axis", "keepdims"], true),
        "ConcatFromSequence" => (sequence::concat, &["axis", "new_axis"], true),
        _ => return None,
    };
    Some(Operator { run, attributes, moves })
}

/// Whether a node can be computed here; else what of it cannot.
pub(super) fn check(node: &Node) -> Result<()> {
    let operator = if node.domain.is_empty() { operator(&node.op_type) } else { None };
    let Some(operator) = operator else {
        match node.op_type.as_str() {
            "DynamicQuantizeLSTM" => bail!(
                Unsupported,
                "this operator quantises its input anew in each timestep, which is not computed; export the model without \
                 quantisation"
            ),
            op_type if op_type.starts_with("Random") || ["Bernoulli", "Multinomial"].contains(&op_type) => {
                bail!(Unsupported, "what is drawn at random is not computed; make it an input of the model")
            }
            _ => bail!(Unsupported, "this operator is not computed"),
        }
    };
    match node.attributes.iter().find(|a| !operator.attributes.contains(&a.head.name.as_str())) {
        Some(attribute) => bail!(Unsupported, "attribute {}: not one that is known", attribute.head.name),
        None => Ok(()),
    }
}

/// Computes a node.
///
/// # Errors
/// As the operator finds its inputs; without the node's name.
pub(super) fn run(call: &Call<'_>) -> Outputs {
    check(call.node)?;
    let Some(operator) = operator(&call.node.op_type) else { unreachable!("check() knows the operator") };
    let half = call.inputs.iter().flatten().find_map(|value| match value {
        Value::Array(array) if array.element_type().is_half() => Some(array.element_type()),
        _ => None,
    });
    let (false, Some(half)) = (operator.moves, half) else { return (operator.run)(call) };
    // 16-bit floats are computed as f32.
    let wide: Vec<Option<Value>> = call.inputs.iter().map(|v| v.map(widened)).collect();
    let wide: Vec<Option<&Value>> = wide.iter().map(Option::as_ref).collect();
    let outputs = (operator.run)(&Call { node: call.node, inputs: &wide, limits: call.limits })?;
    Ok(outputs.into_iter().map(|value| narrowed(value, half)).collect())
}

/// The type of a result where an attribute names it.
fn named_type(data_type: i64) -> Result<ElementType> {
    match i32::try_from(data_type).ok().and_then(ElementType::of) {
        Some(element) => Ok(element),
        None => bail!(
            Unsupported,
            "type {} is not computed",
            super::tensor::type_name(i32::try_from(data_type).unwrap_or(-1))
        ),
    }
}
