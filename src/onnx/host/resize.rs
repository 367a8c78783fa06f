//! Resize and Upsample: each axis on its own, as weights of the input's places for each place of the output.
//!
//! Source: [Resize](https://onnx.ai/onnx/operators/onnx__Resize.html).

use super::arithmetic::{doubles, like};
use super::cast::converted;
use super::movement::{axes_of, sizes};
use super::strides::around;
use super::{Array, Call, ElementType, Outputs, one};
use crate::error::{Result, bail};
use crate::onnx::graph::Node;

/// How places of the output and the input belong together.
struct Options<'a> {
    mode: &'a str,
    coordinates: &'a str,
    nearest: &'a str,
    antialias: bool,
    exclude_outside: bool,
    cubic_a: f64,
    extrapolation: f64,
}

impl<'a> Options<'a> {
    fn new(node: &'a Node) -> Result<Self> {
        // Before version 11 there were no coordinates to choose.
        let default = if node.version < 11 { "asymmetric" } else { "half_pixel" };
        let nearest = if node.version < 11 { "floor" } else { "round_prefer_floor" };
        let mode = node.text("mode")?.unwrap_or("nearest");
        let known = ["nearest", "linear", "cubic"];
        if !known.contains(&mode) {
            bail!(Unsupported, "mode: expected {}, found {mode:?}", known.join(", "));
        }
        Ok(Self {
            mode,
            coordinates: node.text("coordinate_transformation_mode")?.unwrap_or(default),
            nearest: node.text("nearest_mode")?.unwrap_or(nearest),
            antialias: node.flag("antialias", false)?,
            exclude_outside: node.flag("exclude_outside", false)?,
            cubic_a: node.float("cubic_coeff_a")?.map_or(-0.75, f64::from),
            extrapolation: node.float("extrapolation_value")?.map_or(0.0, f64::from),
        })
    }
}

/// An axis that changes.
struct Axis {
    axis: usize,
    scale: f64,
    output: usize,
    /// Where of the input the output begins and ends, as parts of its length.
    region: [f64; 2],
}

impl Axis {
    /// Where in the input a place of the output is.
    fn source(&self, i: usize, input: usize, coordinates: &str) -> Result<f64> {
        let (x, scale, size) = (i as f64, self.scale, input as f64);
        // The output as it would be without rounding down.
        let exact = scale * size;
        Ok(match coordinates {
            "half_pixel" => (x + 0.5) / scale - 0.5,
            "half_pixel_symmetric" => {
                let adjusted = self.output as f64 / exact;
                let centre = size / 2.0;
                centre * (1.0 - adjusted) + (x + 0.5) / scale - 0.5
            }
            "pytorch_half_pixel" if self.output > 1 => (x + 0.5) / scale - 0.5,
            "pytorch_half_pixel" => 0.0,
            "align_corners" if exact.floor() > 1.0 => x * (size - 1.0) / (self.output as f64 - 1.0).max(exact - 1.0),
            "align_corners" => 0.0,
            "asymmetric" => x / scale,
            "tf_half_pixel_for_nn" => (x + 0.5) / scale,
            "tf_crop_and_resize" if self.output > 1 => {
                let [start, end] = self.region;
                start * (size - 1.0) + x * (end - start) * (size - 1.0) / (self.output as f64 - 1.0)
            }
            "tf_crop_and_resize" => 0.5 * (self.region[0] + self.region[1]) * (size - 1.0),
            other => bail!(Unsupported, "coordinate_transformation_mode: {other:?} is not known"),
        })
    }

    /// The places of the input that a place of the output is made of, with their weights; `None` outside of the input
    /// where that has a value of its own.
    fn taps(&self, i: usize, input: usize, options: &Options<'_>) -> Result<Option<Vec<(usize, f64)>>> {
        let x = self.source(i, input, options.coordinates)?;
        let last = input as f64 - 1.0;
        if options.coordinates == "tf_crop_and_resize" && !(0.0..=last).contains(&x) {
            return Ok(None);
        }
        if options.mode == "nearest" {
            let place = match options.nearest {
                "round_prefer_floor" => (x - 0.5).ceil(),
                "round_prefer_ceil" => (x + 0.5).floor(),
                "floor" => x.floor(),
                "ceil" => x.ceil(),
                other => bail!(Unsupported, "nearest_mode: {other:?} is not known"),
            };
            return Ok(Some(vec![(place.clamp(0.0, last) as usize, 1.0)]));
        }
        // Without antialiasing a window is as wide when the output is smaller.
        let narrow = if options.antialias { self.scale.min(1.0) } else { 1.0 };
        let cubic = options.mode == "cubic";
        let reach = if cubic { 2.0 } else { 1.0 } / narrow;
        let weight = |distance: f64| {
            let d = (distance * narrow).abs();
            let a = options.cubic_a;
            match () {
                () if !cubic => (1.0 - d).max(0.0),
                () if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
                () if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
                () => 0.0,
            }
        };
        let mut taps = Vec::new();
        let (mut total, mut place) = (0.0, (x - reach).ceil());
        while place <= x + reach {
            let weight = weight(place - x);
            let inside = (0.0..=last).contains(&place);
            if inside || !options.exclude_outside {
                taps.push((place.clamp(0.0, last) as usize, weight));
                total += weight;
            }
            place += 1.0;
        }
        if options.antialias || options.exclude_outside {
            taps.iter_mut().for_each(|(_, weight)| *weight /= total);
        }
        Ok(Some(taps))
    }
}

