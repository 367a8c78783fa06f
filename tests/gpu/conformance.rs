//! The conformance corpus on every adapter, and a trained model of others with known answers.

use libtest_mimic::Failed;

use crate::support::conformance::{GROUPS, group};
use crate::support::icu4x::{Segmenter, known_tags};
use crate::{Subject, Test, is_full};

pub const TESTS: &[(&str, Test)] = &[
    ("conformance_lstm_is_within_the_tolerances", |subject| conformance(subject, GROUPS[0])),
    ("conformance_gru_is_within_the_tolerances", |subject| conformance(subject, GROUPS[1])),
    ("conformance_rnn_is_within_the_tolerances", |subject| conformance(subject, GROUPS[2])),
    ("conformance_stack_is_within_the_tolerances", |subject| conformance(subject, GROUPS[3])),
    ("all_known_tags_of_the_thai_segmenter_are_exact", thai_segmenter),
];

fn conformance(subject: &Subject, name: &str) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let (mut headroom, mut wrong) = (f64::INFINITY, Vec::new());
    // All on each adapter; the second profile of an adapter has the same numbers to give, and takes every fifth.
    let (first, step) = if is_full() || !subject.label.contains('+') { (0, 1) } else { (3, 5) };
    let cases: Vec<_> = group(name).into_iter().skip(first).step_by(step).collect();
    for case in &cases {
        let found = engine.load_blocking(&case.weights).and_then(|lstm| lstm.run_blocking(&case.batch()));
        match found.map_err(|e| format!("{}: {e}", case.id)).and_then(|found| case.check_f32(&found)) {
            Ok(found) => headroom = headroom.min(found),
            Err(why) => wrong.push(why),
        }
    }
    println!("{}: smallest headroom of {} cases of {name} {headroom:.1}", subject.label, cases.len());
    match wrong.is_empty() && !cases.is_empty() {
        true => Ok(()),
        false => Err(format!("{} of {} cases fail:\n{}", wrong.len(), cases.len(), wrong.join("\n")).into()),
    }
}

/// All strings as one ragged batch.
fn thai_segmenter(subject: &Subject) -> Result<(), Failed> {
    let segmenter = Segmenter::load();
    let (texts, expected): (Vec<_>, Vec<_>) = known_tags().into_iter().unzip();
    let strings = segmenter.embed(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let lstm = subject.engine()?.load_blocking(&segmenter.weights)?;
    let output = lstm.run_blocking(&strings.batch())?.output.ok_or("no output")?;
    let wide: Vec<f64> = output.iter().map(|&v| v.into()).collect();
    let (tags, _) = segmenter.tags(&strings, &wide);
    match tags.len() == 30 && tags == expected {
        true => Ok(()),
        false => Err(format!("found {tags:#?}, expected {expected:#?}").into()),
    }
}
