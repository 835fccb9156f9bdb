//! Lists: one template per row, aligned columns for tables (Go's `tabwriter` with Docker's settings).

use super::eval::Mode;
use super::{Template, TemplateError};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Docker's `tabwriter.NewWriter(out, 10, 1, 3, ' ', 0)`.
const MIN_WIDTH: usize = 10;
const PADDING: usize = 3;

/// One row: its fields, and the labels that `.Label "x"` answers from.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// By name, as templates and `json` see them.
    pub fields: Map<String, Value>,
    /// For `.Label`.
    pub labels: HashMap<String, String>,
}

impl Row {
    /// A row of text fields.
    pub fn new<const N: usize>(fields: [(&str, String); N]) -> Self {
        let fields = fields.into_iter().map(|(k, v)| (k.to_owned(), Value::String(v))).collect();
        Self { fields, labels: HashMap::new() }
    }
}

/// What can be listed: names of fields with their headings, and which make the default table.
pub struct Columns {
    /// Field and heading.
    pub headings: &'static [(&'static str, &'static str)],
}

/// How rows are printed.
pub struct Layout {
    template: Template,
    heading: Option<String>,
}

impl Layout {
    /// Reads `--format`. `default` is the template of the default table.
    pub fn new(format: Option<&str>, default: &str, columns: &Columns) -> Result<Self, TemplateError> {
        let format = format.unwrap_or("table").trim();
        let unescaped = |s: &str| s.replace("\\t", "\t").replace("\\n", "\n");
        let (source, table) = match format {
            "" | "table" => (default.to_owned(), true),
            "json" => ("{{json .}}".to_owned(), false),
            f => match f.strip_prefix("table ") {
                Some(rest) => (unescaped(rest.trim_start()), true),
                None => (unescaped(f), false),
            },
        };
        let template = Template::parse(&source)?;
        let heading = if table { Some(heading(&template, columns)?) } else { None };
        Ok(Self { template, heading })
    }

    /// All rows, with the heading of a table.
    pub fn render(&self, rows: &[Row]) -> Result<String, TemplateError> {
        let mut lines: Vec<String> = self.heading.iter().cloned().collect();
        for r in rows {
            lines.push(self.row(r)?);
        }
        if self.heading.is_some() {
            Ok(align(&lines))
        } else {
            Ok(lines.into_iter().map(|l| l + "\n").collect())
        }
    }

    fn row(&self, row: &Row) -> Result<String, TemplateError> {
        let label = |name: &str, args: &[Value]| match (name, args) {
            ("Label", [Value::String(key)]) => {
                let label = row.labels.get(key).cloned().unwrap_or_default();
                Some(self.cell(&Value::String(label)))
            }
            _ => None,
        };
        let fields = row.fields.iter().map(|(name, value)| (name.clone(), self.cell(value))).collect();
        self.template.execute(&Value::Object(fields), Mode { method: Some(&label), heading: false })
    }

    /// A table is for eyes: names, labels and versions that others chose have no control characters in it.
    fn cell(&self, value: &Value) -> Value {
        match value {
            Value::String(text) if self.heading.is_some() => text.replace(char::is_control, "?").into(),
            other => other.clone(),
        }
    }
}

fn heading(template: &Template, columns: &Columns) -> Result<String, TemplateError> {
    let fields: Map<String, Value> =
        columns.headings.iter().map(|(f, h)| ((*f).to_owned(), json!(h))).collect();
    let label = |name: &str, args: &[Value]| match (name, args) {
        ("Label", [Value::String(key)]) => {
            Some(Value::String(key.rsplit('.').next().unwrap_or(key).replace(['-', '_'], " ")))
        }
        _ => None,
    };
    template.execute(&Value::Object(fields), Mode { method: Some(&label), heading: true })
}

/// Aligns cells that end with a tab. A line's last cell has no tab and no width.
pub fn align(lines: &[String]) -> String {
    let rows: Vec<Vec<&str>> =
        lines.iter().flat_map(|l| l.split('\n')).map(|l| l.split('\t').collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            let cells = rows.iter().filter(|r| c + 1 < r.len()).map(|r| r[c].chars().count());
            (cells.max().unwrap_or(0) + PADDING).max(MIN_WIDTH)
        })
        .collect();
    let mut out = String::new();
    for row in &rows {
        for (c, cell) in row.iter().enumerate() {
            out += cell;
            if c + 1 < row.len() {
                out += &" ".repeat(widths[c].saturating_sub(cell.chars().count()));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: Columns = Columns { headings: &[("ID", "CONTAINER ID"), ("Names", "NAMES")] };

    fn rows() -> Vec<Row> {
        let mut r = Row::new([("ID", "abc".into()), ("Names", "x".into())]);
        r.labels.insert("a.my-key".into(), "v".into());
        vec![r]
    }

    fn render(format: Option<&str>) -> String {
        Layout::new(format, "{{.ID}}\t{{.Names}}", &COLUMNS).unwrap().render(&rows()).unwrap()
    }

    #[test]
    fn what_others_named_gives_no_orders_to_the_terminal() {
        let mut row = Row::new([("ID", "a\x1b[31m\nb".into()), ("Names", "x".into())]);
        row.labels.insert("l".into(), "\u{9b}2J".into());
        let render =
            |format| Layout::new(format, "{{.ID}}", &COLUMNS).unwrap().render(&[row.clone()]).unwrap();
        assert_eq!(render(None), "CONTAINER ID\na?[31m?b\n");
        assert!(render(Some("table {{.Label \"l\"}}")).ends_with("?2J\n"));
        // Programs get what it is.
        assert_eq!(render(Some("{{.ID}}")), "a\x1b[31m\nb\n");
    }

    #[test]
    fn tables() {
        assert_eq!(render(None), "CONTAINER ID   NAMES\nabc            x\n");
        assert_eq!(render(Some("table {{.Names}}\\t{{.ID}}")), "NAMES     CONTAINER ID\nx         abc\n");
        assert_eq!(render(Some("table {{.Label \"a.my-key\"}}")), "my key\nv\n");
        assert_eq!(render(Some("table {{upper .ID}}")), "CONTAINER ID\nABC\n");
    }

    #[test]
    fn templates() {
        assert_eq!(render(Some("{{.ID}}:{{.Label \"a.my-key\"}}")), "abc:v\n");
        assert_eq!(render(Some("json")), "{\"ID\":\"abc\",\"Names\":\"x\"}\n");
        assert!(Layout::new(Some("{{.Nope}}"), "", &COLUMNS).unwrap().render(&rows()).is_err());
    }
}
