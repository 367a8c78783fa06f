//! Stage 1, read: a weight that training keeps in parts → the weight.
//!
//! In:  the tensors of one place of a network, by the part they are.
//! Out: [`Source`]: the shape, and the numbers as f32: computed in f64, rounded once.
//! What PyTorch and fastai attach to modules, as they compute it in evaluation mode:
//!
//! weight_norm      g·v/‖v‖       `_g`, `_v`; `parametrizations.NAME.original0`, `original1`; ‖v‖ over the axes where g has size 1
//! pruning          orig·mask     `_orig`, `_mask`
//! spectral_norm    orig/(u·W·v)  `_orig`, `_u`, `_v`; `parametrizations.NAME.original`, `0._u`, `0._v`
//! weight drop      raw           `_raw`; the plain name holds a copy with dropout
//!
//! Not here: names (`torch`).

use std::collections::BTreeMap;

use crate::error::{Result, bail};
use crate::weights::source::shown;
use crate::weights::tensor::Tensor;

/// Which part of a weight a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Whole,
    Raw,
    /// `_g`
    Magnitude,
    /// `_v`: of weight_norm, or of spectral_norm
    V,
    /// `_orig`
    Original,
    Mask,
    U,
    /// `original0`
    Original0,
    Original1,
    /// `original` of a parametrization
    Parametrized,
    ParametrizedU,
    ParametrizedV,
}

/// How the names of parts end.
pub(super) const SUFFIXES: [(&str, Part); 6] = [
    ("_raw", Part::Raw),
    ("_g", Part::Magnitude),
    ("_v", Part::V),
    ("_orig", Part::Original),
    ("_mask", Part::Mask),
    ("_u", Part::U),
];

/// How they continue in a parametrization.
pub(super) const PARAMETRIZED: [(&str, Part); 5] = [
    ("original0", Part::Original0),
    ("original1", Part::Original1),
    ("original", Part::Parametrized),
    ("0._u", Part::ParametrizedU),
    ("0._v", Part::ParametrizedV),
];

/// A tensor and its full name.
pub(super) type Named<'t> = (&'t str, &'t Tensor<'t>);

/// What a weight is computed from.
#[derive(Debug, Clone)]
pub(super) enum Source<'t> {
    Whole(Named<'t>),
    /// Weight drop: the weight, and the copy if there is one.
    Raw(Named<'t>, Option<Named<'t>>),
    WeightNorm {
        g: Named<'t>,
        v: Named<'t>,
    },
    Pruned {
        original: Named<'t>,
        mask: Named<'t>,
    },
    SpectralNorm {
        original: Named<'t>,
        u: Named<'t>,
        v: Named<'t>,
    },
}

impl<'t> Source<'t> {
    /// The way in which the parts make a weight.
    pub(super) fn of(parts: &BTreeMap<Part, Named<'t>>) -> Result<Self> {
        use Part::*;
        let parts: Vec<(Part, Named<'t>)> = parts.iter().map(|(part, named)| (*part, *named)).collect();
        Ok(match *parts.as_slice() {
            [(Whole, whole)] => Source::Whole(whole),
            [(Raw, raw)] => Source::Raw(raw, None),
            [(Whole, copy), (Raw, raw)] => {
                if raw.1.shape() != copy.1.shape() {
                    bail!(
                        InvalidWeights,
                        "{}: expected the shape of {} = {:?}, found {:?}",
                        shown(raw.0),
                        shown(copy.0),
                        copy.1.shape(),
                        raw.1.shape()
                    );
                }
                Source::Raw(raw, Some(copy))
            }
            [(Magnitude, g), (V, v)] | [(Original0, g), (Original1, v)] => Source::WeightNorm { g, v },
            [(Original, original), (Mask, mask)] => Source::Pruned { original, mask },
            [(V, v), (Original, original), (U, u)]
            | [(Parametrized, original), (ParametrizedU, u), (ParametrizedV, v)] => {
                Source::SpectralNorm { original, u, v }
            }
            _ => {
                let odd = parts.iter().find(|(part, _)| *part != Whole).map_or("", |(_, named)| named.0);
                let all: Vec<String> = parts.iter().map(|(_, named)| shown(named.0).to_string()).collect();
                bail!(
                    InvalidWeights,
                    "{}: expected a weight, or the parts of weight_norm, spectral_norm, pruning or weight drop, found {}; fold \
                     the parametrization into the weight before saving",
                    shown(odd),
                    all.join(", ")
                )
            }
        })
    }

    /// The tensor that has the weight's shape.
    pub(super) fn main(&self) -> Named<'t> {
        match *self {
            Source::Whole(main) | Source::Raw(main, _) => main,
            Source::WeightNorm { v, .. } => v,
            Source::Pruned { original, .. } | Source::SpectralNorm { original, .. } => original,
        }
    }

