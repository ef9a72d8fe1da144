//! What Consul 1.21 answered over HTTP, and what `mesh dev --compat consul` does: `golden/consul-1.21.jsonl` has the requests
//! in order, a line each, with the recorded answers. The answers that differ are those of `docs/compatibility.md`, and no
//! others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use regex::Regex;
use serde_json::{Map, Value, json};
use sidecar::http::client::Target;
use tokio::time::sleep;

use crate::node::PATIENCE;

/// The headers that are compared.
const HEADERS: [&str; 14] = [
    "content-type",
    "x-consul-index",
    "x-consul-knownleader",
    "x-consul-lastcontact",
    "x-consul-effective-consistency",
    "x-consul-query-backend",
    "x-consul-default-acl-policy",
    "x-consul-contenthash",
    "x-consul-reason",
    "x-cache",
    "location",
    "allow",
    "vary",
    "x-consul-results-filtered-by-acls",
];
/// Values of fields that say nothing in a comparison.
const ANY: [(&str, &str); 17] = [
    ("ContentHash", "<hash>"),
    ("Hash", "<hash>"),
    ("consul-version", "<version>"),
    ("Version", "<version>"),
    ("BuildDate", "<version>"),
    ("Revision", "<version>"),
    ("Vec", "<vec>"),
    ("Adjustment", "<float>"),
    ("Error", "<float>"),
    ("Height", "<float>"),
    ("SerialNumber", "<serial>"),
    ("build", "<version>"),
    ("VersionPrerelease", "<version>"),
    ("VersionMetadata", "<version>"),
    ("FullVersion", "<version>"),
    ("HumanVersion", "<version>"),
    ("Elapsed", "<time>"),
];
/// What follows a change a little later is asked for again so long.
const LATER: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn only_the_documented_answers_differ_from_consuls() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path()).await;
    let mut replay = Replay::of(&dev).await;
    let documented = documented();
    let mut differ = BTreeMap::new();
    for case in recorded() {
        let id = case["id"].as_str().unwrap();
        let known = documented.contains(id);
        let differences = replay.compare(&case, known).await;
        if !differences.is_empty() {
            differ.insert(id.to_owned(), differences);
        }
    }
    let found: BTreeSet<_> = differ.keys().cloned().collect();
    let new: Vec<_> = differ
        .iter()
        .filter(|(id, _)| !documented.contains(*id))
        .collect();
    assert!(
        new.is_empty(),
        "differ, and docs/compatibility.md does not say so: {new:#?}"
    );
    let gone: Vec<_> = documented.difference(&found).collect();
    assert!(
        gone.is_empty(),
        "do not differ as docs/compatibility.md says: {gone:?}"
    );
}

fn manifest() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
}

