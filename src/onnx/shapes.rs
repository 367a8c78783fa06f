//! Shapes of what the fast runtime makes, before it makes it: so that what does not fit together, or is too large, is
//! told with its node, and never reaches the runtime.

use super::graph::Node;
use super::host::{self, Limits};
use super::value::Array;
use crate::error::{Result, bail};

/// What a node makes, and the multiply-adds that it takes.
pub(super) struct Made {
    pub(super) shapes: Vec<Vec<usize>>,
    pub(super) multiply_adds: f64,
}

/// The inputs of a node: shapes, and the values of those that are constants.
pub(super) struct Known<'a> {
    pub(super) shapes: Vec<Option<&'a [usize]>>,
    pub(super) constants: Vec<Option<&'a Array>>,
}

impl<'a> Known<'a> {
    fn shape(&self, index: usize) -> Result<&'a [usize]> {
        match self.shapes.get(index).copied().flatten() {
            Some(shape) => Ok(shape),
            None => bail!(InvalidFile, "input {index}: expected one, found none"),
        }
    }

    /// Integers that are a constant input, or were an attribute in earlier versions.
    fn integers(&self, node: &Node, index: usize, name: &str) -> Result<Option<Vec<i64>>> {
        match self.constants.get(index).copied().flatten() {
            Some(array) => Ok(Some(array.integers(name)?)),
            None => Ok(node.ints(name)?.map(<[i64]>::to_vec)),
        }
    }
}

/// Shapes of the outputs of a node that the fast runtime takes; see `segment.rs` for which those are.
pub(super) fn made(node: &Node, known: &Known<'_>, limits: Limits) -> Result<Made> {
    let x = known.shape(0)?;
    let mut multiply_adds = 0.0;
    let shapes = match node.op_type.as_str() {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Sum" | "Mean" => {
            let mut shape = x.to_vec();
            for i in 1..known.shapes.len() {
                shape = host::broadcast_shape(&shape, known.shape(i)?)?;
            }
            vec![shape]
        }
        "MatMul" => {
            let product = host::Product::new(x, known.shape(1)?)?;
            multiply_adds = product.shape.iter().product::<usize>() as f64 * product.sizes[1] as f64;
            vec![product.shape]
        }
        "Gemm" => {
            let side = |shape: &[usize], name: &str| -> Result<[usize; 2]> {
                match (shape, node.flag(name, false)?) {
                    (&[rows, columns], false) => Ok([rows, columns]),
                    (&[columns, rows], true) => Ok([rows, columns]),
                    (found, _) => bail!(InvalidInput, "expected matrices, found shape {found:?}"),
                }
            };
            let (a, b) = (side(x, "transA")?, side(known.shape(1)?, "transB")?);
            let product = host::Product::new(&a, &b)?;
            if let Some(c) = known.shapes.get(2).copied().flatten()
                && host::broadcast_shape(c, &product.shape)? != product.shape
            {
                bail!(InvalidInput, "C: expected a shape that broadcasts to {:?}, found {c:?}", product.shape);
            }
            multiply_adds = product.sizes.iter().map(|&n| n as f64).product();
            vec![product.shape]
        }
        "Conv" => {
            let w = known.shape(1)?;
            let (window, channels) = conv_window(node, x, w)?;
            let shape: Vec<usize> = [x[0], w[0]].into_iter().chain(window.output).collect();
            multiply_adds =
                shape.iter().product::<usize>() as f64 * (channels * window.kernel.iter().product::<usize>()) as f64;
            vec![shape]
        }
        "ConvTranspose" => {
            let w = known.shape(1)?;
            let ([n, c, input @ ..], [channels, depth, kernel @ ..]) = (x, w) else {
                bail!(InvalidInput, "expected [N, C, ..], found {x:?} and {w:?}")
            };
            let groups = node.int("group")?.unwrap_or(1).max(1) as usize;
            if c != channels || input.len() != kernel.len() {
                bail!(InvalidInput, "W: expected [channels = {c}, filters / group, ..], found {w:?}");
            }
            let kernel = host::kernel_of(node, w).map(|_| kernel)?;
            let (_, output) = host::transposed(node, input, kernel)?;
            multiply_adds = x.iter().product::<usize>() as f64 * w[1..].iter().product::<usize>() as f64;
            vec![[*n, depth * groups].into_iter().chain(output).collect()]
        }
        "MaxPool" | "AveragePool" => {
            let [n, c, input @ ..] = x else { bail!(InvalidInput, "expected [N, C, ..], found {x:?}") };
            let kernel = node.ints("kernel_shape")?.unwrap_or_default().iter().map(|&k| k.max(0) as usize).collect();
            let window = host::Window::new(node, input, kernel)?;
            vec![[*n, *c].into_iter().chain(window.output).collect()]
        }
        "GlobalAveragePool" | "GlobalMaxPool" => {
            let [n, c, input @ ..] = x else { bail!(InvalidInput, "expected [N, C, ..], found {x:?}") };
            vec![[*n, *c].into_iter().chain(input.iter().map(|_| 1)).collect()]
        }
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceL2" => {
            let axes = known.integers(node, 1, "axes")?;
            let keep = node.flag("keepdims", true)?;
            let noop = node.flag("noop_with_empty_axes", false)?;
            match host::reduced_axes(axes.as_deref(), noop, x.len())? {
                Some(axes) => vec![host::reduced_shape(x, &axes, keep)],
                None => vec![x.to_vec()],
            }
        }
        "Transpose" => {
            let order = host::axis_order(node.ints("perm")?, x.len())?;
            vec![order.into_iter().map(|axis| x[axis]).collect()]
        }
        "Reshape" => {
            let wanted = known.integers(node, 1, "shape")?.unwrap_or_default();
            vec![host::reshaped(x, &wanted, node.flag("allowzero", false)?)?]
        }
        "Flatten" => {
            let axis = node.int("axis")?.unwrap_or(1);
            let axis = if axis == x.len() as i64 { x.len() } else { host::axis_of(axis, x.len())? };
            vec![vec![x[..axis].iter().product(), x[axis..].iter().product()]]
        }
        "Squeeze" => vec![host::squeezed(x, known.integers(node, 1, "axes")?.as_deref())?],
        "Unsqueeze" => vec![host::unsqueezed(x, &known.integers(node, 1, "axes")?.unwrap_or_default())?],
        "Slice" => {
            let of = |index, name| known.integers(node, index, name);
            let (starts, ends) = (of(1, "starts")?.unwrap_or_default(), of(2, "ends")?.unwrap_or_default());
            let (axes, steps) = (of(3, "axes")?, of(4, "steps")?);
            vec![host::Cuts::new(x, &starts, &ends, axes.as_deref(), steps.as_deref())?.shape]
        }
        "Concat" => {
            let axis = host::axis_of(node.int("axis")?.unwrap_or(1), x.len())?;
            let mut shape = x.to_vec();
            for i in 1..known.shapes.len() {
                let other = known.shape(i)?;
                let fits = other.len() == x.len() && (0..x.len()).all(|k| k == axis || other[k] == x[k]);
                if !fits {
                    bail!(InvalidInput, "expected inputs that differ in axis {axis} only, found {x:?} and {other:?}");
                }
                shape[axis] = shape[axis].saturating_add(other[axis]);
            }
            vec![shape]
        }
        "LayerNormalization" | "BatchNormalization" | "InstanceNormalization" => {
            check_norm(node, x, known)?;
            vec![x.to_vec()]
        }
        "Softmax" | "LogSoftmax" => {
            host::axis_of(node.int("axis")?.unwrap_or(-1), x.len())?;
            vec![x.to_vec()]
        }
        // Functions of each element.
        _ => vec![x.to_vec()],
    };
    for shape in &shapes {
        limits.elements(shape)?;
    }
    Ok(Made { shapes, multiply_adds })
}

