//! Numbers with units, read and written.

const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
];

/// Reads `512MiB`, `1.5 GiB`, `800MB`. A number without a unit is refused: it is never clear which one was meant.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a size such as 512MiB or 2GiB, found {text:?}");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(expected)?;
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim_start();
    let (_, size) = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(expected)?;
    let number: f64 = number.parse().map_err(|_| expected())?;
    let bytes = number * *size as f64;
    if !(1.0..9e18).contains(&bytes) {
        return Err(expected());
    }
    Ok(bytes as u64)
}

/// `128 MiB`, `1.5 GiB`, `96 B`.
pub(crate) fn bytes(size: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in units {
        if size >> shift > 0 {
            let value = size as f64 / (1u64 << shift) as f64;
            return if value.fract() == 0.0 { format!("{value} {unit}") } else { format!("{value:.1} {unit}") };
        }
    }
    format!("{size} B")
}

/// `1,234,567`.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three significant digits or whole numbers: `0.0421`, `3.46`, `271`, `12345`.
pub(crate) fn significant(value: f64) -> String {
    if !value.is_finite() || value == 0.0 {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = (2 - magnitude).clamp(0, 6) as usize;
    format!("{value:.decimals$}")
}

/// Seconds in milliseconds, three significant digits.
pub(crate) fn milliseconds(seconds: f64) -> String {
    significant(seconds * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes(" 1.5 gib "), Ok(3 << 29));
        assert_eq!(parse_bytes("800MB"), Ok(800_000_000));
        assert_eq!(parse_bytes("7B"), Ok(7));
        for bad in ["", "512", "MiB", "-1MiB", "1.2.3MiB", "5 parsecs", "0GiB", "1e9B", "99999999TiB", "NaNMiB"] {
            let error = parse_bytes(bad).unwrap_err();
            assert!(error.contains("512MiB") && error.contains(bad.trim()), "{bad:?}: {error}");
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([bytes(96), bytes(128 << 20), bytes(3 << 29)], ["96 B", "128 MiB", "1.5 GiB"]);
        assert_eq!([grouped(7), grouped(1000), grouped(1_234_567)], ["7", "1,000", "1,234,567"]);
        assert_eq!(
            [significant(0.042_13), significant(3.456), significant(271.4), significant(12345.6)],
            ["0.0421", "3.46", "271", "12346"]
        );
        assert_eq!(milliseconds(0.001_234), "1.23");
    }
}