    /// The tensors that the numbers are from.
    pub(super) fn used(&self) -> Vec<Named<'t>> {
        match *self {
            Source::Whole(main) | Source::Raw(main, _) => vec![main],
            Source::WeightNorm { g, v } => vec![g, v],
            Source::Pruned { original, mask } => vec![original, mask],
            Source::SpectralNorm { original, u, v } => vec![original, u, v],
        }
    }

    /// The tensors that have been understood: those, and a copy.
    pub(super) fn understood(&self) -> Vec<Named<'t>> {
        let mut all = self.used();
        if let Source::Raw(_, copy) = self {
            all.extend(copy);
        }
        all
    }

    /// What a user should know.
    pub(super) fn note(&self) -> Option<String> {
        let name = shown(self.main().0);
        match self {
            Source::Whole(_) | Source::Raw(_, None) => None,
            Source::Raw(_, Some(copy)) => {
                Some(format!("{name} is the weight; {} is a copy that training drops values of", shown(copy.0)))
            }
            Source::WeightNorm { g, .. } => Some(format!("{name}: weight_norm is folded in, with {}", shown(g.0))),
            Source::Pruned { mask, .. } => Some(format!("{name}: pruned by {}", shown(mask.0))),
            Source::SpectralNorm { u, .. } => Some(format!("{name}: spectral_norm is folded in, with {}", shown(u.0))),
        }
    }

    /// The weight in row-major order.
    pub(super) fn to_finite_f32(&self) -> Result<Vec<f32>> {
        let main = self.main();
        let weight = match *self {
            Source::Whole((name, tensor)) | Source::Raw((name, tensor), _) => return tensor.to_finite_f32(name),
            Source::WeightNorm { g, v } => weight_norm(g, v)?,
            Source::Pruned { original, mask } => {
                check_shape(mask, &[original.1.shape().to_vec()])?;
                let mask = mask.1.to_finite_f64(mask.0)?;
                original.1.to_finite_f64(original.0)?.iter().zip(mask).map(|(w, m)| w * m).collect()
            }
            Source::SpectralNorm { original, u, v } => spectral_norm(original, u, v)?,
        };
        let weight: Vec<f32> = weight.into_iter().map(|w| w as f32).collect();
        match weight.iter().position(|w| !w.is_finite()) {
            Some(i) => bail!(
                InvalidWeights,
                "{}: expected finite values once folded, found {} at element {i}",
                shown(main.0),
                weight[i]
            ),
            None => Ok(weight),
        }
    }
}

fn check_shape((name, tensor): Named<'_>, expected: &[Vec<usize>]) -> Result<()> {
    if expected.iter().all(|shape| tensor.shape() != shape) {
        let expected: Vec<String> = expected.iter().map(|shape| format!("{shape:?}")).collect();
        bail!(InvalidWeights, "{}: expected shape {}, found {:?}", shown(name), expected.join(" or "), tensor.shape());
    }
    Ok(())
}

/// The sizes of a matrix; a vector is one column.
fn rows_and_columns((name, tensor): Named<'_>) -> Result<[usize; 2]> {
    match *tensor.shape() {
        [rows] => Ok([rows, 1]),
        [rows, columns] => Ok([rows, columns]),
        ref other => bail!(InvalidWeights, "{}: expected one or two axes, found {other:?}", shown(name)),
    }
}

fn weight_norm(g: Named<'_>, v: Named<'_>) -> Result<Vec<f64>> {
    let [rows, columns] = rows_and_columns(v)?;
    let shapes = match v.1.shape().len() {
        1 => vec![vec![rows], vec![]],
        _ => vec![vec![rows, 1], vec![1, columns], vec![]],
    };
    check_shape(g, &shapes)?;
    // Which norm an element is divided by: that of its row, of its column, or of all.
    let group = |i: usize| match *g.1.shape() {
        [] => 0,
        [1, size] if size == columns && rows > 1 => i % columns,
        _ => i / columns,
    };
    let (g, v) = (g.1.to_finite_f64(g.0)?, v.1.to_finite_f64(v.0)?);
    let mut squares = vec![0.0; g.len()];
    v.iter().enumerate().for_each(|(i, v)| squares[group(i)] += v * v);
    Ok(v.iter().enumerate().map(|(i, v)| v * (g[group(i)] / squares[group(i)].sqrt())).collect())
}

fn spectral_norm(original: Named<'_>, u: Named<'_>, v: Named<'_>) -> Result<Vec<f64>> {
    let [rows, columns] = rows_and_columns(original)?;
    if rows == columns {
        bail!(
            Unsupported,
            "{}: a square matrix does not tell which of its axes spectral_norm was for; fold it into the weight before saving",
            shown(original.0)
        );
    }
    check_shape(u, &[vec![rows], vec![columns]])?;
    let is_turned = *u.1.shape() == [columns];
    check_shape(v, &[vec![if is_turned { rows } else { columns }]])?;
    let weight = original.1.to_finite_f64(original.0)?;
    let (u, v) = (u.1.to_finite_f64(u.0)?, v.1.to_finite_f64(v.0)?);
    let (of_rows, of_columns) = if is_turned { (v, u) } else { (u, v) };
    let sums = weight
        .chunks(columns)
        .zip(of_rows)
        .map(|(row, factor)| factor * row.iter().zip(&of_columns).map(|(w, v)| w * v).sum::<f64>());
    let sigma: f64 = sums.sum();
    Ok(weight.iter().map(|w| w / sigma).collect())
}
