//! Compares text with a committed snapshot. `LSTM_UPDATE_SNAPSHOTS=1` (`just snapshots`) accepts the new text.

use std::path::PathBuf;

/// Fails with the first line that differs.
pub fn check(name: &str, text: &str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/data/snapshots", name].iter().collect();
    if std::env::var_os("LSTM_UPDATE_SNAPSHOTS").is_some_and(|v| v == "1") {
        std::fs::create_dir_all(path.parent().expect("a snapshot has a folder")).expect("create the folder");
        std::fs::write(&path, text).expect("write the snapshot");
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{name}: {e}; accept it with `just snapshots`"))
        .replace("\r\n", "\n");
    if expected == text {
        return;
    }
    let line = expected.lines().zip(text.lines()).position(|(e, t)| e != t);
    let line = line.unwrap_or_else(|| expected.lines().count().min(text.lines().count()));
    panic!(
        "{name} differs from its snapshot at line {}:\n  expected {:?}\n  found    {:?}\nreview it, then `just snapshots`",
        line + 1,
        expected.lines().nth(line),
        text.lines().nth(line)
    );
}