/// The window of a convolution, and the channels of a filter.
fn conv_window(node: &Node, x: &[usize], w: &[usize]) -> Result<(host::Window, usize)> {
    let ([_, c, input @ ..], [filters, depth, ..]) = (x, w) else {
        bail!(InvalidInput, "expected [N, C, ..], found {x:?} and {w:?}")
    };
    let groups = node.int("group")?.unwrap_or(1).max(1) as usize;
    if depth * groups != *c || filters % groups != 0 || x.len() != w.len() {
        bail!(InvalidInput, "W: expected [filters, channels / group = {c} / {groups}, ..], found {w:?}");
    }
    Ok((host::Window::new(node, input, host::kernel_of(node, w)?)?, *depth))
}

/// Scales and biases of a normalisation have the sizes that it asks for.
fn check_norm(node: &Node, x: &[usize], known: &Known<'_>) -> Result<()> {
    let expected: Vec<usize> = match node.op_type.as_str() {
        "LayerNormalization" => x[host::axis_of(node.int("axis")?.unwrap_or(-1), x.len())?..].to_vec(),
        _ => vec![match *x {
            [_, c, ..] => c,
            _ => bail!(InvalidInput, "expected [N, C, ..], found {x:?}"),
        }],
    };
    for i in 1..known.shapes.len() {
        if let Some(found) = known.shapes[i]
            && found != expected
        {
            bail!(InvalidInput, "input {i}: expected shape {expected:?}, found {found:?}");
        }
    }
    Ok(())
}
