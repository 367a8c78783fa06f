//! The conformance corpus on the reference and the CPU backend; other engines run it with `tools/conformance.py`.

use std::collections::BTreeSet;

use wgpu_lstm::reference;

use crate::support::conformance::{ConformanceCase, GROUPS, cases, group, widened};

/// Runs all cases of all groups and lists those that fail.
fn check_all(check: impl Fn(&ConformanceCase) -> Result<f64, String>) -> f64 {
    let results: Vec<_> = cases().iter().map(check).collect();
    let wrong: Vec<&String> = results.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(wrong.is_empty(), "{} of {} cases fail:\n{:#?}", wrong.len(), results.len(), wrong);
    results.into_iter().map(Result::unwrap).fold(f64::INFINITY, f64::min)
}

#[test]
fn the_corpus_is_all_there() {
    let counts = GROUPS.map(|name| group(name).len());
    assert!(counts.iter().sum::<usize>() >= 400, "{counts:?}");
    let ids: BTreeSet<String> = cases().into_iter().map(|c| c.id).collect();
    assert_eq!(ids.len(), counts.iter().sum::<usize>(), "ids are unique");
}

#[test]
fn the_reference_in_f64_agrees_with_the_judge_to_the_last_digits() {
    let headroom = check_all(|case| {
        let found = reference::run::<f64>(&case.weights, &case.batch()).map_err(|e| format!("{}: {e}", case.id))?;
        case.check(&found, |expected| 1e-12 * expected.size())
    });
    println!("smallest headroom {headroom:.1}");
}

#[test]
fn the_reference_in_f32_is_within_the_tolerances() {
    let headroom = check_all(|case| {
        let found = reference::run::<f32>(&case.weights, &case.batch()).map_err(|e| format!("{}: {e}", case.id))?;
        case.check_f32(&found.into_batch_output())
    });
    println!("smallest headroom {headroom:.1}");
}

#[cfg(feature = "cpu")]
#[test]
fn the_cpu_backend_is_within_the_tolerances() {
    use wgpu_lstm::{DeviceChoice, Engine, EngineOptions};
    let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu)).unwrap();
    let headroom = check_all(|case| {
        let found = engine.load_blocking(&case.weights).and_then(|lstm| lstm.run_blocking(&case.batch()));
        case.check_f32(&found.map_err(|e| format!("{}: {e}", case.id))?)
    });
    println!("smallest headroom {headroom:.1}");
}

/// The judgement sees a change in any one element, also of arrays of which only a part is stored.
#[test]
fn a_wrong_element_is_seen_wherever_it_is() {
    for case in cases().iter().filter(|c| c.outputs.final_state).step_by(7) {
        let found = reference::run::<f32>(&case.weights, &case.batch()).unwrap().into_batch_output();
        assert!(case.check_f32(&found).is_ok(), "{}", case.id);
        let sequence = case.lengths.iter().position(|&n| n > 0);
        let Some(b) = sequence else { continue };
        let asks_for_h = case.expected.iter().any(|e| e.name.starts_with("Y_h") || e.name.starts_with("h_n"));
        let width = case.weights.spec().layers()[0].h_size();
        for j in [0, width / 2, width - 1] {
            let mut wrong = widened(&found);
            wrong.h_n.as_mut().unwrap()[b * width + j] += 1e-2;
            assert_eq!(case.check(&wrong, |e| e.tolerance).is_err(), asks_for_h, "{}: unit {j}", case.id);
        }
        if let Some(mut wrong) = widened(&found).output.map(|output| (output, widened(&found))) {
            let last = wrong.0.len() - 1;
            wrong.0[last] = f64::NAN;
            wrong.1.output = Some(wrong.0);
            assert!(case.check(&wrong.1, |e| e.tolerance).is_err(), "{}: NaN", case.id);
        }
    }
}
