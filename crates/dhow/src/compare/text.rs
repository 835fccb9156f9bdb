//! The table on a terminal or in a file: a row for each metric, a column for each hull.

use super::Comparison;
use std::fmt::Write;

/// Widest bar.
const BAR: usize = 16;
/// Eighths of a block.
const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// A value, and its bar.
type Cell = (String, String);

/// The table; with bars where it is looked at by a human.
pub fn table(c: &Comparison, bars: bool) -> String {
    let mut rows: Vec<(String, Vec<Option<Cell>>)> = Vec::new();
    let shown: Vec<_> = c.hulls.iter().filter(|h| h.error.is_none()).collect();
    for (metric, _) in c.rows() {
        let values: Vec<_> = shown.iter().map(|h| h.median(metric)).collect();
        let most = values.iter().flatten().copied().fold(0.0, f64::max);
        let cell =
            |v: Option<f64>| v.map(|v| (metric.show(v), if bars { bar(v, most) } else { String::new() }));
        rows.push((metric.label().to_owned(), values.into_iter().map(cell).collect()));
    }
    if shown.iter().any(|h| h.kernel.is_some()) {
        let cells = shown.iter().map(|h| h.kernel.clone().map(|k| (k, String::new())));
        rows.push(("kernel seen from inside".into(), cells.collect()));
    }
    let head: Vec<String> = shown.iter().map(|h| format!("{} ({})", h.name, h.carrier)).collect();
    let label = rows.iter().map(|(l, _)| l.chars().count()).max().unwrap_or(0);
    let value =
        rows.iter().flat_map(|(_, cells)| cells).flatten().map(|(v, _)| v.chars().count()).max().unwrap_or(0);
    let column =
        head.iter().map(|h| h.chars().count()).max().unwrap_or(0).max(value + if bars { BAR + 1 } else { 0 });
    let mut lines = vec![first_line(c)];
    if !shown.is_empty() {
        let titles: String = head.iter().map(|h| format!("  {h:<column$}")).collect();
        lines.push(format!("{:label$}{titles}", ""));
    }
    for (name, cells) in rows {
        let mut line = format!("{name:<label$}");
        for cell in cells {
            let text =
                cell.map(|(v, bar)| if bars { format!("{v:>value$} {bar}") } else { v }).unwrap_or_default();
            let _ = write!(line, "  {text:<column$}");
        }
        lines.push(line);
    }
    for h in &c.hulls {
        if let Some(why) = &h.error {
            lines.push(format!("{} ({}): not measured: {why}", h.name, h.carrier));
        } else if let Some(code) = h.exit_code.filter(|c| *c != 0) {
            lines.push(format!("{}: the workload ended with code {code}", h.name));
        }
    }
    lines.iter().map(|l| format!("{}\n", l.trim_end())).collect()
}

/// What was measured, and where.
pub fn first_line(c: &Comparison) -> String {
    let what = [c.image.as_str()]
        .into_iter()
        .chain(c.command.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ");
    let runs = if c.runs == 1 { "one run".to_owned() } else { format!("medians of {} runs", c.runs) };
    format!("{} on this host ({}), {runs}", crate::verbs::common::printable(&what), c.host)
}

/// A bar of that share; whatever is not nothing can be seen.
fn bar(value: f64, most: f64) -> String {
    if most <= 0.0 || value <= 0.0 {
        return String::new();
    }
    let eighths = ((value / most * (BAR * 8) as f64).round() as usize).clamp(1, BAR * 8);
    let rest = (eighths % 8).checked_sub(1).and_then(|i| EIGHTHS.get(i));
    "█".repeat(eighths / 8) + &rest.map(char::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::example;

    #[test]
    fn bars_have_lengths() {
        assert_eq!(bar(10.0, 10.0), "█".repeat(BAR));
        assert_eq!(bar(5.0, 10.0), "█".repeat(BAR / 2));
        assert_eq!(bar(0.0001, 10.0), "▏");
        assert_eq!(bar(0.0, 10.0), "");
    }

    #[test]
    fn a_table() {
        let expected = "hello on this host (Linux 6.18, 2 CPUs), one run\n\
             \x20                                    container (namespaces)  microVM (QEMU)\n\
             time to the first output             25 ms                   2500 ms\n\
             would fit into the memory available  1000\n\
             kernel seen from inside              6.18                    6.1 <cloud>\n";
        assert_eq!(table(&example(), false), expected);
        let with_bars = table(&example(), true);
        assert!(with_bars.contains(&"█".repeat(BAR)) && with_bars.contains("▏"), "{with_bars}");
    }

    #[test]
    fn a_hull_that_cannot_run_says_why() {
        let mut c = example();
        c.hulls[1].error = Some("lacks guest kernel".into());
        c.hulls[1].figures.clear();
        let text = table(&c, false);
        assert!(text.contains("microVM (QEMU): not measured: lacks guest kernel\n"), "{text}");
        assert!(!text.contains("6.1 <cloud>"), "{text}");
    }
}
