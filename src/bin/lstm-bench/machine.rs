//! Where and when: what a figure needs beside it to mean anything.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// What is the same for all rows of a run.
pub(crate) struct Machine {
    /// `2026-11-22`, UTC.
    pub(crate) date: String,
    pub(crate) version: &'static str,
    /// `git describe --always --dirty` of the sources; empty where there is no git.
    pub(crate) commit: String,
    /// `linux x86_64`
    pub(crate) system: String,
    /// The processor's name; empty where the system does not tell.
    pub(crate) processor: String,
    pub(crate) threads: usize,
    /// `release` or `debug`.
    pub(crate) build: &'static str,
}

impl Machine {
    pub(crate) fn of_this_run() -> Self {
        let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() / 86_400);
        Self {
            date: date(days as i64),
            version: env!("CARGO_PKG_VERSION"),
            commit: commit().unwrap_or_default(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor: processor().unwrap_or_default(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }

    /// Names and values that begin every row of a record.
    pub(crate) fn fields(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("date", json!(self.date)),
            ("version", json!(self.version)),
            ("commit", json!(self.commit)),
            ("build", json!(self.build)),
            ("system", json!(self.system)),
            ("processor", json!(self.processor)),
            ("threads", json!(self.threads)),
        ]
    }

    /// One line.
    pub(crate) fn describe(&self) -> String {
        let parts = [
            format!("wgpu-lstm {}", self.version),
            self.commit.clone(),
            format!("{} build", self.build),
            self.date.clone(),
            self.system.clone(),
            self.processor.clone(),
            format!("{} threads", self.threads),
        ];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
    }
}

fn commit() -> Option<String> {
    let git = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&git.stdout).trim().to_owned())
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Days since 1970-01-01 as a date of the Gregorian calendar, after Howard Hinnant's
/// [`civil_from_days`](https://howardhinnant.github.io/date_algorithms.html).
fn date(days: i64) -> String {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_779, "2026-11-22"),
            (-1, "1969-12-31"),
        ] {
            assert_eq!(date(days), expected);
        }
    }
}
