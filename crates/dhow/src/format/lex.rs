//! Splits a template into text and the tokens of its actions (Go, package `text/template/parse`).

use super::TemplateError;

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Copied as it is.
    Text(String),
    /// `{{ … }}`, and the line it began on.
    Action(Vec<Token>, usize),
}

/// A token within an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// `.`
    Dot,
    /// `.Name`, without the dot. True: it follows directly on what came before (`$x.Name`, `(…).Name`).
    Field(String, bool),
    /// `$` or `$name`.
    Variable(String),
    /// A function or keyword.
    Word(String),
    /// A quoted string.
    Text(String),
    /// A number.
    Number(serde_json::Number),
    /// `|`
    Pipe,
    /// `(`
    Open,
    /// `)`
    Close,
    /// `,`
    Comma,
    /// `:=`
    Declare,
    /// `=`
    Assign,
}

/// Splits `source`.
pub fn lex(source: &str) -> Result<Vec<Piece>, TemplateError> {
    let (mut out, mut rest, mut line, mut trim_next) = (Vec::new(), source, 1, false);
    while let Some(start) = rest.find("{{") {
        let (text, action) = rest.split_at(start);
        line += text.matches('\n').count();
        let began = line;
        let mut body = &action[2..];
        let trim_before = trims(body);
        if trim_before {
            body = &body[1..];
        }
        push_text(&mut out, text, trim_next, trim_before);
        let (tokens, after, trim_after) = match comment(body) {
            Some(end) => {
                let end = end.ok_or_else(|| TemplateError::parse(began, "unclosed comment"))?;
                let after = body[end..].trim_start();
                let (after, trim) = match after.strip_prefix("-}}") {
                    Some(a) => (a, true),
                    None => (
                        after.strip_prefix("}}").ok_or_else(|| {
                            TemplateError::parse(began, "comment ends before closing delimiter")
                        })?,
                        false,
                    ),
                };
                (None, after, trim)
            }
            None => {
                let (tokens, after, trim) = action_tokens(body, began)?;
                (Some(tokens), after, trim)
            }
        };
        line += body[..body.len() - after.len()].matches('\n').count();
        if let Some(tokens) = tokens {
            out.push(Piece::Action(tokens, began));
        }
        (rest, trim_next) = (after, trim_after);
    }
    push_text(&mut out, rest, trim_next, false);
    Ok(out)
}

/// `{{- ` trims the text before it.
fn trims(body: &str) -> bool {
    body.strip_prefix('-').is_some_and(|b| b.starts_with(char::is_whitespace))
}

fn push_text(out: &mut Vec<Piece>, text: &str, trim_start: bool, trim_end: bool) {
    let text = if trim_start { text.trim_start() } else { text };
    let text = if trim_end { text.trim_end() } else { text };
    if !text.is_empty() {
        out.push(Piece::Text(text.to_owned()));
    }
}

/// Where a comment at the beginning of `body` ends; None if there is none there.
fn comment(body: &str) -> Option<Option<usize>> {
    let lead = body.len() - body.trim_start().len();
    body[lead..].starts_with("/*").then(|| body[lead..].find("*/").map(|i| lead + i + 2))
}

type Tokens<'a> = (Vec<Token>, &'a str, bool);

