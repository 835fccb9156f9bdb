//! The functions of templates: Go's own, and those that Docker adds (`docker/cli`, `templates`).

use super::eval::Mode;
use serde_json::Value;

const NAMES: [&str; 25] = [
    "and", "or", "not", "len", "index", "slice", "print", "printf", "println", "eq", "ne", "lt", "le", "gt",
    "ge", "html", "urlquery", "json", "split", "join", "title", "lower", "upper", "pad", "truncate",
];

/// Whether there is such a function.
pub fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Go's idea of truth: not false, not zero, not empty.
pub fn truth(v: &Value) -> bool {
    match v {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// Go's `%v`.
pub fn display(v: &Value) -> String {
    match v {
        Value::Null => "<no value>".into(),
        Value::String(s) => s.clone(),
        Value::Array(a) => format!("[{}]", a.iter().map(display).collect::<Vec<_>>().join(" ")),
        Value::Object(o) => {
            let mut pairs: Vec<_> = o.iter().collect();
            pairs.sort_by_key(|(k, _)| *k);
            let pairs: Vec<String> = pairs.into_iter().map(|(k, v)| format!("{k}:{}", display(v))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

/// Calls a function.
pub fn call(name: &str, args: &[Value], mode: &Mode<'_>) -> Result<Value, String> {
    if mode.heading
        && matches!(name, "json" | "title" | "lower" | "upper" | "truncate" | "pad" | "join" | "split")
    {
        // The heading of `{{upper .Names}}` is that of `.Names`.
        let of = if name == "truncate" || name == "pad" || name == "join" || name == "split" {
            args.first()
        } else {
            args.last()
        };
        return of.cloned().ok_or_else(|| wants(1, 0));
    }
    let text = |i: usize| match args.get(i) {
        Some(Value::String(s)) => Ok(s.as_str()),
        Some(other) => Err(format!("expected string; found {}", display(other))),
        None => Err(wants(i + 1, args.len())),
    };
    let at = |i: usize| args.get(i).ok_or_else(|| wants(i + 1, args.len()));
    Ok(match name {
        "not" => Value::Bool(!truth(at(0)?)),
        "len" => match at(0)? {
            Value::String(s) => s.len().into(),
            Value::Array(a) => a.len().into(),
            Value::Object(o) => o.len().into(),
            Value::Null => 0.into(),
            other => return Err(format!("len of type {}", display(other))),
        },
        "index" => index(at(0)?, &args[1..])?,
        "slice" => slice(at(0)?, &args[1..])?,
        "print" => print(args).into(),
        "println" => (args.iter().map(display).collect::<Vec<_>>().join(" ") + "\n").into(),
        "printf" => super::printf::format(text(0)?, &args[1..]).into(),
        "eq" => {
            let first = at(0)?;
            at(1)?;
            let mut found = false;
            for other in &args[1..] {
                found |= compare(first, other, true)? == std::cmp::Ordering::Equal;
            }
            found.into()
        }
        "ne" => (compare(at(0)?, at(1)?, true)?.is_ne()).into(),
        "lt" => (compare(at(0)?, at(1)?, false)?.is_lt()).into(),
        "le" => (compare(at(0)?, at(1)?, false)?.is_le()).into(),
        "gt" => (compare(at(0)?, at(1)?, false)?.is_gt()).into(),
        "ge" => (compare(at(0)?, at(1)?, false)?.is_ge()).into(),
        "html" => print(args)
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&#34;")
            .replace('\'', "&#39;")
            .into(),
        "urlquery" => urlquery(&print(args)).into(),
        // Docker sorts the fields of a row, and leaves those of an object as they are declared.
        "json" if mode.method.is_some() => at(0)?.to_string().into(),
        "json" => super::pretty::compact(at(0)?).into(),
        "split" => {
            let (s, sep) = (text(0)?, text(1)?);
            if sep.is_empty() {
                s.chars().map(|c| Value::from(c.to_string())).collect::<Vec<_>>().into()
            } else {
                s.split(sep).map(Value::from).collect::<Vec<_>>().into()
            }
        }
        "join" => match at(0)? {
            Value::Array(a) => a.iter().map(display).collect::<Vec<_>>().join(text(1)?).into(),
            Value::Null => "".into(),
            other => return Err(format!("expected a list; found {}", display(other))),
        },
        "title" => title(text(0)?).into(),
        "lower" => text(0)?.to_lowercase().into(),
        "upper" => text(0)?.to_uppercase().into(),
        "pad" => {
            let s = text(0)?;
            if s.is_empty() {
                "".into()
            } else {
                let side = |i| int(at(i)?).map(|n| " ".repeat(n.clamp(0, 10_000) as usize));
                format!("{}{s}{}", side(1)?, side(2)?).into()
            }
        }
        "truncate" => {
            let n = int(at(1)?)?.max(0) as usize;
            text(0)?.chars().take(n).collect::<String>().into()
        }
        other => return Err(format!("{other} is not a function")),
    })
}

fn wants(want: usize, got: usize) -> String {
    format!("wrong number of args: want at least {want} got {got}")
}

fn int(v: &Value) -> Result<i64, String> {
    v.as_i64().ok_or_else(|| format!("expected integer; found {}", display(v)))
}

/// Go's `Sprint`: a space between operands when neither is a string.
fn print(args: &[Value]) -> String {
    let mut out = String::new();
    for (i, a) in args.iter().enumerate() {
        if i > 0 && !a.is_string() && !args[i - 1].is_string() {
            out.push(' ');
        }
        out += &display(a);
    }
    out
}

fn index(value: &Value, keys: &[Value]) -> Result<Value, String> {
    let mut v = value;
    for key in keys {
        v = match (v, key) {
            (Value::Object(o), Value::String(k)) => o.get(k).unwrap_or(&Value::Null),
            (Value::Object(_), other) => {
                return Err(format!("value has type {}; should be string", display(other)));
            }
            (Value::Array(a), k) => {
                let i = int(k)?;
                usize::try_from(i)
                    .ok()
                    .and_then(|i| a.get(i))
                    .ok_or_else(|| format!("index out of range: {i}"))?
            }
            (Value::String(s), k) => {
                let i = int(k)?;
                let byte = usize::try_from(i).ok().and_then(|i| s.as_bytes().get(i));
                return byte.map(|b| Value::from(*b)).ok_or_else(|| format!("index out of range: {i}"));
            }
            (Value::Null, _) => return Err("index of untyped nil".into()),
            (other, _) => return Err(format!("can't index item of type {}", display(other))),
        };
    }
    Ok(v.clone())
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value, String> {
    let len = match value {
        Value::String(s) => s.len(),
        Value::Array(a) => a.len(),
        other => return Err(format!("can't slice item of type {}", display(other))),
    };
    let bound = |i: usize, default: usize| match bounds.get(i) {
        None => Ok(default),
        Some(v) => usize::try_from(int(v)?)
            .ok()
            .filter(|n| *n <= len)
            .ok_or_else(|| format!("index out of range: {}", display(v))),
    };
    let (from, to) = (bound(0, 0)?, bound(1, len)?);
    if from > to {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    Ok(match value {
        Value::String(s) => s.get(from..to).ok_or("a slice splits a character")?.into(),
        Value::Array(a) => a[from..to].to_vec().into(),
        _ => Value::Null,
    })
}

fn compare(a: &Value, b: &Value, equality: bool) -> Result<std::cmp::Ordering, String> {
    use std::cmp::Ordering;
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => Ok(x.cmp(&y)),
            _ => {
                x.as_f64().partial_cmp(&y.as_f64()).ok_or_else(|| "incompatible types for comparison".into())
            }
        },
        (Value::String(x), Value::String(y)) => Ok(x.cmp(y)),
        (Value::Bool(x), Value::Bool(y)) if equality => Ok(x.cmp(y)),
        (x, y) if equality && (x.is_null() || y.is_null()) => {
            Ok(if x == y { Ordering::Equal } else { Ordering::Less })
        }
        _ if equality => Err("incompatible types for comparison".into()),
        _ => Err("invalid type for comparison".into()),
    }
}

fn title(s: &str) -> String {
    let mut start = true;
    s.chars()
        .flat_map(|c| {
            let upper = std::mem::replace(&mut start, c.is_whitespace()) && c.is_lowercase();
            if upper { c.to_uppercase().collect::<Vec<_>>() } else { vec![c] }
        })
        .collect()
}

fn urlquery(s: &str) -> String {
    s.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
            b' ' => "+".into(),
            b => format!("%{b:02X}"),
        })
        .collect()
}
