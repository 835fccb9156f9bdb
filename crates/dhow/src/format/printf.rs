//! `printf` for templates: the verbs and flags of Go's `fmt` that make sense for JSON values.

use super::functions::display;
use serde_json::Value;

#[derive(Default)]
struct Spec {
    minus: bool,
    plus: bool,
    zero: bool,
    sharp: bool,
    width: usize,
    precision: Option<usize>,
}

/// Go's `Sprintf`. What does not fit is said in the text, as Go does, and is no error.
pub fn format(pattern: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut chars = pattern.chars().peekable();
    let mut args = args.iter();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(f) = chars.next_if(|c| matches!(c, '-' | '+' | '0' | '#' | ' ')) {
            match f {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                '0' => spec.zero = true,
                '#' => spec.sharp = true,
                _ => {}
            }
        }
        let mut number = || {
            let mut n: Option<usize> = None;
            while let Some(d) = chars.next_if(char::is_ascii_digit).and_then(|d| d.to_digit(10)) {
                // A width beyond this is a mistake, not a wish.
                n = Some((n.unwrap_or(0) * 10 + d as usize).min(10_000));
            }
            n
        };
        spec.width = number().unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            let mut n = 0;
            while let Some(d) = chars.next_if(char::is_ascii_digit).and_then(|d| d.to_digit(10)) {
                n = (n * 10 + d as usize).min(10_000);
            }
            spec.precision = Some(n);
        }
        match chars.next() {
            None => out += "%!(NOVERB)",
            Some('%') => out.push('%'),
            Some(verb) => match args.next() {
                None => out += &format!("%!{verb}(MISSING)"),
                Some(v) => out += &pad(one(verb, v, &spec), &spec),
            },
        }
    }
    let extra: Vec<String> = args.map(display).collect();
    if !extra.is_empty() {
        out += &format!("%!(EXTRA {})", extra.join(", "));
    }
    out
}

fn one(verb: char, v: &Value, spec: &Spec) -> String {
    let sign = |s: String| if spec.plus && !s.starts_with('-') { format!("+{s}") } else { s };
    match (verb, v) {
        ('v', Value::String(s)) if spec.sharp => format!("{s:?}"),
        ('v', v) => display(v),
        ('s', Value::String(_) | Value::Array(_) | Value::Object(_)) => match spec.precision {
            Some(p) => display(v).chars().take(p).collect(),
            None => display(v),
        },
        ('q', Value::String(s)) => format!("{s:?}"),
        ('q', Value::Array(a)) => {
            format!("[{}]", a.iter().map(|v| format!("{:?}", display(v))).collect::<Vec<_>>().join(" "))
        }
        ('d', Value::Number(n)) if n.is_i64() || n.is_u64() => sign(n.to_string()),
        ('t', Value::Bool(b)) => b.to_string(),
        ('x', Value::Number(n)) if n.is_i64() => format!("{:x}", n.as_i64().unwrap_or(0)),
        ('X', Value::Number(n)) if n.is_i64() => format!("{:X}", n.as_i64().unwrap_or(0)),
        ('o', Value::Number(n)) if n.is_i64() => format!("{:o}", n.as_i64().unwrap_or(0)),
        ('c', Value::Number(n)) => n
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .and_then(char::from_u32)
            .map(String::from)
            .unwrap_or_default(),
        ('x', Value::String(s)) => s.bytes().map(|b| format!("{b:02x}")).collect(),
        ('f' | 'F', Value::Number(n)) => {
            sign(format!("{:.*}", spec.precision.unwrap_or(6), n.as_f64().unwrap_or(0.0)))
        }
        ('e', Value::Number(n)) => sign(format!("{:e}", n.as_f64().unwrap_or(0.0))),
        ('g', Value::Number(n)) => sign(n.to_string()),
        (verb, v) => format!("%!{verb}({})", display(v)),
    }
}

fn pad(s: String, spec: &Spec) -> String {
    let missing = spec.width.saturating_sub(s.chars().count());
    if missing == 0 {
        s
    } else if spec.minus {
        s + &" ".repeat(missing)
    } else if spec.zero {
        match s.strip_prefix('-') {
            Some(digits) => format!("-{}{digits}", "0".repeat(missing)),
            None => "0".repeat(missing) + &s,
        }
    } else {
        " ".repeat(missing) + &s
    }
}
