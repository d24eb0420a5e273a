//! Curves as an SVG picture of 800 by 500: axes from 0 with ticks, a grid, a legend.

use std::fmt::Write as _;

use crate::common::write_result;

/// A line through points, in the order of their x.
pub struct Curve {
    pub name: String,
    pub style: Style,
    pub dashed: bool,
    pub points: Vec<(f64, f64)>,
}

/// A colour, as SVG names it, and the width in pixels.
pub type Style = (&'static str, f64);

pub struct Plot {
    pub title: String,
    /// The labels of the axes, with the unit.
    pub x: &'static str,
    pub y: &'static str,
    pub curves: Vec<Curve>,
}

impl Plot {
    /// Writes the picture into `target/larder-bench`.
    pub fn write(&self, file: &str) {
        write_result(file, &self.svg());
    }

    fn svg(&self) -> String {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let x = Scale::new(points().map(|point| point.0), LEFT, RIGHT);
        let y = Scale::new(points().map(|point| point.1), BOTTOM, TOP);
        let mut svg = String::new();
        let mut put = |element: String| writeln!(svg, "{element}").expect("writing to a string");

        put(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">"
        ));
        put("<rect width=\"100%\" height=\"100%\" fill=\"white\"/>".into());
        put(format!(
            "<text x=\"{LEFT}\" y=\"28\" font-size=\"17\">{}</text>",
            self.title
        ));
        for (value, label) in x.ticks() {
            let at = x.place(value);
            put(line((at, BOTTOM), (at, TOP), GRID));
            put(text((at, BOTTOM + 20.0), "middle", &label));
        }
        for (value, label) in y.ticks() {
            let at = y.place(value);
            put(line((LEFT, at), (RIGHT, at), GRID));
            put(text((LEFT - 8.0, at + 4.0), "end", &label));
        }
        put(line((LEFT, BOTTOM), (RIGHT, BOTTOM), AXIS));
        put(line((LEFT, BOTTOM), (LEFT, TOP), AXIS));
        let middle = f64::midpoint(LEFT, RIGHT);
        put(text((middle, BOTTOM + 44.0), "middle", self.x));
        let middle = f64::midpoint(TOP, BOTTOM);
        put(format!(
            "<text transform=\"translate(20 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            self.y
        ));
        for (n, curve) in self.curves.iter().enumerate() {
            let mut places = String::new();
            for &(px, py) in &curve.points {
                write!(places, "{:.1},{:.1} ", x.place(px), y.place(py))
                    .expect("writing to a string");
            }
            let style = curve.style();
            put(format!(
                "<polyline points=\"{}\" fill=\"none\" {style}/>",
                places.trim_end()
            ));
            let at = TOP + 10.0 + 22.0 * n as f64;
            put(line((RIGHT + 16.0, at), (RIGHT + 48.0, at), &style));
            put(text((RIGHT + 56.0, at + 4.0), "start", &curve.name));
        }
        svg + "</svg>\n"
    }
}

impl Curve {
    fn style(&self) -> String {
        let dashes = if self.dashed {
            " stroke-dasharray=\"6 4\""
        } else {
            ""
        };
        let (color, width) = self.style;
        format!("stroke=\"{color}\" stroke-width=\"{width}\"{dashes}")
    }
}

/// Maps values from 0 to the maximum onto a range of pixels.
struct Scale {
    /// The distance of two ticks: 1, 2 or 5 times a power of ten.
    step: f64,
    steps: usize,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Scale {
        let max = values.fold(0.0, f64::max).max(1e-9);
        let power = 10_f64.powf((max / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|factor| factor * power)
            .into_iter()
            .find(|step| max / step <= 7.0)
            .unwrap_or(10.0 * power);
        Scale {
            step,
            steps: (max / step).ceil() as usize,
            from,
            to,
        }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * value / (self.step * self.steps as f64)
    }

    /// The values of the ticks, and their labels.
    fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        let decimals = if self.step < 1.0 { 1 } else { 0 };
        (0..=self.steps).map(move |n| {
            let value = n as f64 * self.step;
            (value, format!("{value:.decimals$}"))
        })
    }
}

fn line(from: (f64, f64), to: (f64, f64), style: &str) -> String {
    let ((x1, y1), (x2, y2)) = (from, to);
    format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>")
}

fn text((x, y): (f64, f64), anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>")
}

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 500.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 560.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 436.0;

const GRID: &str = "stroke=\"#dddddd\" stroke-width=\"1\"";
const AXIS: &str = "stroke=\"black\" stroke-width=\"1\"";
