//! Carries a template out over a JSON value (Go, package `text/template`).

use super::TemplateError;
use super::functions;
use super::parse::{Node, Operand, Pipeline};
use serde_json::Value;

/// Answers a method of the top value, such as `.Label "x"`.
pub type Method<'a> = &'a dyn Fn(&str, &[Value]) -> Option<Value>;

/// How a template is carried out.
#[derive(Clone, Copy)]
pub struct Mode<'a> {
    /// Methods of the top value.
    pub method: Option<Method<'a>>,
    /// The template makes a table's heading: functions leave names as they are.
    pub heading: bool,
}

/// Carries out `nodes` over `data`.
pub fn execute(nodes: &[Node], data: &Value, mode: Mode<'_>) -> Result<String, TemplateError> {
    let mut e =
        Evaluator { out: String::new(), variables: vec![("$".into(), data.clone())], root: data, mode };
    e.nodes(nodes, data)?;
    Ok(e.out)
}

enum Flow {
    On,
    Break,
    Continue,
}

struct Evaluator<'a> {
    out: String,
    variables: Vec<(String, Value)>,
    root: &'a Value,
    mode: Mode<'a>,
}

impl Evaluator<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        let scope = self.variables.len();
        let flow = nodes.iter().try_fold(Flow::On, |flow, n| match flow {
            Flow::On => self.node(n, dot),
            stop => Ok(stop),
        });
        self.variables.truncate(scope);
        flow
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, TemplateError> {
        match node {
            Node::Text(t) => self.out.push_str(t),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::Action(p) => {
                let v = self.pipeline(p, dot)?;
                if p.variables.is_empty() {
                    self.out.push_str(&functions::display(&v));
                }
            }
            Node::If(arms, otherwise) => {
                let scope = self.variables.len();
                for (pipe, body) in arms {
                    if functions::truth(&self.pipeline(pipe, dot)?) {
                        let flow = self.nodes(body, dot);
                        self.variables.truncate(scope);
                        return flow;
                    }
                }
                let flow = self.nodes(otherwise, dot);
                self.variables.truncate(scope);
                return flow;
            }
            Node::With(pipe, body, otherwise) => {
                let scope = self.variables.len();
                let v = self.pipeline(pipe, dot)?;
                let flow =
                    if functions::truth(&v) { self.nodes(body, &v) } else { self.nodes(otherwise, dot) };
                self.variables.truncate(scope);
                return flow;
            }
            Node::Range(pipe, body, otherwise) => self.range(pipe, body, otherwise, dot)?,
        }
        Ok(Flow::On)
    }

    fn range(
        &mut self,
        pipe: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<(), TemplateError> {
        let plain = Pipeline { variables: Vec::new(), ..pipe.clone() };
        let over = self.pipeline(&plain, dot)?;
        let items: Vec<(Value, Value)> = match over {
            Value::Array(a) => a.into_iter().enumerate().map(|(i, v)| (i.into(), v)).collect(),
            Value::Object(o) => o.into_iter().map(|(k, v)| (k.into(), v)).collect(),
            Value::Number(n) => {
                let n = n.as_i64().unwrap_or(0).clamp(0, 1_000_000);
                (0..n).map(|i| (i.into(), i.into())).collect()
            }
            Value::Null => Vec::new(),
            other => {
                return Err(TemplateError::execute(
                    pipe.line,
                    format!("range can't iterate over {}", functions::display(&other)),
                ));
            }
        };
        if items.is_empty() {
            self.nodes(otherwise, dot)?;
            return Ok(());
        }
        for (key, item) in items {
            let scope = self.variables.len();
            let new: Vec<(String, Value)> = match &pipe.variables[..] {
                [] => Vec::new(),
                [v] => vec![(v.clone(), item.clone())],
                [k, v, ..] => vec![(k.clone(), key), (v.clone(), item.clone())],
            };
            self.variables.extend(new);
            let flow = self.nodes(body, &item)?;
            self.variables.truncate(scope);
            if matches!(flow, Flow::Break) {
                break;
            }
        }
        Ok(())
    }

    fn pipeline(&mut self, pipe: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut value: Option<Value> = None;
        for command in &pipe.commands {
            value = Some(self.command(command, value.take(), dot, pipe.line)?);
        }
        let value = value.unwrap_or(Value::Null);
        for name in &pipe.variables {
            if pipe.declares {
                self.variables.push((name.clone(), value.clone()));
            } else {
                match self.variables.iter_mut().rev().find(|(n, _)| n == name) {
                    Some((_, v)) => *v = value.clone(),
                    None => {
                        return Err(TemplateError::execute(pipe.line, format!("undefined variable: {name}")));
                    }
                }
            }
        }
        Ok(value)
    }

    fn command(
        &mut self,
        words: &[Operand],
        piped: Option<Value>,
        dot: &Value,
        line: usize,
    ) -> Result<Value, TemplateError> {
        let Some((first, rest)) = words.split_first() else { return Ok(Value::Null) };
        if let Operand::Function(name) = first
            && matches!(name.as_str(), "and" | "or")
        {
            return self.shortcut(name == "and", rest, piped, dot, line);
        }
        let mut args = rest.iter().map(|o| self.operand(o, dot, line)).collect::<Result<Vec<_>, _>>()?;
        args.extend(piped);
        match first {
            Operand::Function(name) => functions::call(name, &args, &self.mode)
                .map_err(|e| TemplateError::execute(line, format!("error calling {name}: {e}"))),
            Operand::Dot(path) if !args.is_empty() => {
                let at_top = std::ptr::eq(dot, self.root) || dot == self.root;
                match (&path[..], self.mode.method) {
                    ([name], Some(method)) if at_top => method(name, &args).ok_or_else(|| {
                        TemplateError::execute(
                            line,
                            format!("at <.{name}>: {name} has arguments but cannot be invoked as function"),
                        )
                    }),
                    _ => Err(TemplateError::execute(
                        line,
                        format!("at <.{}>: it has arguments but is not a method", path.join(".")),
                    )),
                }
            }
            other if args.is_empty() => self.operand(other, dot, line),
            _ => Err(TemplateError::execute(line, "can't give argument to non-function")),
        }
    }

    /// `and` and `or` evaluate no further than they must.
    fn shortcut(
        &mut self,
        and: bool,
        words: &[Operand],
        piped: Option<Value>,
        dot: &Value,
        line: usize,
    ) -> Result<Value, TemplateError> {
        let mut last = None;
        for w in words {
            let v = self.operand(w, dot, line)?;
            if functions::truth(&v) != and {
                return Ok(v);
            }
            last = Some(v);
        }
        piped
            .or(last)
            .ok_or_else(|| TemplateError::execute(line, "wrong number of args: want at least 1 got 0"))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value, line: usize) -> Result<Value, TemplateError> {
        match operand {
            Operand::Dot(path) => walk(dot, path, line),
            Operand::Literal(v) => Ok(v.clone()),
            Operand::Variable(name, path) => match self.variables.iter().rev().find(|(n, _)| n == name) {
                Some((_, v)) => walk(v, path, line),
                None => Err(TemplateError::parse(line, format!("undefined variable {name:?}"))),
            },
            Operand::Group(pipe, path) => {
                let v = self.pipeline(pipe, dot)?;
                walk(&v, path, line)
            }
            Operand::Function(name) => functions::call(name, &[], &self.mode)
                .map_err(|e| TemplateError::execute(line, format!("error calling {name}: {e}"))),
        }
    }
}

fn walk(start: &Value, path: &[String], line: usize) -> Result<Value, TemplateError> {
    let mut v = start;
    for (i, name) in path.iter().enumerate() {
        let at = || path[..=i].join(".");
        v = match v {
            Value::Object(o) => o.get(name).ok_or_else(|| {
                TemplateError::execute(line, format!("at <.{}>: map has no entry for key {name:?}", at()))
            })?,
            Value::Null => {
                return Err(TemplateError::execute(
                    line,
                    format!("at <.{}>: nil pointer evaluating {name}", at()),
                ));
            }
            other => {
                return Err(TemplateError::execute(
                    line,
                    format!("at <.{}>: can't evaluate field {name} in {}", at(), functions::display(other)),
                ));
            }
        };
    }
    Ok(v.clone())
}