/// The axes that change, from scales or sizes.
fn changes(call: &Call<'_>, data: &Array) -> Result<Vec<Axis>> {
    let node = call.node;
    let is_upsample = node.is("Upsample") || node.version < 11;
    let (regions, scales, wanted) = match is_upsample {
        true => (None, call.optional(1)?, None),
        false => (call.optional(1)?, call.optional(2)?, call.optional(3)?),
    };
    let axes = match node.ints("axes")? {
        Some(axes) => axes_of(axes, data.rank())?,
        None => (0..data.rank()).collect(),
    };
    let floats = |array: &Array| -> Result<Vec<f64>> { doubles(&converted(array, ElementType::F64)?) };
    let scales = match scales.filter(|s| s.len() > 0) {
        Some(scales) => Some(floats(scales)?),
        None => node.attribute("scales").map(|a| a.head.floats.iter().map(|&f| f64::from(f)).collect()),
    };
    let wanted = wanted.filter(|w| w.len() > 0).map(|w| sizes(&w.integers("sizes")?, "sizes")).transpose()?;
    let regions = regions.filter(|r| r.len() > 0).map(floats).transpose()?;
    let count = axes.len();
    let given = scales.as_ref().map(Vec::len).or(wanted.as_ref().map(Vec::len));
    if given != Some(count) || (scales.is_some() && wanted.is_some()) {
        bail!(InvalidInput, "expected scales or sizes for {count} axes, found {given:?}");
    }
    if regions.as_ref().is_some_and(|r| r.len() != 2 * count) {
        bail!(InvalidInput, "roi: expected {} numbers, found another", 2 * count);
    }
    let policy = node.text("keep_aspect_ratio_policy")?.unwrap_or("stretch");
    let mut scales: Vec<f64> = match (&scales, &wanted) {
        (Some(scales), _) => scales.clone(),
        (None, wanted) => {
            let wanted = wanted.as_deref().unwrap_or_default();
            axes.iter().zip(wanted).map(|(&axis, &n)| n as f64 / data.shape[axis] as f64).collect()
        }
    };
    if scales.iter().any(|s| !s.is_finite() || *s <= 0.0) && !data.shape.contains(&0) {
        bail!(InvalidInput, "scales: expected numbers above 0, found {scales:?}");
    }
    if wanted.is_some() && policy != "stretch" {
        let common = match policy {
            "not_larger" => scales.iter().copied().fold(f64::INFINITY, f64::min),
            "not_smaller" => scales.iter().copied().fold(0.0, f64::max),
            other => bail!(Unsupported, "keep_aspect_ratio_policy: {other:?} is not known"),
        };
        scales.fill(common);
    }
    let crops = node.text("coordinate_transformation_mode")?.is_some_and(|mode| mode == "tf_crop_and_resize");
    let axis = |(k, &axis): (usize, &usize)| {
        let size = data.shape[axis] as f64;
        let region = regions.as_ref().filter(|_| crops).map_or([0.0, 1.0], |r| [r[k], r[count + k]]);
        let output = match &wanted {
            Some(wanted) if policy == "stretch" => wanted[k],
            Some(_) => (scales[k] * size).round() as usize,
            // A scale is a f32, whose products may fall short of a whole number by its rounding alone.
            None if crops => (size * (region[1] - region[0]) * scales[k]).floor() as usize,
            None => (f64::from((size as f32) * (scales[k] as f32))).floor() as usize,
        };
        Axis { axis, scale: scales[k], output, region }
    };
    Ok(axes.iter().enumerate().map(axis).collect())
}

pub(super) fn resize(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let options = Options::new(call.node)?;
    let changes = changes(call, data)?;
    let mut shape = data.shape.clone();
    changes.iter().for_each(|change| shape[change.axis] = change.output);
    call.limits.elements(&shape)?;
    let mut values = doubles(&converted(data, ElementType::F64)?)?;
    let mut current = data.shape.clone();
    for change in &changes {
        let [outer, size, inner] = around(&current, change.axis);
        let taps = (0..change.output)
            .map(|i| change.taps(i, size, &options))
            .collect::<Result<Vec<Option<Vec<(usize, f64)>>>>>()?;
        // A scale of one leaves an axis as it is.
        let same = |(i, taps): (usize, &Option<Vec<(usize, f64)>>)| match taps {
            Some(taps) => taps.iter().all(|&(place, weight)| weight == if place == i { 1.0 } else { 0.0 }),
            None => false,
        };
        if change.output == size && taps.iter().enumerate().all(same) {
            continue;
        }
        let mut next = Vec::with_capacity(outer * change.output * inner);
        for row in 0..outer {
            for taps in &taps {
                for i in 0..inner {
                    next.push(match taps {
                        Some(taps) => taps.iter().map(|&(k, w)| w * values[(row * size + k) * inner + i]).sum(),
                        None => options.extrapolation,
                    });
                }
            }
        }
        current[change.axis] = change.output;
        values = next;
    }
    // An integer is rounded, as a nearest one is exact anyway.
    if data.element_type().is_float() {
        return one(like(data, shape, values));
    }
    let rounded = values.into_iter().map(f64::round_ties_even).collect();
    one(converted(&Array::new(shape, rounded), data.element_type())?)
}
