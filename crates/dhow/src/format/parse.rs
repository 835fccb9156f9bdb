//! From tokens to a tree (Go, package `text/template/parse`), without `define`, `template` and `block`, which no
//! `--format` needs.

use super::TemplateError;
use super::lex::{Piece, Token, lex};
use serde_json::Value;

/// Blocks and parentheses within each other: more than any sane template, less than our stack.
const MAX_DEPTH: usize = 64;

/// A part of a template.
#[derive(Clone, Debug)]
pub enum Node {
    /// Copied as it is.
    Text(String),
    /// `{{pipeline}}`.
    Action(Pipeline),
    /// `{{if}} … {{else if}} … {{else}} … {{end}}`.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    /// `{{range}} … {{else}} … {{end}}`.
    Range(Pipeline, Vec<Node>, Vec<Node>),
    /// `{{with}} … {{else}} … {{end}}`.
    With(Pipeline, Vec<Node>, Vec<Node>),
    /// `{{break}}`.
    Break,
    /// `{{continue}}`.
    Continue,
}

/// Commands, each fed with the result of the one before; perhaps kept in variables.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Variables that take the result; in a range, index and element.
    pub variables: Vec<String>,
    /// `:=` rather than `=`.
    pub declares: bool,
    /// At least one.
    pub commands: Vec<Vec<Operand>>,
    /// Line in the template.
    pub line: usize,
}

/// A word of a command.
#[derive(Clone, Debug)]
pub enum Operand {
    /// `.` and a path from it.
    Dot(Vec<String>),
    /// `$name` and a path from it.
    Variable(String, Vec<String>),
    /// A constant.
    Literal(Value),
    /// A function.
    Function(String),
    /// `( … )` and a path from its result.
    Group(Box<Pipeline>, Vec<String>),
}

/// Reads a whole template.
pub fn parse(source: &str) -> Result<Vec<Node>, TemplateError> {
    let pieces = lex(source)?;
    let mut p = Parser { pieces: pieces.into_iter(), last_line: 1 };
    let (nodes, end) = p.block(0, false)?;
    match end {
        Stop::Eof => Ok(nodes),
        Stop::End => Err(TemplateError::parse(p.last_line, "unexpected {{end}}")),
        Stop::Else(_) => Err(TemplateError::parse(p.last_line, "unexpected {{else}}")),
    }
}

enum Stop {
    Eof,
    End,
    /// With the tokens of an `else if`.
    Else(Vec<Token>),
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    last_line: usize,
}

impl Parser {
    fn block(&mut self, depth: usize, in_range: bool) -> Result<(Vec<Node>, Stop), TemplateError> {
        if depth > MAX_DEPTH {
            return Err(TemplateError::parse(self.last_line, "blocks are nested too deeply"));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (tokens, line) = match piece {
                Piece::Text(t) => {
                    nodes.push(Node::Text(t));
                    continue;
                }
                Piece::Action(tokens, line) => (tokens, line),
            };
            self.last_line = line;
            let keyword = match tokens.first() {
                Some(Token::Word(w)) => w.as_str(),
                _ => "",
            };
            let rest = tokens.get(1..).unwrap_or_default();
            match keyword {
                "end" | "break" | "continue" if !rest.is_empty() => {
                    return Err(TemplateError::parse(
                        line,
                        format!("unexpected operand in {{{{{keyword}}}}}"),
                    ));
                }
                "end" => return Ok((nodes, Stop::End)),
                "else" => return Ok((nodes, Stop::Else(rest.to_vec()))),
                "break" | "continue" if !in_range => {
                    return Err(TemplateError::parse(
                        line,
                        format!("{{{{{keyword}}}}} outside {{{{range}}}}"),
                    ));
                }
                "break" => nodes.push(Node::Break),
                "continue" => nodes.push(Node::Continue),
                "if" => nodes.push(self.condition(rest, line, depth, in_range)?),
                "range" | "with" => {
                    let range = keyword == "range";
                    let pipe = pipeline(rest, line)?;
                    let (body, end) = self.block(depth + 1, in_range || range)?;
                    let otherwise = self.otherwise(end, keyword, line, depth, in_range)?;
                    nodes.push(if range {
                        Node::Range(pipe, body, otherwise)
                    } else {
                        Node::With(pipe, body, otherwise)
                    });
                }
                "define" | "template" | "block" => {
                    return Err(TemplateError::parse(line, format!("{{{{{keyword}}}}} is not supported")));
                }
                _ => nodes.push(Node::Action(pipeline(&tokens, line)?)),
            }
        }
        Ok((nodes, Stop::Eof))
    }

    fn condition(
        &mut self,
        tokens: &[Token],
        line: usize,
        depth: usize,
        in_range: bool,
    ) -> Result<Node, TemplateError> {
        let mut arms = Vec::new();
        let mut tokens = tokens.to_vec();
        loop {
            let pipe = pipeline(&tokens, line)?;
            let (body, end) = self.block(depth + 1, in_range)?;
            arms.push((pipe, body));
            match end {
                Stop::End => return Ok(Node::If(arms, Vec::new())),
                Stop::Eof => return Err(TemplateError::parse(line, "unexpected EOF: {{if}} has no {{end}}")),
                Stop::Else(t) if t.is_empty() => {
                    let otherwise = self.otherwise(Stop::Else(t), "if", line, depth, in_range)?;
                    return Ok(Node::If(arms, otherwise));
                }
                Stop::Else(t) if t.first() == Some(&Token::Word("if".into())) => tokens = t[1..].to_vec(),
                Stop::Else(_) => {
                    return Err(TemplateError::parse(self.last_line, "unexpected operand in {{else}}"));
                }
            }
        }
    }

