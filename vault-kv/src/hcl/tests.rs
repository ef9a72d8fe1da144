//! What HCL 1 is, and what it is not.

use serde_json::json;

use super::*;

fn read(text: &str) -> Value {
    parse(text).map_or_else(|wrong| wrong.to_string().into(), Value::Object)
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
        let error = parse(&open.repeat(100_000)).unwrap_err().to_string();
        assert!(
            error.contains("wanted") || error.ends_with("nested too deeply"),
            "{error}"
        );
    }
    assert!(parse(&format!("a={}1{}", "[".repeat(31), "]".repeat(31))).is_ok());
    assert!(parse(&format!("a={}1{}", "[".repeat(33), "]".repeat(33))).is_err());
    assert!(parse(&"a ".repeat(100_000)).is_err());
}

#[test]
fn heredocs_lose_the_indent_of_the_word_that_ends_them() {
    let text =
        "a = <<-X\n    one\n      two\n  X\nb = <<-X\n one\n  X\nc = [<<X\n one\nX\n, \"d\"]";
    let wanted = json!({"a": "  one\n    two\n", "b": " one\n", "c": [" one\n", "d"]});
    assert_eq!(read(text), wanted);
}

#[test]
fn numbers_and_escapes_are_gos() {
    let text = r#"a = 010 b = 0X1f c = -07 d = 1e2 e = "\101\x42\U00000043""#;
    let wanted = json!({"a": 8, "b": 31, "c": -7, "d": 100.0, "e": "ABC"});
    assert_eq!(read(text), wanted);
    for bad in [
        "a = 08",
        "a = 0xg",
        "a = 99999999999999999999",
        "a = -inf",
        "a = --1",
        r#"a = "\xff""#,
        r#"a = "\377""#,
        r#"a = "\q""#,
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn items_are_what_stands_there_in_order() {
    let text = "acl = \"read\", key \"a\" { policy = \"deny\" }\n  key \"a\" { policy = \"read\" }";
    let items = items(text).unwrap();
    let places = items.iter().map(|item| At::offset(text, item.offset));
    let places: Vec<_> = places.map(|at| at.to_string()).collect();
    assert_eq!(places, ["1:1", "1:15", "2:3"]);
    assert_eq!(items[0].labels, [""; 0]);
    assert_eq!(items[1].labels, ["a"]);
    assert_eq!(items[2].value, json!({"policy": "read"}));
}

/// A look at all blocks of a name for each further one took hours for a file of some megabytes.
#[test]
fn many_blocks_of_one_name_cost_what_they_are_long() {
    let many = parse(&"a{}".repeat(300_000)).unwrap();
    assert_eq!(many["a"].as_array().map(Vec::len), Some(300_000));
}

#[test]
fn keys_of_json_that_come_again_are_lists_or_refused() {
    let text = r#"{"path": {"a": {"n": [1, -2, 0.5, true, null]}}, "path": {"a": {}}, "path": [{"b": {}}]}"#;
    let fields = parse_json(text).unwrap();
    let one = json!({"a": {"n": [1, -2, 0.5, true, null]}});
    assert_eq!(fields["path"], json!([one, {"a": {}}, {"b": {}}]));
    for (bad, why) in [
        (
            r#"{"a": {"b": 1, "b": 2}}"#,
            "At 1:22: not valid JSON: a key is given twice",
        ),
        ("{\n\"a\": }", "At 2:6: not valid JSON"),
        ("[]", "At 1:1: not a JSON object"),
        (&"[".repeat(10_000), "At 1:128: not valid JSON"),
    ] {
        assert_eq!(parse_json(bad).unwrap_err(), why);
    }
}
