//! Text tables with aligned columns.

/// Lines of a table; the first row is the heading. Columns named in `left` are aligned to the left, others to
/// the right. Each column is as wide as its widest cell, counted in characters.
pub(crate) fn lines(rows: &[Vec<String>], left: &[usize]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .enumerate()
                .map(|(c, cell)| {
                    let padding = " ".repeat(widths[c] - cell.chars().count());
                    if left.contains(&c) { format!("{cell}{padding}") } else { format!("{padding}{cell}") }
                })
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let table = lines(&[row(["name", "µs", "x"]), row(["a", "1.25", "no"]), vec!["long name".into()]], &[0]);
        assert_eq!(table, ["name         µs   x", "a          1.25  no", "long name"]);
    }
}
