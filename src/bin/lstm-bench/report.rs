//! Rows as text, CSV and JSON, and the record file.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use clap::ValueEnum;
use serde_json::{Map, Value, json};
use wgpu_lstm::{AdapterLimits, AdapterReport, DeviceChoice, DeviceReport};

use crate::cases::Case;
use crate::common::failure::{Failure, Result, fail};
use crate::common::units::{milliseconds, significant};
use crate::devices::{Device, Verdict};
use crate::machine::Machine;
use crate::phases::{Outcome, Phases};

/// A case on a device.
pub(crate) struct Row {
    pub(crate) case: Case,
    pub(crate) device: DeviceChoice,
    /// What the device reaches at best, if it is a GPU.
    pub(crate) limits: Option<AdapterLimits>,
    pub(crate) outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Csv,
    Json,
}

/// Widths of the text columns; a wider cell moves its row.
const WIDTHS: [usize; 14] = [46, 12, 8, 8, 8, 8, 9, 17, 5, 9, 8, 9, 10, 6];
const TEXT_COLUMNS: [&str; 14] = [
    "case",
    "device",
    "open ms",
    "load",
    "compile",
    "first",
    "steady",
    "min–max",
    "read",
    "µs/step",
    "GFLOP/s",
    "GPU ms",
    "dispatches",
    "roof",
];

fn text(cells: &[String]) -> String {
    let mut line = String::new();
    for (i, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
        let (before, after) = if i < 2 { ("", padding.as_str()) } else { (padding.as_str(), "") };
        line += &format!("{before}{cell}{after} ");
    }
    line.trim_end().to_owned()
}

/// `NVIDIA H200 (Vulkan), driver NVIDIA 570.86`, and whether it is a software adapter.
pub(crate) fn describe(device: &DeviceReport) -> String {
    let Some(adapter) = &device.adapter else { return device.name.clone() };
    let software = if adapter.is_software { "; a software adapter, which computes on the CPU" } else { "" };
    format!("{}, driver {}{software}", device.name, driver(adapter))
}

pub(crate) fn driver(adapter: &AdapterReport) -> String {
    [adapter.driver.as_str(), adapter.driver_info.as_str()].join(" ").trim().to_owned()
}

pub(crate) fn text_heading() -> String {
    text(&TEXT_COLUMNS.map(str::to_owned))
}

pub(crate) fn text_line(row: &Row) -> String {
    let id = match &row.case.name {
        Some(name) => format!("{} ({name})", row.case.id()),
        None => row.case.id(),
    };
    let mut cells = vec![id, row.device.to_string()];
    match &row.outcome {
        Outcome::Measured(p) => {
            cells.extend([p.open, p.load, p.compile(), p.first, p.steady.median()].map(milliseconds));
            cells.push(format!("{}–{}", milliseconds(p.steady.min()), milliseconds(p.steady.max())));
            let share = 100.0 * p.read_back() / p.steady.median();
            cells.push(format!("{share:.0} %"));
            cells.push(significant(p.us_per_step()));
            cells.push(significant(p.gflops()));
            if let Some(work) = &p.work {
                cells.push(work.gpu_time.map_or("–".to_owned(), milliseconds));
                cells.push(work.dispatches.to_string());
                cells.push(roof(p, row.limits).map_or("–".to_owned(), |share| format!("{:.0} %", 100.0 * share)));
            }
            text(&cells)
        }
        Outcome::Unavailable(failure) => format!("{} unavailable: {failure}", text(&cells)),
        Outcome::Wrong(why) => format!("{} WRONG: {why}", text(&cells)),
    }
}

/// The share of the time of a run in which an adapter at its best could do the same work: by its own clock if it has one.
pub(crate) fn roof(phases: &Phases, limits: Option<AdapterLimits>) -> Option<f64> {
    let work = phases.work?;
    Some(work.least(&limits?) / work.gpu_time.unwrap_or(phases.steady.median()))
}

