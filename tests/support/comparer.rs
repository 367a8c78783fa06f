//! Compares an array with the expected one, element by element, each within its bound.
//!
//! An element passes if its error is at most its bound; anything that is not a number on either side, or as the
//! bound, fails. So does comparing nothing: an empty expectation is stated with [`expect_empty`].

use std::fmt;

/// How far an element may be off.
#[derive(Debug, Clone, Copy)]
pub enum Bound<'a> {
    /// All by the same.
    Same(f64),
    /// Each by its own.
    Each(&'a [f64]),
}

/// Names and sizes of the axes, slowest first.
pub type Axes<'a> = &'a [(&'a str, usize)];

/// A comparison that passed.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub what: String,
    pub count: usize,
    /// The element that came nearest to its bound.
    pub worst: Element,
    /// How many times larger its error could have been; infinite if all elements are exact.
    pub headroom: f64,
}

/// One element of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    /// `(t 3, b 1, j 7)`
    pub place: String,
    pub found: f64,
    pub expected: f64,
    pub bound: f64,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, found, expected, bound } = self;
        let error = (found - expected).abs();
        write!(f, "{place}: found {found:e}, expected {expected:e}, error {error:.2e}, bound {bound:.2e}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, count, worst, headroom } = self;
        write!(f, "{what}: {count} elements within their bounds, headroom {headroom:.1}, worst at {worst}")
    }
}

/// Numbers that can be compared.
pub trait Number: Copy {
    fn to_f64(self) -> f64;
}

impl Number for f32 {
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Number for f64 {
    fn to_f64(self) -> f64 {
        self
    }
}

/// Compares `found` with `expected`, both of the shape that `axes` says.
///
/// # Errors
/// A message with the number of elements beyond their bounds and the worst of them, or with the sizes that
/// disagree.
pub fn compare<F: Number, E: Number>(
    what: &str,
    axes: Axes<'_>,
    found: &[F],
    expected: &[E],
    bound: Bound<'_>,
) -> Result<Report, String> {
    let sizes: Vec<String> = axes.iter().map(|(name, size)| format!("{name} {size}")).collect();
    let count: usize = axes.iter().map(|(_, size)| size).product();
    for (side, len) in [("found", found.len()), ("expected", expected.len())] {
        if len != count {
            return Err(format!("{what}: {side} has {len} elements, the shape [{}] has {count}", sizes.join(", ")));
        }
    }
    if let Bound::Each(bounds) = bound
        && bounds.len() != count
    {
        return Err(format!("{what}: there are {} bounds for {count} elements", bounds.len()));
    }
    if count == 0 {
        return Err(format!("{what}: the shape [{}] has no element to compare", sizes.join(", ")));
    }

    let mut beyond = 0;
    let mut worst = (0, f64::NEG_INFINITY);
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let share = share_of_bound(f.to_f64(), e.to_f64(), bound_of(bound, i));
        beyond += usize::from(!(share <= 1.0));
        if share > worst.1 {
            worst = (i, share);
        }
    }
    let (i, share) = worst;
    let element = Element {
        place: place(axes, i),
        found: found[i].to_f64(),
        expected: expected[i].to_f64(),
        bound: bound_of(bound, i),
    };
    if beyond == 0 {
        Ok(Report { what: what.to_owned(), count, worst: element, headroom: 1.0 / share })
    } else {
        Err(format!("{what}: {beyond} of {count} elements are beyond their bounds, worst at {element}"))
    }
}

/// Checks that both sides are empty.
///
/// # Errors
/// A message with both sizes.
pub fn expect_empty<F, E>(what: &str, found: &[F], expected: &[E]) -> Result<(), String> {
    if found.is_empty() && expected.is_empty() {
        Ok(())
    } else {
        Err(format!("{what}: expected nothing on both sides, found {} and {} elements", found.len(), expected.len()))
    }
}

fn bound_of(bound: Bound<'_>, i: usize) -> f64 {
    match bound {
        Bound::Same(bound) => bound,
        Bound::Each(bounds) => bounds[i],
    }
}

/// The error as a share of its bound; infinite for whatever is no number, or no bound.
fn share_of_bound(found: f64, expected: f64, bound: f64) -> f64 {
    let error = (found - expected).abs();
    if !(error <= bound) || !bound.is_finite() || !found.is_finite() || !expected.is_finite() {
        // Larger than any share that passes, ordered by error where there is one.
        let share = error / bound;
        if share.is_finite() && share > 1.0 { share } else { f64::INFINITY }
    } else if error == 0.0 {
        0.0
    } else {
        error / bound
    }
}

/// The place of flat index `i`.
fn place(axes: Axes<'_>, mut i: usize) -> String {
    let mut parts: Vec<String> = axes
        .iter()
        .rev()
        .map(|(name, size)| {
            let part = format!("{name} {}", i % size);
            i /= size;
            part
        })
        .collect();
    parts.reverse();
    format!("({})", parts.join(", "))
}
