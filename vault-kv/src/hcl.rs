//! HCL as Vault and Consul read it, in policies and in configuration, which is version 1: attributes and blocks may share a
//! line, keys may stand in quotes, commas are free, and `${…}` is text.
//!
//! Objects become JSON objects; the label of a block is one more level. Time and memory grow with the length of a text.

mod json;

use std::fmt;

use serde_json::{Map, Number, Value};
use thiserror::Error;

pub use json::parse_json;

/// Deepest nesting of objects and lists: the parser recurses. Consul's own configuration needs ten, a policy five.
const MAX_DEPTH: usize = 32;

/// What is wrong with a text. Nothing of the text is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("line {}, column {}: {reason}", .at.line, .at.column)]
pub struct Wrong {
    /// Where.
    pub at: At,
    /// Why.
    pub reason: &'static str,
}

/// A place in a text; lines and columns count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// The line.
    pub line: usize,
    /// The character in it.
    pub column: usize,
}

impl At {
    /// The place of the byte at `offset`.
    pub fn offset(text: &str, offset: usize) -> Self {
        let before = &text[..text.floor_char_boundary(offset)];
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// An attribute, or a block, at the top of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Where it begins: see [`At::offset`].
    pub offset: usize,
    /// `service` of `service "web" { … }`.
    pub key: String,
    /// `web`.
    pub labels: Vec<String>,
    /// What it is given, or what is between the braces.
    pub value: Value,
}

/// Reads a document as one object: blocks that come again become a list of them.
///
/// # Errors
/// The first thing that is wrong.
///
/// ```
/// let fields = vault_kv::hcl::parse(r#"ports { http = 8500 } service "web" {} service "db" {}"#)?;
/// assert_eq!(fields["ports"]["http"], 8500);
/// assert_eq!(fields["service"][1]["db"], serde_json::json!({}));
/// # Ok::<(), vault_kv::hcl::Wrong>(())
/// ```
pub fn parse(text: &str) -> Result<Map<String, Value>, Wrong> {
    read(text, |parser| {
        let mut fields = Map::new();
        while parser.more(None)? {
            let item = parser.item(0)?;
            add_item(&mut fields, item)?;
        }
        Ok(fields)
    })
}

/// Reads a document as what stands in it, in order.
///
/// # Errors
/// The first thing that is wrong.
pub fn items(text: &str) -> Result<Vec<Item>, Wrong> {
    read(text, |parser| {
        let mut items = Vec::new();
        while parser.more(None)? {
            items.push(parser.item(0)?);
        }
        Ok(items)
    })
}

fn read<T>(text: &str, run: impl FnOnce(&mut Parser<'_>) -> Parsed<T>) -> Result<T, Wrong> {
    let mut parser = Parser { text, at: 0 };
    run(&mut parser).map_err(|reason| Wrong {
        at: At::offset(text, parser.at),
        reason,
    })
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

type Parsed<T> = Result<T, &'static str>;

impl<'t> Parser<'t> {
    /// What is between braces, of which the first is taken already.
    fn object(&mut self, depth: usize) -> Parsed<Map<String, Value>> {
        if depth > MAX_DEPTH {
            return Err("nested too deeply");
        }
        let mut fields = Map::new();
        while self.more(Some(b'}'))? {
            let item = self.item(depth)?;
            add_item(&mut fields, item)?;
        }
        Ok(fields)
    }

    /// Whether an item follows, and not the `end`.
    fn more(&mut self, end: Option<u8>) -> Parsed<bool> {
        loop {
            self.space()?;
            match self.peek() {
                Some(b',') => self.at += 1,
                None if end.is_some() => return Err("a closing brace is missing"),
                None => return Ok(false),
                byte if byte == end => {
                    self.at += 1;
                    return Ok(false);
                }
                Some(_) => return Ok(true),
            }
        }
    }

    fn item(&mut self, depth: usize) -> Parsed<Item> {
        let offset = self.at;
        let key = self.key()?;
        let mut labels = Vec::new();
        loop {
            self.space()?;
            let value = match self.peek() {
                // JSON's colon will do.
                Some(b'=' | b':') if labels.is_empty() => {
                    self.at += 1;
                    self.space()?;
                    self.value(depth)?
                }
                Some(b'{') => {
                    self.at += 1;
                    Value::Object(self.object(depth + labels.len() + 1)?)
                }
                // A label is an object more, and goes as deep.
                Some(_) if depth + labels.len() < MAX_DEPTH => {
                    labels.push(self.key()?);
                    continue;
                }
                Some(_) => return Err("nested too deeply"),
                None => return Err("a key without a value"),
            };
            return Ok(Item {
                offset,
                key,
                labels,
                value,
            });
        }
    }

    fn key(&mut self) -> Parsed<String> {
        if self.peek() == Some(b'"') {
            return self.string();
        }
        let word = self.word(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'));
        match word.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            true => Ok(word.to_owned()),
            false => Err("a key is wanted"),
        }
    }

    fn value(&mut self, depth: usize) -> Parsed<Value> {
        match self.peek() {
            Some(b'"') => self.string().map(Value::String),
            Some(b'{') => {
                self.at += 1;
                self.object(depth + 1).map(Value::Object)
            }
            Some(b'[') => {
                self.at += 1;
                self.list(depth + 1).map(Value::Array)
            }
            Some(b'<') => self.heredoc().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => match self.word(char::is_alphanumeric) {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err("a value is wanted: \"text\", a number, true, false, [ ] or { }"),
            },
        }
    }

    fn list(&mut self, depth: usize) -> Parsed<Vec<Value>> {
        if depth > MAX_DEPTH {
            return Err("nested too deeply");
        }
        let mut items = Vec::new();
        loop {
            self.space()?;
            match self.peek() {
                None => return Err("a closing bracket is missing"),
                Some(b']') => {
                    self.at += 1;
                    return Ok(items);
                }
                Some(_) => items.push(self.value(depth)?),
            }
            self.space()?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {}
                _ => return Err("a comma or a closing bracket is wanted"),
            }
        }
    }

    fn number(&mut self) -> Parsed<Value> {
        let word = self.word(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'));
        let (sign, digits) = match word.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, word),
        };
        let (digits, radix) = match digits.as_bytes() {
            [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
            [b'0', b'0'..=b'9', ..] => (&digits[1..], 8),
            _ => (digits, 10),
        };
        let whole = match digits.starts_with(['-', '+']) {
            true => return Err("not a number"),
            false => i64::from_str_radix(digits, radix).ok(),
        };
        let whole = whole.map(|number: i64| Value::from(sign * number));
        let fraction = || match word.contains(['.', 'e', 'E']) && radix != 16 {
            true => Number::from_f64(word.parse().ok()?).map(Value::Number),
            false => None,
        };
        whole.or_else(fraction).ok_or("not a number")
    }

    /// A quoted string. Within `${…}` quotes end nothing and nothing is unescaped.
    fn string(&mut self) -> Parsed<String> {
        self.at += 1;
        let mut text = String::new();
        let mut braces = 0;
        while let Some(c) = self.next() {
            match c {
                '"' if braces == 0 => return Ok(text),
                '\n' if braces == 0 => {
                    self.at -= 1;
                    return Err("a string ends with its line");
                }
                '\\' if braces == 0 => {
                    let escaped = self.escape()?;
                    text.push(escaped);
                    continue;
                }
                '$' if self.peek() == Some(b'{') => {
                    self.at += 1;
                    braces += 1;
                    text.push_str("${");
                    continue;
                }
                '{' if braces > 0 => braces += 1,
                '}' if braces > 0 => braces -= 1,
                _ => {}
            }
            text.push(c);
        }
        Err("a closing quote is missing")
    }

    fn escape(&mut self) -> Parsed<char> {
        let (digits, radix, last) = match self.next().ok_or("a closing quote is missing")? {
            'n' => return Ok('\n'),
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            'a' => return Ok('\u{7}'),
            'b' => return Ok('\u{8}'),
            'f' => return Ok('\u{c}'),
            'v' => return Ok('\u{b}'),
            c @ ('"' | '\\' | '/') => return Ok(c),
            // A byte, which is a character of ASCII only.
            'x' => (2, 16, 0x7f),
            '0'..='7' => {
                self.at -= 1;
                (3, 8, 0x7f)
            }
            'u' => (4, 16, u32::MAX),
            'U' => (8, 16, u32::MAX),
            _ => return Err("no such escape"),
        };
        let code = self.text.get(self.at..self.at + digits);
        self.at += digits;
        code.filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|code| u32::from_str_radix(code, radix).ok())
            .filter(|code| *code <= last)
            .and_then(char::from_u32)
            .ok_or("no such character")
    }

    /// `<<WORD` or `<<-WORD`, lines, and the word alone on a line. With `-`, lines that are all indented at least as the
    /// word lose as much.
    fn heredoc(&mut self) -> Parsed<String> {
        let rest = &self.text[self.at..];
        let (first, body) = rest.split_once('\n').ok_or("a heredoc without lines")?;
        let word = first.trim().strip_prefix("<<").ok_or("a value is wanted")?;
        let (word, indented) = match word.strip_prefix('-') {
            Some(word) => (word, true),
            None => (word, false),
        };
        if word.is_empty() {
            return Err("a heredoc needs a word that ends it");
        }
        let mut lines: Vec<&str> = Vec::new();
        let mut at = self.at + first.len() + 1;
        for line in body.split_inclusive('\n') {
            at += line.len();
            if line.trim() == word {
                // What follows the word belongs to the next token.
                self.at = at - line.len() + line.trim_end().len();
                let indent = &line[..line.len() - line.trim_start().len()];
                return Ok(
                    match indented && lines.iter().all(|line| line.starts_with(indent)) {
                        true => lines.iter().map(|line| &line[indent.len()..]).collect(),
                        false => lines.concat(),
                    },
                );
            }
            lines.push(line);
        }
        Err("the word that ends the heredoc is missing")
    }

    /// Takes white space and comments.
    fn space(&mut self) -> Parsed<()> {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with('#') || trimmed.starts_with("//") {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else if trimmed.starts_with("/*") {
                let end = trimmed.find("*/").ok_or("a comment is not closed")?;
                self.at += end + 2;
            } else {
                return Ok(());
            }
        }
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> &'t str {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.text[self.at..].chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }
}

fn add_item(fields: &mut Map<String, Value>, item: Item) -> Parsed<()> {
    let labels = item.labels.into_iter().rev();
    let value = labels.fold(item.value, |inner, label| {
        Value::Object(Map::from_iter([(label, inner)]))
    });
    add(fields, item.key, value)
}

/// A block that comes again makes a list of what came.
fn add(fields: &mut Map<String, Value>, key: String, value: Value) -> Parsed<()> {
    let grows = |value: &Value| match value {
        Value::Object(_) => true,
        // One suffices: looking at all each time would cost the square of their number.
        Value::Array(items) => items.last().is_none_or(Value::is_object),
        _ => false,
    };
    match fields.get_mut(&key) {
        None => {
            fields.insert(key, value);
        }
        Some(own) if grows(own) && grows(&value) => {
            let mut items = listed(own.take());
            items.extend(listed(value));
            *own = Value::Array(items);
        }
        Some(_) => return Err("a key is given twice"),
    }
    Ok(())
}

fn listed(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        one => vec![one],
    }
}

#[cfg(test)]
mod tests;
