//! Scaled dot-product attention and rotary embeddings, computed as f64.
//!
//! Source: [Attention](https://onnx.ai/onnx/operators/onnx__Attention.html),
//! [RotaryEmbedding](https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html).

use super::arithmetic::{doubles, like};
use super::strides::{broadcast_shape, broadcast_strides, copy, permuted};
use super::{Array, Call, Outputs, Value};
use crate::error::{Result, bail};

/// [batch, heads, steps, width] of an input with three or four axes.
struct Heads {
    sizes: [usize; 4],
    values: Vec<f64>,
}

impl Heads {
    fn new(array: &Array, heads: Option<usize>, what: &str) -> Result<Self> {
        let values = doubles(array)?;
        match (&array.shape[..], heads) {
            (&[b, h, t, w], _) => Ok(Self { sizes: [b, h, t, w], values }),
            (&[b, t, w], Some(h)) if h > 0 && w % h == 0 => {
                let (_, values) = permuted(&values, &[b, t, h, w / h], &[0, 2, 1, 3]);
                Ok(Self { sizes: [b, h, t, w / h], values })
            }
            (found, _) => bail!(
                InvalidInput,
                "{what}: expected [batch, heads, steps, width], or [batch, steps, heads · width] with the number of heads, \
                 found {found:?}"
            ),
        }
    }

    /// Steps of the past before these.
    fn after(self, past: Option<&Array>) -> Result<Self> {
        let Some(past) = past else { return Ok(self) };
        let [b, h, t, w] = self.sizes;
        let [pb, ph, pt, pw] = *past.shape else {
            bail!(InvalidInput, "past: expected [batch, heads, steps, width], found {:?}", past.shape)
        };
        if [pb, ph, pw] != [b, h, w] {
            bail!(InvalidInput, "past: expected [{b}, {h}, .., {w}], found {:?}", past.shape);
        }
        let earlier = doubles(past)?;
        let mut values = Vec::with_capacity(earlier.len() + self.values.len());
        for row in 0..b * h {
            values.extend_from_slice(&earlier[row * pt * w..][..pt * w]);
            values.extend_from_slice(&self.values[row * t * w..][..t * w]);
        }
        Ok(Self { sizes: [b, h, pt + t, w], values })
    }
}

fn count(call: &Call<'_>, name: &str) -> Result<Option<usize>> {
    match call.node.int(name)?.map(usize::try_from) {
        None => Ok(None),
        Some(Ok(n)) => Ok(Some(n)),
        Some(Err(_)) => bail!(InvalidFile, "{name}: expected 0 or more, found a negative number"),
    }
}

/// What is added to the products of queries and keys, [batch, heads, queries, keys]: −∞ where nothing passes.
fn bias(call: &Call<'_>, shape: &[usize; 4], past: usize) -> Result<Vec<f64>> {
    let [batch, heads, queries, keys] = *shape;
    let mut bias = vec![0.0; batch * heads * queries * keys];
    if let Some(mask) = call.optional(3)? {
        let (values, outside): (Vec<f64>, f64) = match mask.of::<bool>() {
            Some(v) => (v.iter().map(|&pass| if pass { 0.0 } else { f64::NEG_INFINITY }).collect(), f64::NEG_INFINITY),
            None => (doubles(mask)?, f64::NEG_INFINITY),
        };
        // A mask of fewer keys says nothing of the rest, which do not pass.
        let told = mask.shape.last().copied().unwrap_or(1);
        let mut wide = mask.shape.clone();
        let values = if told < keys && mask.rank() > 0 && told != 1 {
            wide[mask.rank() - 1] = keys;
            values
                .chunks_exact(told)
                .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(outside, keys - told)))
                .collect()
        } else {
            values
        };
        if broadcast_shape(&wide, shape).ok().as_deref() != Some(&shape[..]) {
            bail!(InvalidInput, "attn_mask: expected a shape that broadcasts to {shape:?}, found {:?}", mask.shape);
        }
        bias = copy(&values, 0, shape, &broadcast_strides(&wide, shape));
    }
    let valid: Option<Vec<i64>> = call.optional(6)?.map(|n| n.integers("nonpad_kv_seqlen")).transpose()?;
    if valid.as_ref().is_some_and(|v| v.len() != batch) {
        bail!(InvalidInput, "nonpad_kv_seqlen: expected one number for each of {batch} sequences, found another");
    }
    let causal = call.node.flag("is_causal", false)?;
    // How far a query sees to both sides; without end where negative.
    let side = |name: &str| -> Result<i64> { Ok(call.node.int(name)?.filter(|n| *n >= 0).unwrap_or(i64::MAX)) };
    let (left, right) = (side("left_window_size")?, side("right_window_size")?);
    for (i, sum) in bias.iter_mut().enumerate() {
        let (b, query, key) = (i / (heads * queries * keys), i / keys % queries, (i % keys) as i64);
        let offset = match &valid {
            Some(valid) => valid[b] - queries as i64,
            None => past as i64,
        };
        let ahead = key - (query as i64 + offset);
        let hidden = (causal && ahead > 0)
            || ahead > right
            || ahead.saturating_neg() > left
            || valid.as_ref().is_some_and(|v| key >= v[b]);
        if hidden {
            *sum = f64::NEG_INFINITY;
        }
    }
    Ok(bias)
}