/// Names and values of a row in the order of the columns; the same for CSV and JSON.
fn fields(machine: &Machine, row: &Row) -> Vec<(&'static str, Value)> {
    let case = &row.case;
    let direction = format!("{:?}", case.direction).to_lowercase();
    let (measured, error): (Option<&Phases>, Option<String>) = match &row.outcome {
        Outcome::Measured(phases) => (Some(phases), None),
        Outcome::Unavailable(failure) => (None, Some(format!("unavailable: {failure}"))),
        Outcome::Wrong(why) => (None, Some(format!("wrong: {why}"))),
    };
    // Nanoseconds are as far as a clock goes.
    let ms = |seconds: f64| json!((seconds * 1e9).round() / 1e6);
    let number = |of: fn(&Phases) -> f64| measured.map(|p| (of(p) * 1e3).round() / 1e3);
    let time = |of: fn(&Phases) -> f64| measured.map_or(Value::Null, |p| ms(of(p)));
    let work = measured.and_then(|p| p.work);
    let mut fields = machine.fields();
    fields.extend(device_fields(&row.device, measured.map(|p| &p.device)));
    fields.extend([
        ("case", json!(case.id())),
        ("name", json!(case.name)),
        ("group", json!(case.group)),
        ("batch_size", json!(case.batch)),
        ("seq_len", json!(case.len)),
        ("input_size", json!(case.input)),
        ("hidden_size", json!(case.hidden)),
        ("projection_size", json!(case.projection)),
        ("num_layers", json!(case.layers)),
        ("direction", json!(direction)),
        ("cell", json!(case.cell.name())),
        ("valid_rows", json!(measured.map(|p| p.valid_rows))),
        ("open_ms", time(|p| p.open)),
        ("load_ms", time(|p| p.load)),
        ("compile_ms", time(Phases::compile)),
        ("first_ms", time(|p| p.first)),
        ("steady_ms", time(|p| p.steady.median())),
        ("steady_min_ms", time(|p| p.steady.min())),
        ("steady_max_ms", time(|p| p.steady.max())),
        ("weights", json!(measured.map(|p| p.weights.name()))),
        ("rounding", json!(measured.and_then(|p| p.rounding))),
        ("runs", json!(measured.map(|p| p.steady.runs()))),
        ("states_only_ms", time(|p| p.states_only.median())),
        ("read_back_ms", time(Phases::read_back)),
        ("us_per_step", json!(number(Phases::us_per_step))),
        ("gflops", json!(number(Phases::gflops))),
        ("gpu_ms", json!(work.and_then(|w| w.gpu_time).map(ms))),
        ("submits", json!(work.map(|w| w.submits))),
        ("dispatches", json!(work.map(|w| w.dispatches))),
        ("planned_flops", json!(work.map(|w| w.flops))),
        ("moved_bytes", json!(work.map(|w| w.moved_bytes))),
        ("uploaded_bytes", json!(work.map(|w| w.uploaded_bytes))),
        ("read_back_bytes", json!(work.map(|w| w.read_back_bytes))),
        ("roof", json!(measured.and_then(|p| roof(p, row.limits)).map(|share| (share * 1e4).round() / 1e4))),
        ("error", json!(error)),
    ]);
    fields
}

