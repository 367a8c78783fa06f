//! Convolutions and products with constant weights, which are packed once. What is small is done by the calling thread,
//! before another has woken; the rest is dealt to all threads in chunks of rows.
//!
//! Not here: when these are better than the runtime's (`segment.rs`).

use std::collections::HashMap;

use rayon::prelude::*;

use super::graph::{Node, ValueId};
use super::host;
use super::value::Array;
use crate::cpu::Product;
use crate::error::{Result, bail};

/// A node with its packed weights.
pub(super) struct Packed {
    product: Product,
    bias: Option<Vec<f32>>,
    weights: Vec<usize>,
}

impl Packed {
    /// `None` if the node is not one of f32 with constant weights.
    pub(super) fn new(node: &Node, constants: &HashMap<ValueId, Array>) -> Option<Self> {
        let constant = |index: usize| node.input(index).and_then(|id| constants.get(&id));
        let w = constant(1)?;
        let values = w.of::<f32>()?;
        let bias = match node.input(2) {
            Some(_) => Some(constant(2)?.of::<f32>()?.to_vec()),
            None => None,
        };
        let (n, k, values) = match (node.op_type.as_str(), &w.shape[..]) {
            ("Conv", [filters, rest @ ..]) if node.int("group").ok()?.unwrap_or(1) == 1 => {
                (*filters, rest.iter().product(), values.to_vec())
            }
            ("MatMul", &[k, n]) if node.inputs.len() == 2 => (n, k, host::transposed_matrix(values, k, n)),
            ("Gemm", &[rows, columns]) => {
                let plain = |name: &str| node.float(name).ok().map(|v| v.unwrap_or(1.0)) == Some(1.0);
                if !plain("alpha") || !plain("beta") || node.flag("transA", false).ok()? {
                    return None;
                }
                match node.flag("transB", false).ok()? {
                    true => (rows, columns, values.to_vec()),
                    false => (columns, rows, host::transposed_matrix(values, rows, columns)),
                }
            }
            _ => return None,
        };
        if bias.as_ref().is_some_and(|b| b.len() != n) {
            return None;
        }
        Some(Self { product: Product::new(&values, n, k), bias, weights: w.shape.clone() })
    }

    /// The node's result; shapes were found to fit before.
    pub(super) fn run(&self, node: &Node, x: &Array) -> Result<Array> {
        let Some(values) = x.of::<f32>() else {
            bail!(InvalidInput, "expected float, found {}", x.element_type().name())
        };
        if !node.is("Conv") {
            let (Some(&k), [.., last]) = (x.shape.last(), &self.weights[..]) else {
                bail!(InvalidInput, "expected matrices, found {:?}", x.shape)
            };
            let rows = values.len().checked_div(k).unwrap_or(0);
            let transposed = node.is("Gemm") && node.flag("transB", false)?;
            let n = if transposed { self.weights[0] } else { *last };
            let result = self.rows(rows, n, |range| values[range.start * k..range.end * k].to_vec());
            let shape = x.shape[..x.rank() - 1].iter().copied().chain([n]).collect();
            return Ok(Array::new(shape, result));
        }
        let filters = self.weights[0];
        let window = host::Window::new(node, &x.shape[2..], host::kernel_of(node, &self.weights)?)?;
        let (batch, places) = (x.shape[0], window.output.iter().product::<usize>());
        let rows = self.rows(batch * places, filters, |range| window.columns(values, &x.shape, range));
        // [N, places, filters] → [N, filters, places]
        let mut result = Vec::with_capacity(rows.len());
        for image in rows.chunks_exact((places * filters).max(1)) {
            for filter in 0..filters {
                result.extend((0..places).map(|place| image[place * filters + filter]));
            }
        }
        let shape = [batch, filters].into_iter().chain(window.output.iter().copied()).collect();
        Ok(Array::new(shape, result))
    }

    /// The product of `count` rows, made in chunks by `rows`, with the bias.
    fn rows(&self, count: usize, n: usize, rows: impl Fn(std::ops::Range<usize>) -> Vec<f32> + Sync) -> Vec<f32> {
        const ROWS: usize = 48;
        let mut result = vec![0.0; count * n];
        let chunk = |(index, to): (usize, &mut [f32])| {
            let range = index * ROWS..(index * ROWS + to.len() / n.max(1));
            to.copy_from_slice(&self.product.run(&rows(range.clone()), range.len()));
            if let Some(bias) = &self.bias {
                to.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(bias).for_each(|(v, b)| *v += b));
            }
        };
        if count <= ROWS {
            result.chunks_mut((ROWS * n).max(1)).enumerate().for_each(chunk);
        } else {
            result.par_chunks_mut((ROWS * n).max(1)).enumerate().for_each(chunk);
        }
        result
    }
}
