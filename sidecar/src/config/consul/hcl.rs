//! HCL as Consul reads it, which is version 1: attributes and blocks may share a line, keys may stand in quotes, commas
//! are free, and `${…}` is text. (The `hcl-rs` of vault-kv's policies reads version 2, which takes none of that.)
//!
//! Objects become JSON objects, repeated blocks lists of them; the label of a block is one more level.

use serde_json::{Map, Number, Value};

/// Deepest nesting of objects and lists: the parser recurses. Consul's own configuration needs ten.
const MAX_DEPTH: usize = 32;

/// Reads a document.
///
/// # Errors
/// What is wrong, after line and column. The text itself is not quoted.
pub fn parse(text: &str) -> Result<Map<String, Value>, String> {
    let mut parser = Parser { text, at: 0 };
    parser.fields(None, 0).map_err(|reason| {
        let before = &text[..text.floor_char_boundary(parser.at)];
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before[start..].chars().count() + 1;
        format!("line {line}, column {column}: {reason}")
    })
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

type Parsed<T> = Result<T, &'static str>;

impl<'t> Parser<'t> {
    /// Attributes and blocks up to `end`, or to the end of the text.
    fn fields(&mut self, end: Option<u8>, depth: usize) -> Parsed<Map<String, Value>> {
        if depth > MAX_DEPTH {
            return Err("nested too deeply");
        }
        let mut fields = Map::new();
        loop {
            self.space()?;
            match self.peek() {
                None if end.is_none() => return Ok(fields),
                None => return Err("a closing brace is missing"),
                Some(byte) if Some(byte) == end => {
                    self.at += 1;
                    return Ok(fields);
                }
                Some(b',') => self.at += 1,
                Some(_) => self.field(&mut fields, depth)?,
            }
        }
    }

    fn field(&mut self, fields: &mut Map<String, Value>, depth: usize) -> Parsed<()> {
        let key = self.key()?;
        let mut labels = Vec::new();
        loop {
            self.space()?;
            match self.peek() {
                // HCL takes JSON's colon, too.
                Some(b'=' | b':') if labels.is_empty() => {
                    self.at += 1;
                    self.space()?;
                    let value = self.value(depth)?;
                    return add(fields, key, value);
                }
                Some(b'{') => {
                    self.at += 1;
                    let deep = depth + labels.len() + 1;
                    let inner = Value::Object(self.fields(Some(b'}'), deep)?);
                    let labelled = labels.into_iter().rev().fold(inner, |inner, label| {
                        Value::Object(Map::from_iter([(label, inner)]))
                    });
                    return add(fields, key, labelled);
                }
                // A label is an object more, and goes as deep.
                Some(_) if depth + labels.len() < MAX_DEPTH => labels.push(self.key()?),
                Some(_) => return Err("nested too deeply"),
                None => return Err("a key without a value"),
            }
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
                self.fields(Some(b'}'), depth + 1).map(Value::Object)
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
        let whole = match digits.strip_prefix("0x") {
            Some(hex) if !hex.starts_with(['-', '+']) => i64::from_str_radix(hex, 16).ok(),
            Some(_) => None,
            None => digits.parse().ok(),
        };
        let whole = whole.map(|number: i64| Value::from(sign * number));
        let fraction = || Number::from_f64(word.parse().ok()?).map(Value::Number);
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
        let digits = match self.next().ok_or("a closing quote is missing")? {
            'n' => return Ok('\n'),
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            'a' => return Ok('\u{7}'),
            'b' => return Ok('\u{8}'),
            'f' => return Ok('\u{c}'),
            'v' => return Ok('\u{b}'),
            c @ ('"' | '\\' | '/') => return Ok(c),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return Err("no such escape"),
        };
        let code = self.text.get(self.at..self.at + digits);
        self.at += digits;
        code.filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?))
            .ok_or("no such character")
    }

    /// `<<WORD` or `<<-WORD`, lines, and the word alone on a line.
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
        let mut lines = Vec::new();
        let mut at = self.at + first.len() + 1;
        for line in body.split_inclusive('\n') {
            at += line.len();
            if line.trim() == word {
                // What follows the word belongs to the next token.
                self.at = at - line.len() + line.trim_end().len();
                return Ok(unindented(&lines, indented));
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

/// A block that comes again makes a list of what came.
fn add(fields: &mut Map<String, Value>, key: String, value: Value) -> Parsed<()> {
    let grows = |value: &Value| match value {
        Value::Object(_) => true,
        Value::Array(items) => items.iter().all(Value::is_object),
        _ => false,
    };
    match (fields.get_mut(&key), value) {
        (None, value) => {
            fields.insert(key, value);
        }
        (Some(own), value) if grows(own) && grows(&value) => {
            let mut items = listed(own.take());
            items.extend(listed(value));
            *own = Value::Array(items);
        }
        (Some(_), _) => return Err("a key is given twice"),
    }
    Ok(())
}

fn listed(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        one => vec![one],
    }
}

fn unindented(lines: &[&str], indented: bool) -> String {
    if !indented {
        return lines.concat();
    }
    let filled = lines.iter().filter(|line| !line.trim().is_empty());
    let indents = filled.map(|line| line.len() - line.trim_start_matches([' ', '\t']).len());
    let indent = indents.min().unwrap_or(0);
    let cut = lines.iter().map(|line| {
        // Blank lines may be shorter.
        line.get(indent..).unwrap_or("\n")
    });
    cut.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        parse(text).map_or_else(Value::String, Value::Object)
    }

    #[test]
    fn what_consul_takes() {
        let text = r##"
            # a comment
            datacenter = "dc2" // and one more
            "node_name" = "n1"
            ports { http = 8500, https = -1 dns = 0x2198 }
            /* services
               follow */
            service { name = "a" port = 1 }
            service { name = "b", tags = ["x", "y",] meta { "some-key" = "v" } }
            telemetry { retention = 0.5 }
            args = ["sh", "-c", "echo ${HOME} \"q\" \u00e4"]
            script = <<-EOF
                one
                  two
                EOF
            plain = <<X
 kept
X
            labelled "deep" "er" { on = true }
        "##;
        let wanted = json!({
            "datacenter": "dc2",
            "node_name": "n1",
            "ports": { "http": 8500, "https": -1, "dns": 8600 },
            "service": [
                { "name": "a", "port": 1 },
                { "name": "b", "tags": ["x", "y"], "meta": { "some-key": "v" } },
            ],
            "telemetry": { "retention": 0.5 },
            "args": ["sh", "-c", "echo ${HOME} \"q\" ä"],
            "script": "one\n  two\n",
            "plain": " kept\n",
            "labelled": { "deep": { "er": { "on": true } } },
        });
        assert_eq!(read(text), wanted);
        let json = wanted.to_string();
        assert_eq!(read(&json[1..json.len() - 1]), wanted, "JSON's colons");
    }

    #[test]
    fn what_is_wrong_is_placed_and_not_quoted() {
        for (text, wanted) in [
            (
                "a = \"secret",
                "line 1, column 12: a closing quote is missing",
            ),
            ("a = 1\na = 2", "line 2, column 6: a key is given twice"),
            (
                "a {\n b = 1",
                "line 2, column 7: a closing brace is missing",
            ),
            (
                "a = [1 2]",
                "line 1, column 8: a comma or a closing bracket is wanted",
            ),
            (
                "a = secret",
                "line 1, column 11: a value is wanted: \"text\", a number, true, false, [ ] or { }",
            ),
            ("= 1", "line 1, column 1: a key is wanted"),
            ("a = 1.2.3", "line 1, column 10: not a number"),
            ("a = \"\\u12\"", "line 1, column 11: no such character"),
            (
                "a = <<EOF\nx",
                "line 1, column 5: the word that ends the heredoc is missing",
            ),
            ("a", "line 1, column 2: a key without a value"),
            ("/* x", "line 1, column 1: a comment is not closed"),
        ] {
            assert_eq!(read(text), json!(wanted), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        for open in ["a={", "a {", "a b {", "a=[["] {
            let error = parse(&open.repeat(100_000)).unwrap_err();
            assert!(
                error.contains("wanted") || error.ends_with("nested too deeply"),
                "{error}"
            );
        }
        assert!(parse(&format!("a={}1{}", "[".repeat(31), "]".repeat(31))).is_ok());
        assert!(parse(&format!("a={}1{}", "[".repeat(33), "]".repeat(33))).is_err());
        assert!(parse(&"a ".repeat(100_000)).is_err());
    }
}