/// What a row says of its device, as far as it could be opened.
pub(crate) fn device_fields(choice: &DeviceChoice, device: Option<&DeviceReport>) -> [(&'static str, Value); 5] {
    let adapter = device.and_then(|d| d.adapter.as_ref());
    [
        ("device", json!(choice.to_string())),
        ("device_name", json!(device.map(|d| &d.name))),
        ("backend", json!(adapter.map(|a| &a.backend))),
        ("driver", json!(adapter.map(driver))),
        ("software", json!(adapter.map(|a| a.is_software))),
    ]
}

/// All of a run in one document.
pub(crate) fn document(machine: &Machine, devices: &[Device], rows: &[Row], choices: &[Verdict]) -> Value {
    let of_machine: Map<_, _> = machine.fields().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    json!({
        "format": 1,
        "machine": of_machine,
        "devices": devices.iter().map(Device::json).collect::<Vec<_>>(),
        "rows": json_of(&rows.iter().map(|row| fields(machine, row)).collect::<Vec<_>>()),
        "auto": choices.iter().map(Verdict::json).collect::<Vec<_>>(),
    })
}

/// Rows of names and values.
pub(crate) fn json_of(rows: &[Vec<(&'static str, Value)>]) -> Value {
    let object = |row: &Vec<(&'static str, Value)>| {
        row.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Map<_, _>>()
    };
    rows.iter().map(object).map(Value::Object).collect()
}

/// With a heading line.
pub(crate) fn csv<'a>(machine: &Machine, rows: impl IntoIterator<Item = &'a Row>) -> String {
    csv_of(&rows.into_iter().map(|row| fields(machine, row)).collect::<Vec<_>>())
}

/// Rows of names and values, with a heading line.
pub(crate) fn csv_of(rows: &[Vec<(&'static str, Value)>]) -> String {
    let mut text = String::new();
    for (i, fields) in rows.iter().enumerate() {
        if i == 0 {
            text += &csv_line(fields.iter().map(|(name, _)| (*name).to_owned()));
        }
        text += &csv_line(fields.iter().map(|(_, value)| csv_value(value)));
    }
    text
}

fn csv_value(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// RFC 4180, with plain line ends.
fn csv_line(cells: impl Iterator<Item = String>) -> String {
    let quoted = cells.map(|cell| match cell.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell,
    });
    quoted.collect::<Vec<_>>().join(",") + "\n"
}

/// Refuses a file for what an option asks for that could not be made at the end, since its folder is missing.
fn check_folder(option: &str, path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) if folder != Path::new("") && !folder.is_dir() => {
            Err(Failure::Usage(format!("{option}: {}: there is no folder {}", path.display(), folder.display())))
        }
        _ => Ok(()),
    }
}

/// Refuses a chart that could not be written at the end.
pub(crate) fn check_chart(path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    if path.extension().is_none_or(|e| e != "svg") {
        return Err(Failure::Usage(format!("--plot: expected a file ending in .svg, found {}", path.display())));
    }
    check_folder("--plot", path)
}

/// Refuses a record that could not be written at the end.
pub(crate) fn check_path(path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    check_folder("--record", path)?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("csv") => Ok(()),
        Some("json") if path.exists() => Err(Failure::Usage(format!(
            "{}: exists; a record is kept as it was measured, name a new file",
            path.display()
        ))),
        Some("json") => Ok(()),
        _ => {
            Err(Failure::Usage(format!("--record: expected a file ending in .json or .csv, found {}", path.display())))
        }
    }
}

/// Writes the document to a new JSON file, or adds the measured rows to a CSV file, which gets its heading with the first
/// ones.
pub(crate) fn record(path: &Path, machine: &Machine, rows: &[Row], document: impl FnOnce() -> Value) -> Result<()> {
    let measured: Vec<&Row> = rows.iter().filter(|row| matches!(row.outcome, Outcome::Measured(_))).collect();
    if measured.is_empty() {
        return Ok(());
    }
    if path.extension().is_some_and(|e| e == "json") {
        let named = |e: std::io::Error| Failure::Data(format!("{}: cannot be written: {e}", path.display()));
        let mut file = OpenOptions::new().create_new(true).write(true).open(path).map_err(named)?;
        return file.write_all(format!("{:#}\n", document()).as_bytes()).map_err(named);
    }
    append(path, &csv(machine, measured))
}

/// Adds the lines of a table to a CSV file of the same columns, or makes it.
pub(crate) fn append(path: &Path, text: &str) -> Result<()> {
    let named = |e: std::io::Error| Failure::Data(format!("{}: cannot be written: {e}", path.display()));
    let (heading, lines) = text.split_once('\n').unwrap_or((text, ""));
    let before = match std::fs::read_to_string(path) {
        Ok(before) => before,
        Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
        Err(e) => return Err(named(e)),
    };
    let added = match before.lines().next() {
        None => text,
        Some(first) if first == heading => lines,
        Some(_) => fail!("{}: has other columns; name a new file", path.display()),
    };
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(named)?;
    file.write_all(added.as_bytes()).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn csv_cells_are_quoted_where_needed() {
        let cells = ["plain", "llvmpipe (LLVM 15, 256 bits)", "a \"b\""];
        let line = csv_line(cells.iter().map(|c| (*c).to_owned()));
        assert_eq!(line, "plain,\"llvmpipe (LLVM 15, 256 bits)\",\"a \"\"b\"\"\"\n");
    }

    #[test]
    fn a_record_grows_and_keeps_its_columns() {
        let machine = Machine::of_this_run();
        let case = crate::cases::parse(crate::cases::TABLE).unwrap().remove(0);
        let line = "lstm-bench --device reference --runs 3";
        let options = crate::args::Arguments::try_parse_from(line.split(' ')).unwrap();
        let device = DeviceChoice::Reference;
        let outcome = case.inputs().unwrap().measure(&device, &options, &mut None);
        assert!(matches!(outcome, Outcome::Measured(_)));
        let unavailable = Outcome::Unavailable(Failure::Data("no adapter".into()));
        let rows = [
            Row { case: case.clone(), device: DeviceChoice::Gpu, limits: None, outcome: unavailable },
            Row { case, device, limits: None, outcome },
        ];
        let path = std::env::temp_dir().join(format!("lstm-record-{}.csv", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let document = || document(&machine, &[], &rows, &[]);
        record(&path, &machine, &rows[..1], document).unwrap();
        assert!(!path.exists(), "nothing was measured");
        record(&path, &machine, &rows, document).unwrap();
        record(&path, &machine, &rows, document).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("date,version,commit") && lines[1] == lines[2], "{text}");
        assert!(lines[1].contains(",reference,") && lines[1].contains(",b1_t3_i5_h7_fwd,"), "{text}");
        std::fs::write(&path, "other,columns\n").unwrap();
        assert!(record(&path, &machine, &rows, document).unwrap_err().to_string().contains("other columns"));
        std::fs::remove_file(&path).unwrap();

        let path = path.with_extension("json");
        let _ = std::fs::remove_file(&path);
        check_path(Some(&path)).unwrap();
        record(&path, &machine, &rows, document).unwrap();
        let read: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(read["rows"][1]["case"], "b1_t3_i5_h7_fwd");
        assert!(read["machine"]["threads"].as_u64().is_some() && read["rows"][0]["error"].is_string());
        assert!(check_path(Some(&path)).unwrap_err().to_string().contains("exists"));
        assert!(record(&path, &machine, &rows, document).is_err(), "a record is not overwritten");
        std::fs::remove_file(&path).unwrap();
        assert!(check_path(Some(Path::new("record"))).is_err());
    }
}
