//! One page with the same figures as plots: nothing is fetched, no script runs.

use super::{Comparison, Hull, text};
use std::fmt::Write;

/// Widest bar, in units of the drawing.
const WIDTH: f64 = 420.0;
/// Height of one bar with its gap.
const STEP: usize = 26;
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#123}\
h2{font-size:1rem;margin:1.6rem 0 .2rem}svg{display:block;max-width:100%}text{font:13px system-ui,sans-serif;fill:#123}\
.h0{fill:#2a7}.h1{fill:#47c}td,th{padding:.1rem 1.2rem .1rem 0;text-align:left}p{color:#567}";

/// The page.
pub fn page(c: &Comparison) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>dhow compare {0}</title><style>{STYLE}</style>\n\
         <h1>dhow compare {0}</h1>\n<p>{1}</p>\n",
        escaped(&c.image),
        escaped(&text::first_line(c)),
    );
    for (metric, values) in c.rows() {
        let _ = writeln!(out, "<h2>{}</h2>", escaped(metric.label()));
        let most = values.iter().flatten().copied().fold(0.0, f64::max);
        let bars: Vec<_> =
            c.hulls.iter().enumerate().zip(values).filter_map(|(h, v)| Some((h, v?))).collect();
        let _ = writeln!(
            out,
            "<svg viewBox=\"0 0 720 {0}\" width=\"720\" height=\"{0}\" role=\"img\">",
            bars.len() * STEP
        );
        for (i, ((which, hull), value)) in bars.iter().enumerate() {
            let y = i * STEP;
            let width = if most > 0.0 { (value / most * WIDTH).max(1.0) } else { 1.0 };
            let _ = writeln!(
                out,
                "<text x=\"0\" y=\"{}\">{}</text><rect class=\"h{which}\" x=\"100\" y=\"{y}\" width=\"{width:.1}\" height=\"20\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{}</text>{}",
                y + 15,
                escaped(&hull.name),
                108.0 + width,
                y + 15,
                escaped(&metric.show(*value)),
                dots(hull, metric, most, y),
            );
        }
        out += "</svg>\n";
    }
    out += "<h2>hulls</h2>\n<table><tr><th>hull<th>carried by<th>kernel seen from inside\n";
    for h in &c.hulls {
        let last = match &h.error {
            Some(why) => format!("not measured: {why}"),
            None => h.kernel.clone().unwrap_or_default(),
        };
        let _ =
            writeln!(out, "<tr><td>{}<td>{}<td>{}", escaped(&h.name), escaped(&h.carrier), escaped(&last));
    }
    out + "</table>\n"
}

/// Each run as a dot on its bar, where there are several.
fn dots(hull: &Hull, metric: super::Metric, most: f64, y: usize) -> String {
    let samples = hull.figures.iter().find(|f| f.metric == metric).map_or(&[][..], |f| &f.samples);
    if samples.len() < 2 || most <= 0.0 {
        return String::new();
    }
    let dot = |s: &f64| {
        // A slow run may lie beyond the longest bar, which is a median.
        let x = 100.0 + (s / most * WIDTH).min(WIDTH + 180.0);
        format!("<circle cx=\"{x:.1}\" cy=\"{}\" r=\"3\" fill=\"#fff\" stroke=\"#123\"/>", y + 10)
    };
    samples.iter().map(dot).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::example;

    #[test]
    fn a_page_is_whole() {
        let page = page(&example());
        assert!(page.starts_with("<!doctype html>") && page.contains("6.1 &lt;cloud&gt;"), "{page}");
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("<rect").count(), 3, "one bar for each value");
        assert!(page.contains("width=\"420.0\"") && page.contains("width=\"4.2\""), "{page}");
        assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("src="));
    }

    #[test]
    fn a_name_is_no_markup() {
        let mut c = example();
        c.image = "<script>\"".into();
        assert!(page(&c).contains("&lt;script&gt;&quot;") && !page(&c).contains("<script"));
    }
}