fn recorded() -> Vec<Value> {
    let text = fs::read_to_string(manifest().join("tests/golden/consul-1.21.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The names in the first column of the manual's table.
fn documented() -> BTreeSet<String> {
    let text = fs::read_to_string(manifest().join("../docs/compatibility.md")).unwrap();
    let (_, section) = text
        .split_once("### Recorded Consul answers that differ")
        .expect("the manual has the table");
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// `mesh dev`, until it is dropped.
struct Dev {
    child: Child,
    http: String,
}

impl Dev {
    async fn start(dir: &Path) -> Self {
        let addresses = dir.join("addresses.json");
        let mut child = Command::new(env!("CARGO_BIN_EXE_mesh"))
            .args(["dev", "--compat", "consul", "--free-ports", "--addresses"])
            .arg(&addresses)
            .arg("--data-dir")
            .arg(dir.join("data"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&addresses).unwrap_or_default();
            if let Ok(told) = serde_json::from_str::<Value>(&text) {
                let http = told["http"].as_str().unwrap().to_owned();
                return Self { child, http };
            }
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "mesh dev ended: {ended:?}");
            assert!(Instant::now() < deadline, "mesh dev does not start");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Gone already only if the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer as it came.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

struct Replay {
    target: Target,
    /// What earlier answers said, for later requests.
    saved: BTreeMap<String, String>,
    normal: Normal,
}

impl Replay {
    async fn of(dev: &Dev) -> Self {
        let target = Target::parse(&dev.http, 0, None).unwrap();
        let about = ask(
            &target,
            Method::GET,
            "/v1/agent/self",
            Bytes::new(),
            &json!({}),
        )
        .await;
        let about: Value = serde_json::from_slice(&about.body).unwrap();
        let node = about["Config"]["NodeName"].as_str().unwrap().to_owned();
        Self {
            target,
            saved: BTreeMap::from([("node".to_owned(), node.clone())]),
            normal: Normal::of(&node),
        }
    }

    /// In what an answer differs. If it should not, what is read is asked for again for a while: some of it follows a
    /// change a little later.
    async fn compare(&mut self, case: &Value, known: bool) -> Vec<String> {
        if let Some(seconds) = case["sleep"].as_f64() {
            sleep(Duration::from_secs_f64(seconds)).await;
        }
        let repeats = case["method"] == "GET"
            && case.get("block").is_none()
            && case.get("then").is_none()
            && !known;
        let deadline = Instant::now() + LATER;
        loop {
            let (answer, took) = self.run(case).await;
            self.save(case, &answer);
            let mut got = self.normal.answer(case, &answer);
            if let Some(block) = case["block"].as_f64() {
                let blocked = took.as_secs_f64() >= block * 0.9;
                got["blocked"] = if blocked { "yes" } else { "no" }.into();
            }
            let mut differences = Vec::new();
            let wanted = self.normal.wanted(case);
            differ("", &wanted, &got, &mut differences);
            extra_headers(&wanted, &got, &mut differences);
            if differences.is_empty() || !repeats || Instant::now() > deadline {
                return differences;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn run(&self, case: &Value) -> (Answer, Duration) {
        let method: Method = case["method"].as_str().unwrap().parse().unwrap();
        let path = self.fill(case["path"].as_str().unwrap());
        let body = match case["body_size"].as_u64() {
            Some(size) => "x".repeat(usize::try_from(size).unwrap()),
            None => self.fill(case["body"].as_str().unwrap_or_default()),
        };
        let mut headers = case["headers"].clone();
        for value in headers
            .as_object_mut()
            .into_iter()
            .flat_map(Map::values_mut)
        {
            *value = self.fill(value.as_str().unwrap()).into();
        }
        let later = case.get("then").map(|then| {
            let method: Method = then["method"].as_str().unwrap().parse().unwrap();
            let path = self.fill(then["path"].as_str().unwrap());
            let body = self.fill(then["body"].as_str().unwrap_or_default());
            let after = Duration::from_secs_f64(then["after"].as_f64().unwrap());
            let target = self.target.clone();
            tokio::spawn(async move {
                sleep(after).await;
                ask(&target, method, &path, body.into(), &json!({})).await;
            })
        });
        let began = Instant::now();
        let answer = ask(&self.target, method, &path, body.into(), &headers).await;
        let took = Instant::now().duration_since(began);
        if let Some(later) = later {
            later.await.unwrap();
        }
        (answer, took)
    }

    fn save(&mut self, case: &Value, answer: &Answer) {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        for (name, place) in case["save"].as_object().into_iter().flatten() {
            let place = place.as_str().unwrap();
            let found = match place.strip_prefix("header:") {
                Some(header) => {
                    let value = answer.headers.get(header.to_lowercase());
                    value.map(|value| value.to_str().unwrap().to_owned())
                }
                None => {
                    let pointer = format!("/{}", place.replace('.', "/"));
                    let found = body.pointer(&pointer);
                    found.map(|found| {
                        found
                            .as_str()
                            .map_or_else(|| found.to_string(), str::to_owned)
                    })
                }
            };
            self.saved
                .insert(name.clone(), found.unwrap_or_else(|| "unset".to_owned()));
        }
    }

    fn fill(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.saved {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        text
    }
}

async fn ask(target: &Target, method: Method, path: &str, body: Bytes, headers: &Value) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers.as_object().into_iter().flatten() {
        request = request.header(name, value.as_str().unwrap());
    }
    let answer = target.send(request.body(body).unwrap(), PATIENCE).await;
    let (head, body) = answer
        .unwrap_or_else(|error| panic!("{path}: {error}"))
        .into_parts();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body,
    }
}

/// Takes out of answers what is another each time.
struct Normal {
    texts: Vec<(Regex, &'static str)>,
}

impl Normal {
    fn of(node: &str) -> Self {
        let node = format!(r"\b{}\b", regex::escape(node));
        let texts = [
            (
                r"(?s)-----BEGIN [^-]+-----.*?-----END [^-]+-----\n?",
                "<pem>",
            ),
            (
                r"(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
                "<uuid>",
            ),
            (
                r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
                "<time>",
            ),
            (r"\b([0-9a-f]{2}:){10,}[0-9a-f]{2}\b", "<colonhex>"),
            (r"127\.0\.0\.1(\D|$)", "<ip>$1"),
            (&node, "<node>"),
            (r"index (\d+)", "index <index>"),
        ];
        Self {
            texts: texts
                .map(|(pattern, to)| (Regex::new(pattern).unwrap(), to))
                .into(),
        }
    }

    fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (pattern, to) in &self.texts {
            text = pattern.replace_all(&text, *to).into_owned();
        }
        text
    }

    fn value(&self, value: &Value, key: &str) -> Value {
        let index = matches!(key, "CreateIndex" | "ModifyIndex" | "LTime");
        if index && value.as_f64().is_some_and(|number| number > 0.0) {
            return "<index>".into();
        }
        let any = ANY.iter().find(|(name, _)| *name == key);
        if let Some((_, any)) = any
            && !value.is_null()
            && value != ""
        {
            return (*any).into();
        }
        match value {
            Value::Object(fields) => {
                let fields = fields.iter();
                let fields = fields.map(|(key, value)| (self.text(key), self.value(value, key)));
                Value::Object(fields.collect())
            }
            Value::Array(items) => {
                let items = items.iter().map(|item| self.value(item, ""));
                let mut items: Vec<_> = items.collect();
                if key == "Checks" {
                    // They are in no order.
                    items.sort_by_key(Value::to_string);
                }
                Value::Array(items)
            }
            Value::String(text) => self.text(text).into(),
            other => other.clone(),
        }
    }

    /// The recorded answer, with what comes in no order in ours.
    fn wanted(&self, case: &Value) -> Value {
        let mut wanted = case["expect"].clone();
        let mode = case["mode"].as_str().unwrap_or("exact");
        if let Some(body) = wanted.get("json")
            && !matches!(mode, "shape" | "keys")
        {
            wanted["json"] = arranged(mode, self.value(body, ""));
        }
        wanted
    }

    /// An answer in the form of the recording.
    fn answer(&self, case: &Value, answer: &Answer) -> Value {
        let mut headers = Map::new();
        for name in HEADERS {
            let Some(value) = answer.headers.get(name) else {
                continue;
            };
            let value = value.to_str().unwrap();
            let shown = match name {
                "x-consul-index" if value == "0" => "0".to_owned(),
                "x-consul-index" if value.bytes().all(|b| b.is_ascii_digit()) => {
                    "<index>".to_owned()
                }
                "x-consul-lastcontact" | "x-consul-contenthash" => "<n>".to_owned(),
                _ => self.text(value),
            };
            headers.insert(name.to_owned(), shown.into());
        }
        let mut got = json!({"status": answer.status, "headers": headers});
        let mode = case["mode"].as_str().unwrap_or("exact");
        if mode == "status" {
            return got;
        }
        let kind = answer.headers.get("content-type");
        let is_json = kind.is_some_and(|kind| kind.to_str().unwrap().contains("json"));
        match serde_json::from_slice::<Value>(&answer.body) {
            Ok(body) if is_json => {
                got["json"] = match mode {
                    "shape" => shape(&body),
                    "keys" => body
                        .as_object()
                        .into_iter()
                        .flatten()
                        .map(|(key, _)| (key.clone(), Value::Null))
                        .collect::<Map<_, _>>()
                        .into(),
                    mode => arranged(mode, self.value(&body, "")),
                };
            }
            _ => {
                let text: String = String::from_utf8_lossy(&answer.body)
                    .chars()
                    .take(400)
                    .collect();
                got["text"] = self.text(&text).into();
            }
        }
        got
    }
}

/// What comes in no order, in one.
fn arranged(mode: &str, mut value: Value) -> Value {
    match (mode, &mut value) {
        ("sorted", Value::Array(items)) => items.sort_by_key(Value::to_string),
        ("sets", Value::Object(sets)) => {
            for set in sets.values_mut().filter_map(Value::as_array_mut) {
                set.sort_by_key(Value::to_string);
            }
        }
        _ => {}
    }
    value
}

fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter();
            Value::Object(
                fields
                    .map(|(key, value)| (key.clone(), shape(value)))
                    .collect(),
            )
        }
        Value::Array(items) => items.first().map(shape).into_iter().collect(),
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
    }
}

/// Where `got` is not as wanted. What it has besides does not count.
fn differ(at: &str, wanted: &Value, got: &Value, into: &mut Vec<String>) {
    match (wanted, got) {
        (Value::Object(wanted), Value::Object(got)) => {
            for (key, wanted) in wanted {
                match got.get(key) {
                    Some(got) => differ(&format!("{at}.{key}"), wanted, got, into),
                    None => into.push(format!("{at}.{key} is missing")),
                }
            }
        }
        (Value::Array(wanted), Value::Array(got)) => {
            if wanted.len() != got.len() {
                into.push(format!(
                    "{at}: {} items instead of {}",
                    got.len(),
                    wanted.len()
                ));
            }
            for (number, (wanted, got)) in wanted.iter().zip(got).enumerate() {
                differ(&format!("{at}[{number}]"), wanted, got, into);
            }
        }
        (wanted, got) if wanted != got => into.push(format!("{at}: {got} instead of {wanted}")),
        _ => {}
    }
}

/// Of headers, those count too that are there besides.
fn extra_headers(wanted: &Value, got: &Value, into: &mut Vec<String>) {
    let headers = got["headers"].as_object().into_iter().flatten();
    for (name, value) in headers {
        if wanted["headers"].get(name).is_none() {
            into.push(format!(".headers.{name}: {value} instead of none"));
        }
    }
}
