//! The comparer itself: mostly what it must refuse.

use crate::support::comparer::{Bound, compare, expect_empty};

const AXES: &[(&str, usize)] = &[("t", 50), ("b", 4), ("direction", 2), ("j", 25)];
const COUNT: usize = 50 * 4 * 2 * 25;

fn values() -> Vec<f32> {
    (0..COUNT).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// The message for `found` against `expected`, all within 1e-6.
fn refusal(found: &[f32], expected: &[f32]) -> String {
    compare("output", AXES, found, expected, Bound::Same(1e-6)).expect_err("must be refused")
}

#[test]
fn one_wrong_element_is_found_wherever_it_is() {
    for (i, place) in [
        (0, "(t 0, b 0, direction 0, j 0)"),
        (4321, "(t 21, b 2, direction 0, j 21)"),
        (COUNT - 1, "(t 49, b 3, direction 1, j 24)"),
    ] {
        let expected = values();
        for wrong in [expected[i] + 2e-6, expected[i] - 2e-6, -expected[i] - 1.0, 1e30] {
            let mut found = expected.clone();
            found[i] = wrong;
            let message = refusal(&found, &expected);
            let start = format!(
                "output: 1 of 10000 elements are beyond their bounds, worst at {place}: found {:e}",
                f64::from(wrong)
            );
            assert!(message.starts_with(&start), "{message}");
        }
    }
}

#[test]
fn what_is_no_number_is_refused_on_either_side() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for i in [0, 5000, COUNT - 1] {
            let (good, mut with_bad) = (values(), values());
            with_bad[i] = bad;
            assert!(refusal(&with_bad, &good).contains("1 of 10000"));
            assert!(refusal(&good, &with_bad).contains("1 of 10000"));
            // Equal on both sides is no excuse, nor is a bound without end.
            assert!(refusal(&with_bad, &with_bad).contains("1 of 10000"));
            assert!(compare("x", AXES, &with_bad, &with_bad, Bound::Same(f64::INFINITY)).is_err());
        }
    }
}

#[test]
fn bounds_that_are_no_bounds_are_refused() {
    for bad in [f64::NAN, f64::INFINITY, -1.0, -1e-300] {
        assert!(compare("x", AXES, &values(), &values(), Bound::Same(bad)).is_err(), "{bad}");
        let mut bounds = vec![1e-6; COUNT];
        bounds[777] = bad;
        let message = compare("x", AXES, &values(), &values(), Bound::Each(&bounds)).unwrap_err();
        assert!(message.contains("1 of 10000") && message.contains("(t 3, b 3, direction 1, j 2)"), "{message}");
    }
    let message = compare("x", AXES, &values(), &values(), Bound::Each(&[1e-6])).unwrap_err();
    assert_eq!(message, "x: there are 1 bounds for 10000 elements");
}

#[test]
fn expected_zeros_have_no_relative_excuse() {
    let zeros = vec![0.0f32; COUNT];
    let mut found = zeros.clone();
    found[9] = 1e-30;
    assert!(compare("x", AXES, &found, &zeros, Bound::Same(0.0)).is_err());
    assert!(compare("x", AXES, &found, &zeros, Bound::Same(1e-29)).is_ok());
    found[9] = -0.0;
    assert!(compare("x", AXES, &found, &zeros, Bound::Same(0.0)).is_ok());
    // Signs count.
    let negated: Vec<f32> = values().iter().map(|v| -v).collect();
    assert!(refusal(&negated, &values()).contains(" of 10000"));
}

#[test]
fn other_sizes_are_refused() {
    let (all, fewer) = (values(), &values()[1..]);
    assert_eq!(
        refusal(fewer, &all),
        "output: found has 9999 elements, the shape [t 50, b 4, direction 2, j 25] has 10000"
    );
    assert!(refusal(&all, fewer).contains("expected has 9999 elements"));
    assert!(refusal(fewer, fewer).contains("found has 9999 elements"));
    assert!(refusal(&[], &all).contains("found has 0 elements"));
    assert!(refusal(&all, &[]).contains("expected has 0 elements"));
}

#[test]
fn comparing_nothing_is_refused_unless_it_is_expected() {
    let nothing: [f32; 0] = [];
    let message = compare("x", &[("t", 0), ("j", 3)], &nothing, &nothing, Bound::Same(1.0)).unwrap_err();
    assert_eq!(message, "x: the shape [t 0, j 3] has no element to compare");
    assert!(expect_empty("x", &nothing, &nothing).is_ok());
    assert!(expect_empty("x", &[0.0f32], &nothing).is_err());
    assert!(expect_empty("x", &nothing, &[0.0f32]).is_err());
}

#[test]
fn every_element_beyond_counts_and_the_worst_is_shown() {
    let expected = values();
    let mut found = expected.clone();
    found[3] += 2e-6;
    found[4000] += 9e-6;
    found[9000] += 5e-6;
    let message = refusal(&found, &expected);
    assert!(message.contains("3 of 10000") && message.contains("(t 20, b 0, direction 0, j 0)"), "{message}");
    // With bounds of their own the worst is the one furthest beyond its own.
    let mut bounds = vec![1e-6; COUNT];
    bounds[4000] = 8e-6;
    let message = compare("x", AXES, &found, &expected, Bound::Each(&bounds)).unwrap_err();
    assert!(message.contains("3 of 10000") && message.contains("(t 45, b 0, direction 0, j 0)"), "{message}");
    found[1] = f32::NAN;
    assert!(refusal(&found, &expected).contains("(t 0, b 0, direction 0, j 1): found NaN"));
}

#[test]
fn passing_reports_count_place_and_headroom() {
    let expected: Vec<f64> = values().iter().map(|v| f64::from(*v)).collect();
    let mut found = expected.clone();
    found[60] += 2.5e-7;
    let report = compare("h", AXES, &found, &expected, Bound::Same(1e-6)).unwrap();
    assert_eq!((report.count, report.worst.place.as_str()), (COUNT, "(t 0, b 1, direction 0, j 10)"));
    assert!((report.headroom - 4.0).abs() < 1e-6, "{report}");
    let exact = compare("h", AXES, &expected, &expected, Bound::Same(0.0)).unwrap();
    assert_eq!(exact.headroom, f64::INFINITY);
    // The bound itself still passes.
    assert!(compare("h", &[("j", 1)], &[1.0f64], &[0.5], Bound::Same(0.5)).is_ok());
    assert!(compare("h", &[("j", 1)], &[1.0f64], &[0.5], Bound::Same(0.499)).is_err());
}
