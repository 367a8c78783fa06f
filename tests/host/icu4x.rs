//! A trained bidirectional LSTM of others: the Thai segmenter of ICU4X, whose tags are known and exact.

use icu_provider::{DataIdentifierBorrowed, DataMarkerAttributes, DataProvider, DataRequest, DataResponse};
use icu_segmenter::WordSegmenter;
use icu_segmenter::options::WordBreakInvariantOptions;
use icu_segmenter::provider::{Baked, LstmData, SegmenterLstmAutoV1};
use wgpu_lstm::reference;

use crate::support::data::Rng;
use crate::support::icu4x::{Segmenter, WEIGHTS, file, known_tags};

#[test]
fn all_known_tags_are_exact() {
    let segmenter = Segmenter::load();
    let (texts, expected): (Vec<_>, Vec<_>) = known_tags().into_iter().unzip();
    assert_eq!(texts.len(), 30);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let strings = segmenter.embed(&texts);
    let double = reference::run::<f64>(&segmenter.weights, &strings.batch()).unwrap().output.unwrap();
    let (tags, nearest) = segmenter.tags(&strings, &double);
    assert_eq!(tags, expected);
    // So far apart that rounding cannot decide.
    assert!(nearest > 1e-3, "{nearest}");

    let single = reference::run::<f32>(&segmenter.weights, &strings.batch()).unwrap().output.unwrap();
    let wide: Vec<f64> = single.iter().map(|&v| v.into()).collect();
    assert_eq!(segmenter.tags(&strings, &wide).0, expected);
    #[cfg(feature = "cpu")]
    assert_eq!(segmenter.tags(&strings, &on_the_cpu(&segmenter, &strings)).0, expected);
}

#[cfg(feature = "cpu")]
fn on_the_cpu(segmenter: &Segmenter, strings: &crate::support::icu4x::Embedded) -> Vec<f64> {
    use wgpu_lstm::{DeviceChoice, Engine, EngineOptions};
    let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu)).unwrap();
    let lstm = engine.load_blocking(&segmenter.weights).unwrap();
    lstm.run_blocking(&strings.batch()).unwrap().output.unwrap().iter().map(|&v| v.into()).collect()
}

/// What makes the comparison below one of two implementations and not of two models.
#[test]
fn icu_segmenter_has_the_same_weights_compiled_in() {
    let attributes = DataMarkerAttributes::from_str_or_panic("Thai_codepoints_exclusive_model4_heavy");
    let request = DataRequest { id: DataIdentifierBorrowed::for_marker_attributes(attributes), ..Default::default() };
    let compiled_in: DataResponse<SegmenterLstmAutoV1> = Baked.load(request).unwrap();
    let text = file(WEIGHTS);
    let of_the_file: LstmData = serde_json::from_str(&text).unwrap();
    assert!(*compiled_in.payload.get() == of_the_file);
}

#[test]
fn words_end_where_icu_segmenter_says() {
    let segmenter = Segmenter::load();
    let known = known_tags();
    let mut texts: Vec<String> = known.iter().map(|(text, _)| text.clone()).collect();
    // Article 1 of the Universal Declaration of Human Rights.
    let article = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม \
                   และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ";
    texts.extend(article.split(' ').filter(|part| !part.is_empty()).map(str::to_owned));
    texts.push(known.iter().map(|(text, _)| text.as_str()).collect());
    // Any letters, vowels and marks in a row; no language, but the models must agree.
    let mut rng = Rng::new(31);
    let alphabet = segmenter.alphabet();
    texts.extend((0..200).map(|_| (0..1 + rng.below(60)).map(|_| alphabet[rng.below(alphabet.len())]).collect()));

    let icu = WordSegmenter::new_lstm(WordBreakInvariantOptions::default());
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let strings = segmenter.embed(&borrowed);
    let output = reference::run::<f32>(&segmenter.weights, &strings.batch()).unwrap().output.unwrap();
    let wide: Vec<f64> = output.iter().map(|&v| v.into()).collect();
    let mut boundaries = 0;
    for (text, tags) in texts.iter().zip(segmenter.tags(&strings, &wide).0) {
        let ends = text.char_indices().zip(tags.chars()).filter(|(_, tag)| *tag == 'e');
        let mut found: Vec<usize> = ends.map(|((at, character), _)| at + character.len_utf8()).collect();
        found.insert(0, 0);
        found.push(text.len());
        found.dedup();
        let expected: Vec<usize> = icu.segment_str(text).collect();
        assert_eq!(found, expected, "{text} {tags}");
        boundaries += expected.len();
    }
    assert!(boundaries > 1500, "{boundaries}");
}
