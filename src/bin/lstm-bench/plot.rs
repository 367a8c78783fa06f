//! `--plot`: charts as one SVG. A chart for each swept size, time against size, a line per device: where lines cross, the
//! better device changes. And the roofline: what GPUs made of the bytes and operations that they were given.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::cases::Sweep;
use crate::common::failure::{Failure, Result, fail};
use crate::common::units::significant;
use crate::devices::Device;
use crate::machine::Machine;
use crate::phases::Outcome;
use crate::report::Row;

const WIDTH: u32 = 640;
const HEIGHT: u32 = 440;
/// Okabe and Ito's colours, which differ for all eyes.
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Points of a device.
type Series = (String, Vec<(f64, f64)>);

struct Chart {
    title: String,
    x: &'static str,
    y: &'static str,
    lines: Vec<Series>,
    points: Vec<Series>,
}

/// Draws what there is to draw.
pub(crate) fn draw(path: &Path, machine: &Machine, devices: &[Device], rows: &[Row]) -> Result<()> {
    let mut charts: Vec<Chart> =
        [Sweep::Hidden, Sweep::Batch, Sweep::Length].into_iter().filter_map(|s| growth(s, devices, rows)).collect();
    charts.extend(roofline(devices, rows));
    if charts.is_empty() {
        fail!("--plot: nothing to draw; expected --sweep with two sizes that were measured, or a GPU");
    }
    let text = render(&charts, machine).map_err(|e| Failure::Data(format!("--plot: {e}")))?;
    std::fs::write(path, text).map_err(|e| Failure::Data(format!("{}: cannot be written: {e}", path.display())))
}

fn name(device: &Device) -> String {
    let Some(report) = &device.report else { return device.choice.to_string() };
    let is_software = report.adapter.as_ref().is_some_and(|adapter| adapter.is_software);
    if is_software { format!("{}, software", report.name) } else { report.name.clone() }
}

fn growth(sweep: Sweep, devices: &[Device], rows: &[Row]) -> Option<Chart> {
    let of_device = |device: &Device| {
        let points = rows.iter().filter(|row| row.case.group == sweep.group() && row.device == device.choice);
        let points = points.filter_map(|row| match &row.outcome {
            Outcome::Measured(phases) => Some((sweep.size(&row.case) as f64, phases.steady.median() * 1e3)),
            _ => None,
        });
        (name(device), points.collect::<Vec<_>>())
    };
    let lines: Vec<Series> = devices.iter().map(of_device).filter(|(_, points)| points.len() > 1).collect();
    let (title, x) = match sweep {
        Sweep::Hidden => ("Growth with the hidden size (B 16, T 64, I = H)", "H"),
        Sweep::Batch => ("Growth with the batch (T 64, I = H = 256)", "B"),
        Sweep::Length => ("Growth with the length (B 16, I = H = 256)", "T"),
    };
    (!lines.is_empty()).then(|| Chart {
        title: title.to_owned(),
        x,
        y: "ms, host to host",
        points: lines.clone(),
        lines,
    })
}

fn roofline(devices: &[Device], rows: &[Row]) -> Option<Chart> {
    let mut chart = Chart {
        title: "Roofline: lines are what the adapter reaches, points are runs".to_owned(),
        x: "FLOP per byte moved",
        y: "GFLOP/s",
        lines: Vec::new(),
        points: Vec::new(),
    };
    for device in devices {
        let Some(limits) = device.limits else { continue };
        let points: Vec<(f64, f64)> = rows
            .iter()
            .filter(|row| row.device == device.choice)
            .filter_map(|row| match &row.outcome {
                Outcome::Measured(phases) => phases.work.map(|work| {
                    let seconds = work.gpu_time.unwrap_or(phases.steady.median());
                    (work.flops as f64 / work.moved_bytes.max(1) as f64, work.flops as f64 / seconds / 1e9)
                }),
                _ => None,
            })
            .collect();
        if points.is_empty() {
            continue;
        }
        let ridge = limits.flops / limits.copy_bytes_per_second;
        let (left, right) = points.iter().fold((ridge / 4.0, ridge * 4.0), |(a, b), p| (a.min(p.0), b.max(p.0)));
        let roof = |x: f64| (x, limits.flops.min(x * limits.copy_bytes_per_second) / 1e9);
        chart.lines.push((name(device), vec![roof(left), roof(ridge), roof(right)]));
        chart.points.push((name(device), points));
    }
    (!chart.points.is_empty()).then_some(chart)
}

fn render(charts: &[Chart], machine: &Machine) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let mut text = String::new();
    {
        let columns = charts.len().min(2);
        let lines = charts.len().div_ceil(columns);
        let size = (WIDTH * columns as u32, HEIGHT * lines as u32 + 24);
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (heading, rest) = root.split_vertically(24);
        heading.draw_text(&machine.describe(), &("sans-serif", 12).into_text_style(&heading), (8, 6))?;
        for (area, chart) in rest.split_evenly((lines, columns)).iter().zip(charts) {
            draw_chart(area, chart)?;
        }
        root.present()?;
    }
    Ok(text)
}

fn draw_chart(area: &Area<'_>, chart: &Chart) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let all = || chart.lines.iter().chain(&chart.points).flat_map(|(_, points)| points.iter().copied());
    let range = |of: fn((f64, f64)) -> f64| {
        let (low, high) = all().map(of).fold((f64::INFINITY, 0.0f64), |(a, b), v| (a.min(v), b.max(v)));
        (low / 1.5)..(high * 1.5)
    };
    let mut context = ChartBuilder::on(area)
        .caption(&chart.title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(range(|p| p.0).log_scale(), range(|p| p.1).log_scale())?;
    let label = |v: &f64| significant(*v);
    context
        .configure_mesh()
        .x_labels(5)
        .y_labels(6)
        .x_desc(chart.x)
        .y_desc(chart.y)
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .draw()?;
    for (i, (name, points)) in chart.lines.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        context
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    for (i, (_, points)) in chart.points.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        context.draw_series(points.iter().map(|&point| Circle::new(point, 3, color.filled())))?;
    }
    context
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_hold_their_points_and_names() {
        let series = vec![("a <device>".to_owned(), vec![(1.0, 2.0), (4.0, 8.0), (16.0, 30.0)])];
        let chart = || Chart { title: "Growth".into(), x: "T", y: "ms", lines: series.clone(), points: series.clone() };
        let text = render(&[chart(), chart(), chart()], &Machine::of_this_run()).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
        assert_eq!(text.matches("<circle").count(), 9);
        assert_eq!(text.matches("Growth").count(), 3);
        assert!(text.contains("a &lt;device&gt;"));
    }

    #[test]
    fn nothing_to_draw_is_said() {
        let error = draw(Path::new("unused.svg"), &Machine::of_this_run(), &[], &[]).unwrap_err();
        assert!(error.to_string().contains("--sweep"), "{error}");
    }
}
