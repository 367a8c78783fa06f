//! Two arrays, numpy's `allclose` rule: |found − expected| ≤ atol + rtol·|expected|. NaN and infinity fail.

use std::fmt;

/// The element that exceeds its bound most, or comes closest to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Worst {
    /// In the flattened array.
    pub(crate) index: usize,
    pub(crate) found: f64,
    pub(crate) expected: f64,
    /// Difference ÷ bound; at most 1 passes.
    pub(crate) ratio: f64,
}

/// The outcome of a comparison of arrays of one shape.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Comparison {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// Elements outside their bound.
    pub(crate) differing: Vec<usize>,
    /// `None` for empty arrays.
    pub(crate) worst: Option<Worst>,
}

impl Comparison {
    /// Compares; both arrays have the elements of `shape`.
    pub(crate) fn new(name: &str, shape: &[usize], found: &[f32], expected: &[f64], rtol: f64, atol: f64) -> Self {
        assert_eq!(found.len(), expected.len(), "shapes are compared before elements");
        let mut worst: Option<Worst> = None;
        let mut differing = Vec::new();
        for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let found = f64::from(found);
            let error = (found - expected).abs();
            let bound = atol + rtol * expected.abs();
            // Not `error > bound`, which NaN escapes. Infinity has an infinite bound.
            let close = found.is_finite() && expected.is_finite() && error <= bound;
            let ratio = match (close, error == 0.0) {
                (true, true) => 0.0,
                (true, false) => error / bound,
                (false, _) if (error / bound).is_finite() => error / bound,
                (false, _) => f64::INFINITY,
            };
            if !close {
                differing.push(index);
            }
            if worst.is_none_or(|w| ratio > w.ratio) {
                worst = Some(Worst { index, found, expected, ratio });
            }
        }
        Self { name: name.to_owned(), shape: shape.to_vec(), differing, worst }
    }

    pub(crate) fn passed(&self) -> bool {
        self.differing.is_empty()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elements: usize = self.shape.iter().product();
        match (self.worst, self.passed()) {
            (None, _) => write!(f, "{} {:?}: empty", self.name, self.shape),
            (Some(w), true) => {
                write!(f, "{} {:?}: all {elements} elements agree", self.name, self.shape)?;
                if w.ratio > 0.0 {
                    write!(f, ", headroom {:.1} ×, worst {}", 1.0 / w.ratio, self.element(w))
                } else {
                    f.write_str(" exactly")
                }
            }
            (Some(w), false) => write!(
                f,
                "{} {:?}: {} of {elements} elements differ, worst {}",
                self.name,
                self.shape,
                self.differing.len(),
                self.element(w)
            ),
        }
    }
}

impl Comparison {
    fn element(&self, worst: Worst) -> String {
        let Worst { index, found, expected, .. } = worst;
        format!("[{}]: found {found:.7e}, expected {expected:.7e}", unravelled(index, &self.shape))
    }
}

/// `1, 3, 2`: the index on each axis.
fn unravelled(mut index: usize, shape: &[usize]) -> String {
    let mut axes: Vec<String> = Vec::new();
    for &size in shape.iter().rev() {
        axes.push((index % size).to_string());
        index /= size;
    }
    axes.reverse();
    axes.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(found: &[f32], expected: &[f64]) -> Comparison {
        Comparison::new("a", &[found.len()], found, expected, 1e-4, 1e-5)
    }

    #[test]
    fn the_rule_is_numpys() {
        assert!(compare(&[1.0, -2.0, 0.0], &[1.0, -2.0, 0.0]).passed());
        assert!(compare(&[1.0001, -2.0002], &[1.0, -2.0]).passed());
        assert!(!compare(&[1.0002], &[1.0]).passed());
        assert!(!compare(&[-1.0], &[1.0]).passed());
        assert!(compare(&[9e-6], &[0.0]).passed());
        assert!(!compare(&[2e-5], &[0.0]).passed());
        assert!(compare(&[], &[]).passed());
        let strict = |found, expected| Comparison::new("a", &[1], &[found], &[expected], 0.0, 0.0).passed();
        assert!(strict(0.5, 0.5) && !strict(0.5, 0.500_000_1));
    }

    #[test]
    fn what_is_not_finite_fails_on_either_side() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!compare(&[bad], &[0.0]).passed(), "{bad}");
            assert!(!compare(&[0.0], &[bad.into()]).passed(), "{bad}");
            assert!(!compare(&[bad], &[bad.into()]).passed(), "{bad}");
            assert_eq!(compare(&[0.0, bad, 1.0], &[0.0, 0.0, 2.0]).worst.unwrap().index, 1);
        }
    }

    #[test]
    fn one_wrong_element_of_many_is_found_and_named() {
        let expected: Vec<f64> = (0..6000).map(|n| (n as f64 * 0.7).sin()).collect();
        let found: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
        for at in [0, 2999, 5999] {
            let mut wrong = found.clone();
            wrong[at] += 0.01;
            let comparison = Comparison::new("output", &[10, 20, 30], &wrong, &expected, 1e-4, 1e-5);
            assert_eq!((comparison.differing.len(), comparison.worst.unwrap().index), (1, at));
            let place = unravelled(at, &[10, 20, 30]);
            assert!(comparison.to_string().contains(&format!("1 of 6000 elements differ, worst [{place}]")));
        }
        assert_eq!(unravelled(2999, &[10, 20, 30]), "4, 19, 29");
        let comparison = Comparison::new("output", &[10, 20, 30], &found, &expected, 1e-4, 1e-5);
        assert!(comparison.to_string().contains("all 6000 elements agree, headroom"), "{comparison}");
    }
}