pub(super) fn attention(call: &Call<'_>) -> Outputs {
    let (q_heads, kv_heads) = (count(call, "q_num_heads")?, count(call, "kv_num_heads")?);
    let flat = call.array(0)?.rank() == 3;
    let q = Heads::new(call.array(0)?, q_heads, "Q")?;
    let past = call.optional(4)?.map_or(0, |p| p.shape.get(2).copied().unwrap_or(0));
    if call.optional(4)?.is_some() != call.optional(5)?.is_some() {
        bail!(InvalidInput, "past_key and past_value: expected both or none, found one");
    }
    let k = Heads::new(call.array(1)?, kv_heads, "K")?.after(call.optional(4)?)?;
    let v = Heads::new(call.array(2)?, kv_heads, "V")?.after(call.optional(5)?)?;
    let ([batch, heads, queries, width], [kb, groups, keys, kw], [vb, vg, vk, v_width]) = (q.sizes, k.sizes, v.sizes);
    if [kb, kw, vb, vg, vk] != [batch, width, batch, groups, keys] || groups == 0 || heads % groups != 0 {
        bail!(
            InvalidInput,
            "expected K and V of as many sequences, heads and steps as each other and a width that of Q, found {:?}, {:?} \
             and {:?}",
            q.sizes,
            k.sizes,
            v.sizes
        );
    }
    let shape = [batch, heads, queries, keys];
    let elements = call.limits.elements(&shape)?;
    call.limits.work(elements as f64 * (width + v_width) as f64)?;
    let scale = call.node.float("scale")?.map_or(1.0 / (width as f64).sqrt(), f64::from);
    let softcap = call.node.float("softcap")?.map_or(0.0, f64::from);
    let mode = call.node.int("qk_matmul_output_mode")?.unwrap_or(0);
    let bias = bias(call, &shape, past)?;
    let mut output = vec![0.0; batch * heads * queries * v_width];
    let mut shown = Vec::with_capacity(bias.len());
    for row in 0..batch * heads * queries {
        let (b, head) = (row / (heads * queries), row / queries % heads);
        let of = b * groups + head / (heads / groups);
        let query = &q.values[row * width..][..width];
        let mut weights: Vec<f64> = (0..keys)
            .map(|key| {
                let products = query.iter().zip(&k.values[(of * keys + key) * width..][..width]);
                products.map(|(x, y)| x * y).sum::<f64>() * scale
            })
            .collect();
        if mode == 0 {
            shown.extend_from_slice(&weights);
        }
        if softcap > 0.0 {
            weights.iter_mut().for_each(|w| *w = (*w / softcap).tanh() * softcap);
        }
        if mode == 1 {
            shown.extend_from_slice(&weights);
        }
        weights.iter_mut().zip(&bias[row * keys..][..keys]).for_each(|(w, b)| *w += b);
        if mode == 2 {
            shown.extend_from_slice(&weights);
        }
        // Where no key passes, the row is zero.
        let most = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shift = if most == f64::NEG_INFINITY { 0.0 } else { most };
        weights.iter_mut().for_each(|w| *w = (*w - shift).exp());
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= if total == 0.0 { 1.0 } else { total });
        if mode == 3 {
            shown.extend_from_slice(&weights);
        }
        for (key, weight) in weights.iter().enumerate() {
            let values = &v.values[(of * keys + key) * v_width..][..v_width];
            let sums = &mut output[row * v_width..][..v_width];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    let first = call.array(0)?;
    let (mut y_shape, mut y) = (vec![batch, heads, queries, v_width], output);
    if flat {
        (_, y) = permuted(&y, &y_shape, &[0, 2, 1, 3]);
        y_shape = vec![batch, queries, heads * v_width];
    }
    let mut outputs = vec![
        like(first, y_shape, y).into(),
        like(first, k.sizes.to_vec(), k.values).into(),
        like(first, v.sizes.to_vec(), v.values).into(),
        like(first, shape.to_vec(), shown).into(),
    ];
    if !(0..=3).contains(&mode) {
        bail!(Unsupported, "qk_matmul_output_mode: expected 0 to 3, found {mode}");
    }
    outputs.truncate(call.node.outputs.len().max(1));
    Ok(outputs)
}

pub(super) fn rotary_embedding(call: &Call<'_>) -> Outputs {
    let x = call.array(0)?;
    let (b, t, heads, width, steps_last) = match (&x.shape[..], count(call, "num_heads")?) {
        (&[b, heads, t, width], _) => (b, t, heads, width, false),
        (&[b, t, all], Some(heads)) if heads > 0 && all % heads == 0 => (b, t, heads, all / heads, true),
        (found, _) => bail!(InvalidInput, "X: expected [batch, heads, steps, width], found {found:?}"),
    };
    let turned = count(call, "rotary_embedding_dim")?.filter(|&n| n > 0).unwrap_or(width);
    if turned > width || turned % 2 != 0 {
        bail!(InvalidInput, "rotary_embedding_dim: expected an even number up to {width}, found {turned}");
    }
    let half = turned / 2;
    let interleaved = call.node.flag("interleaved", false)?;
    let positions = call.optional(3)?.map(|p| p.integers("position_ids")).transpose()?;
    let caches: Vec<(&Array, Vec<f64>)> =
        [1, 2].into_iter().map(|i| Ok((call.array(i)?, doubles(call.array(i)?)?))).collect::<Result<_>>()?;
    let rows = match &positions {
        Some(positions) if positions.len() == b * t => positions.clone(),
        Some(found) => bail!(InvalidInput, "position_ids: expected {} numbers, found {}", b * t, found.len()),
        None => (0..(b * t) as i64).collect(),
    };
    for (cache, values) in &caches {
        let count = values.len().checked_div(half).unwrap_or(0) as i64;
        if cache.shape.last() != Some(&half) || rows.iter().any(|r| !(0..count).contains(r)) {
            bail!(
                InvalidInput,
                "cos_cache, sin_cache: expected rows of {half} for every position, found {:?}",
                cache.shape
            );
        }
    }
    let values = doubles(x)?;
    let mut result = values.clone();
    for n in 0..b * t * heads {
        let (step, head) = (n / heads, n % heads);
        let first = match steps_last {
            true => n * width,
            false => ((step / t * heads + head) * t + step % t) * width,
        };
        for i in 0..half {
            let (p, q) = if interleaved { (first + 2 * i, first + 2 * i + 1) } else { (first + i, first + half + i) };
            let row = rows[step] as usize * half + i;
            let (cos, sin) = (caches[0].1[row], caches[1].1[row]);
            result[p] = cos * values[p] - sin * values[q];
            result[q] = sin * values[p] + cos * values[q];
        }
    }
    Ok(vec![Value::Array(like(x, x.shape.clone(), result))])
}