    fn otherwise(
        &mut self,
        end: Stop,
        keyword: &str,
        line: usize,
        depth: usize,
        in_range: bool,
    ) -> Result<Vec<Node>, TemplateError> {
        match end {
            Stop::End => Ok(Vec::new()),
            Stop::Else(t) if t.is_empty() => match self.block(depth + 1, in_range)? {
                (nodes, Stop::End) => Ok(nodes),
                (_, Stop::Eof) => Err(TemplateError::parse(
                    line,
                    format!("unexpected EOF: {{{{{keyword}}}}} has no {{{{end}}}}"),
                )),
                (_, Stop::Else(_)) => {
                    Err(TemplateError::parse(self.last_line, "expected end; found {{else}}"))
                }
            },
            Stop::Else(_) => Err(TemplateError::parse(self.last_line, "unexpected operand in {{else}}")),
            Stop::Eof => Err(TemplateError::parse(
                line,
                format!("unexpected EOF: {{{{{keyword}}}}} has no {{{{end}}}}"),
            )),
        }
    }
}

fn pipeline(tokens: &[Token], line: usize) -> Result<Pipeline, TemplateError> {
    let mut at = 0;
    let pipe = commands(tokens, &mut at, line, 0)?;
    match tokens.get(at) {
        None => Ok(pipe),
        Some(_) => Err(TemplateError::parse(line, "unexpected right paren")),
    }
}

fn commands(tokens: &[Token], at: &mut usize, line: usize, depth: usize) -> Result<Pipeline, TemplateError> {
    let wrong = |what: &str| TemplateError::parse(line, what);
    if depth > MAX_DEPTH {
        return Err(wrong("parentheses are nested too deeply"));
    }
    let (variables, declares) = declaration(tokens, at);
    let mut pipe = Pipeline { variables, declares, commands: vec![Vec::new()], line };
    while let Some(token) = tokens.get(*at) {
        let closing = *token == Token::Close;
        if closing && depth > 0 {
            break;
        }
        if closing {
            return Err(wrong("unexpected right paren"));
        }
        *at += 1;
        let operand = match token {
            Token::Pipe => {
                if pipe.commands.last().is_none_or(Vec::is_empty) {
                    return Err(wrong("missing value for command"));
                }
                pipe.commands.push(Vec::new());
                continue;
            }
            Token::Open => {
                let inner = commands(tokens, at, line, depth + 1)?;
                if tokens.get(*at) != Some(&Token::Close) {
                    return Err(wrong("unclosed left paren"));
                }
                *at += 1;
                Operand::Group(Box::new(inner), path(tokens, at))
            }
            Token::Dot => Operand::Dot(Vec::new()),
            Token::Field(name, _) => {
                let mut p = vec![name.clone()];
                p.extend(path(tokens, at));
                Operand::Dot(p)
            }
            Token::Variable(name) => Operand::Variable(name.clone(), path(tokens, at)),
            Token::Text(t) => Operand::Literal(Value::String(t.clone())),
            Token::Number(n) => Operand::Literal(Value::Number(n.clone())),
            Token::Word(w) => match w.as_str() {
                "true" => Operand::Literal(Value::Bool(true)),
                "false" => Operand::Literal(Value::Bool(false)),
                "nil" => Operand::Literal(Value::Null),
                w if super::functions::exists(w) => Operand::Function(w.to_owned()),
                w => return Err(wrong(&format!("function {w:?} not defined"))),
            },
            Token::Comma | Token::Declare | Token::Assign | Token::Close => {
                return Err(wrong("unexpected token in operand"));
            }
        };
        if let Some(c) = pipe.commands.last_mut() {
            c.push(operand);
        }
    }
    if pipe.commands.last().is_none_or(Vec::is_empty) {
        return Err(wrong("missing value for command"));
    }
    Ok(pipe)
}

/// `$a :=`, `$a, $b :=` or `$a =` at the beginning.
fn declaration(tokens: &[Token], at: &mut usize) -> (Vec<String>, bool) {
    let mut names = Vec::new();
    let mut i = *at;
    while let Some(Token::Variable(v)) = tokens.get(i) {
        names.push(v.clone());
        match tokens.get(i + 1) {
            Some(Token::Comma) if names.len() == 1 => i += 2,
            Some(t @ (Token::Declare | Token::Assign)) => {
                *at = i + 2;
                return (names, *t == Token::Declare);
            }
            _ => break,
        }
    }
    (Vec::new(), false)
}

/// The fields that follow directly.
fn path(tokens: &[Token], at: &mut usize) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(Token::Field(name, true)) = tokens.get(*at) {
        out.push(name.clone());
        *at += 1;
    }
    out
}