fn action_tokens(body: &str, line: usize) -> Result<Tokens<'_>, TemplateError> {
    let wrong = |what: String| TemplateError::parse(line, what);
    let mut out: Vec<Token> = Vec::new();
    let mut at = 0;
    loop {
        let rest = &body[at..];
        let mut chars = rest.chars();
        let Some(c) = chars.next() else { return Err(wrong("unclosed action".into())) };
        let spaced = body[..at].ends_with(char::is_whitespace);
        if let Some(after) = rest.strip_prefix("}}") {
            return Ok((out, after, false));
        }
        if spaced && let Some(after) = rest.strip_prefix("-}}") {
            return Ok((out, after, true));
        }
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        let (token, used) = match c {
            '|' => (Token::Pipe, 1),
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            '=' => (Token::Assign, 1),
            '"' => quoted(rest).ok_or_else(|| wrong("unterminated quoted string".into()))?,
            '`' => {
                let end =
                    rest[1..].find('`').ok_or_else(|| wrong("unterminated raw quoted string".into()))?;
                (Token::Text(rest[1..=end].to_owned()), end + 2)
            }
            '\'' => character(rest).ok_or_else(|| wrong("malformed character constant".into()))?,
            '$' => {
                let name = word(&rest[1..]);
                (Token::Variable(format!("${name}")), 1 + name.len())
            }
            '.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => number(rest, line)?,
            '.' => {
                let name = word(&rest[1..]);
                let joined = !spaced
                    && matches!(out.last(), Some(Token::Field(..) | Token::Variable(_) | Token::Close));
                match name {
                    "" => (Token::Dot, 1),
                    n => (Token::Field(n.to_owned(), joined), 1 + n.len()),
                }
            }
            '0'..='9' | '-' | '+' => number(rest, line)?,
            c if c.is_alphabetic() || c == '_' => {
                let name = word(rest);
                (Token::Word(name.to_owned()), name.len())
            }
            c => return Err(wrong(format!("unexpected {c:?} in operand"))),
        };
        out.push(token);
        at += used;
    }
}

fn word(s: &str) -> &str {
    let end = s.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(s.len());
    &s[..end]
}

fn number(s: &str, line: usize) -> Result<(Token, usize), TemplateError> {
    let end = s
        .char_indices()
        .find(|(i, c)| {
            !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_') || (*i == 0 && matches!(c, '-' | '+')))
        })
        .map_or(s.len(), |(i, _)| i);
    let text = s[..end].replace('_', "");
    let wrong = || TemplateError::parse(line, format!("bad number syntax: {:?}", &s[..end]));
    let bare = text.strip_prefix('+').unwrap_or(&text);
    let n = if let Some(hex) = bare.strip_prefix("0x") {
        i64::from_str_radix(hex, 16).map_err(|_| wrong())?.into()
    } else if let Ok(i) = bare.parse::<i64>() {
        i.into()
    } else {
        bare.parse::<f64>().ok().and_then(serde_json::Number::from_f64).ok_or_else(wrong)?
    };
    Ok((Token::Number(n), end))
}

fn quoted(s: &str) -> Option<(Token, usize)> {
    let mut out = String::new();
    let mut chars = s.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((Token::Text(out), i + 1)),
            '\n' => return None,
            '\\' => out.push(escape(&mut chars)?),
            c => out.push(c),
        }
    }
    None
}

fn character(s: &str) -> Option<(Token, usize)> {
    let mut chars = s.char_indices().skip(1);
    let c = match chars.next()?.1 {
        '\\' => escape(&mut chars)?,
        '\'' => return None,
        c => c,
    };
    let (end, close) = chars.next()?;
    (close == '\'').then(|| (Token::Number(u32::from(c).into()), end + 1))
}

fn escape(chars: &mut impl Iterator<Item = (usize, char)>) -> Option<char> {
    // The escapes of Go's strings, less the octal ones.
    match chars.next()?.1 {
        'n' => Some('\n'),
        't' => Some('\t'),
        'r' => Some('\r'),
        'a' => Some('\x07'),
        'b' => Some('\x08'),
        'f' => Some('\x0c'),
        'v' => Some('\x0b'),
        c @ ('\\' | '"' | '\'') => Some(c),
        'x' => hex_digits(chars, 2),
        'u' => hex_digits(chars, 4),
        'U' => hex_digits(chars, 8),
        _ => None,
    }
}

fn hex_digits(chars: &mut impl Iterator<Item = (usize, char)>, n: usize) -> Option<char> {
    let mut code = 0u32;
    for _ in 0..n {
        code = code.checked_mul(16)? + chars.next()?.1.to_digit(16)?;
    }
    char::from_u32(code)
}
