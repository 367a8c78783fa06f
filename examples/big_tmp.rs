use wgpu_lstm::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let engine = Engine::open_blocking(EngineOptions::on(a[1].parse().unwrap())).unwrap();
    let n: Vec<usize> = a[2..].iter().map(|s| s.parse().unwrap()).collect();
    let (i, h, l, d, b, t) = (n[0], n[1], n[2], n[3], n[4], n[5]);
    let spec = LstmSpec::stack(i, h, l)
        .direction(if d == 2 {
            Direction::Bidirectional
        } else {
            Direction::Forward
        })
        .build()
        .unwrap();
    let w = LstmWeights::random(&spec, 5);
    let lstm = engine.load_blocking(&w).unwrap();
    let x: Vec<f32> = (0..b * t * i)
        .map(|n| ((n * 7919 % 1000) as f32 / 500.0 - 1.0) * 1.5)
        .collect();
    let batch = SequenceBatch::new(&x, [b, t, i], Layout::BatchMajor).unwrap();
    for _ in 0..3 {
        let s = std::time::Instant::now();
        lstm.run_blocking(&batch).unwrap();
        let e = s.elapsed().as_secs_f64();
        let flop: f64 = spec
            .layers()
            .iter()
            .map(|x| (d * b * t * 8 * h * (x.input_size + h)) as f64)
            .sum();
        println!(
            "{:.1} ms, {:.2} GFLOP/s, {:.1} us/step",
            e * 1e3,
            flop / e / 1e9,
            e * 1e6 / (t * l) as f64
        );
    }
}
