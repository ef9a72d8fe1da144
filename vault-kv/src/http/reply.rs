//! Answers: Vault's envelope, bare bodies, and errors.

use std::borrow::Cow;

use bytes::Bytes;
use http::{StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::error::ApiError;
use crate::lease::Offer;
use crate::request::body::wipe;

/// What a handler found or did; turned into bytes at the very end.
#[derive(Default)]
pub(crate) struct Answer {
    /// `data` of the envelope.
    pub data: Option<Value>,
    /// The same as JSON text, instead of `data`: what is stored as JSON need not be taken apart and put together.
    pub json: Option<Zeroizing<Vec<u8>>>,
    /// `auth` of the envelope.
    pub auth: Option<AuthInfo>,
    /// `wrap_info` of the envelope: the answer lies elsewhere.
    pub wrap: Option<WrapInfo>,
    pub warnings: Vec<String>,
    pub lease_duration: u64,
    /// What there is a lease on, which the engine asks for with this.
    pub offer: Option<Offer>,
    /// The lease.
    pub lease: Option<LeaseInfo>,
    /// Seconds that it may be kept by who gets it; `None`: not at all.
    pub max_age: Option<u32>,
    /// A status other than 200/204.
    pub status: Option<StatusCode>,
    /// Where the fields go besides `data`.
    pub shape: Shape,
}

/// How `data` is laid out.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Under `data` only.
    #[default]
    Envelope,
    /// Under `data` and again at top level, for clients from before Vault 0.10.
    TopLevel,
    /// `data` is the whole body (`sys/health` and its like).
    Bare,
    /// `data` is a text, which is the body.
    Text,
    /// The status alone, no body.
    Empty,
}

impl Answer {
    /// 204 (200 with an envelope as soon as there is a warning).
    pub fn none() -> Self {
        Self::default()
    }

    pub fn data(data: impl Into<Value>) -> Self {
        let mut answer = Self::default();
        answer.data = Some(data.into());
        answer
    }

    /// The JSON text of an object as it is.
    pub fn json(text: Zeroizing<Vec<u8>>) -> Self {
        let mut answer = Self::default();
        answer.json = Some(text);
        answer
    }

    /// `data`, whichever form it has.
    pub fn value(&self) -> Option<Cow<'_, Value>> {
        match (&self.data, &self.json) {
            (Some(data), _) => Some(Cow::Borrowed(data)),
            (None, json) => json.as_ref().map(|text| Cow::Owned(parsed(text))),
        }
    }

    /// The same for who keeps it.
    pub fn take_data(&mut self) -> Option<Value> {
        let json = self.json.take();
        self.data.take().or_else(|| Some(parsed(&json?)))
    }

    pub fn bare(status: u16, data: Value) -> Self {
        let mut answer = Self::data(data);
        answer.status = StatusCode::from_u16(status).ok();
        answer.shape = Shape::Bare;
        answer
    }

    /// A text as it is.
    pub fn text(text: String) -> Self {
        let mut answer = Self::data(text);
        answer.shape = Shape::Text;
        answer
    }

    /// `{"keys": […]}`, or 404 when there are none.
    pub fn keys(keys: Vec<String>) -> Result<Self, ApiError> {
        if keys.is_empty() {
            Err(ApiError::NotFound)
        } else {
            let mut data = Map::new();
            data.insert("keys".into(), keys.into());
            Ok(Self::data(data))
        }
    }

    pub fn auth(auth: AuthInfo) -> Self {
        let mut answer = Self::default();
        answer.auth = Some(auth);
        answer
    }

    /// Where the answer lies, instead of the answer.
    pub fn wrapped(wrap: WrapInfo) -> Self {
        let mut answer = Self::default();
        answer.wrap = Some(wrap);
        answer
    }

    /// Whether there is nothing to say but a status.
    pub fn is_empty(&self) -> bool {
        self.data.is_none()
            && self.json.is_none()
            && self.auth.is_none()
            && self.wrap.is_none()
            && self.lease.is_none()
            && self.warnings.is_empty()
    }

    pub fn top_level(mut self) -> Self {
        self.shape = Shape::TopLevel;
        self
    }

    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    /// The caller makes a lease on it.
    pub fn offer(mut self, offer: Offer) -> Self {
        self.offer = Some(offer);
        self
    }

    pub fn warn(mut self, text: impl Into<String>) -> Self {
        self.warnings.push(text.into());
        self
    }
}

/// Text that was written by this program, and is wiped by who gets the answer or by the allocator.
fn parsed(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap_or_default()
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(data) = &mut self.data {
            wipe(data);
        }
    }
}

/// The lease on what an answer hands out.
pub(crate) struct LeaseInfo {
    pub id: String,
    pub renewable: bool,
}

/// The `auth` block of a login, a token creation or a renewal.
#[derive(Serialize, Clone)]
pub(crate) struct AuthInfo {
    pub client_token: String,
    pub accessor: String,
    pub policies: Vec<String>,
    pub token_policies: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identity_policies: Vec<String>,
    pub metadata: Option<std::collections::BTreeMap<String, String>>,
    pub lease_duration: u64,
    pub renewable: bool,
    pub entity_id: String,
    pub token_type: &'static str,
    pub orphan: bool,
    pub mfa_requirement: Option<()>,
    pub num_uses: i64,
}

impl Drop for AuthInfo {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.client_token);
    }
}

/// The `wrap_info` block: a token that shows the answer once.
#[derive(Serialize, Clone)]
pub(crate) struct WrapInfo {
    pub token: String,
    pub accessor: String,
    /// Seconds.
    pub ttl: u64,
    pub creation_time: String,
    pub creation_path: String,
    /// Of the token or secret id that is in there.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub wrapped_accessor: String,
}

impl Drop for WrapInfo {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.token);
    }
}

/// What is in the envelope before `data`.
#[derive(Serialize)]
struct Head<'a> {
    request_id: &'a str,
    lease_id: &'a str,
    renewable: bool,
    lease_duration: u64,
}

/// And what is behind it.
#[derive(Serialize)]
struct Rest<'a> {
    wrap_info: Option<&'a WrapInfo>,
    warnings: Option<&'a [String]>,
    auth: Option<&'a AuthInfo>,
}

/// Write a handler's result as an HTTP response.
pub(crate) fn render(
    result: &Result<Answer, ApiError>,
    request_id: &str,
    head: bool,
) -> http::Response<Bytes> {
    match result {
        Ok(answer) => {
            let mut response = render_answer(answer, request_id, head);
            let kept = answer.max_age.map(|seconds| format!("max-age={seconds}"));
            if let Some(Ok(kept)) = kept.map(http::HeaderValue::try_from) {
                response.headers_mut().insert(header::CACHE_CONTROL, kept);
            }
            response
        }
        Err(error) => render_error(error, head),
    }
}

fn render_answer(answer: &Answer, request_id: &str, head: bool) -> http::Response<Bytes> {
    if answer.shape == Shape::Empty {
        return respond(
            answer.status.unwrap_or(StatusCode::NO_CONTENT),
            Bytes::new(),
        );
    }
    if answer.shape == Shape::Bare {
        let body = answer.data.as_ref().map(to_bytes).unwrap_or_default();
        return respond(
            answer.status.unwrap_or(StatusCode::OK),
            if head { Bytes::new() } else { body },
        );
    }
    if answer.shape == Shape::Text {
        let text = answer.data.as_ref().and_then(Value::as_str);
        let body = text.unwrap_or_default().to_owned();
        let mut response = respond(answer.status.unwrap_or(StatusCode::OK), body.into());
        let plain = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        return response;
    }
    if answer.is_empty() {
        return respond(
            answer.status.unwrap_or(StatusCode::NO_CONTENT),
            Bytes::new(),
        );
    }
    let body = body(answer, request_id);
    respond(
        answer.status.unwrap_or(StatusCode::OK),
        if head { Bytes::new() } else { body },
    )
}

/// The envelope with an answer in it.
pub(crate) fn body(answer: &Answer, request_id: &str) -> Bytes {
    let head = Head {
        // What is wrapped has the request's id.
        request_id: if answer.wrap.is_some() {
            ""
        } else {
            request_id
        },
        lease_id: answer.lease.as_ref().map_or("", |lease| &lease.id),
        renewable: answer.lease.as_ref().is_some_and(|lease| lease.renewable),
        lease_duration: answer.lease_duration,
    };
    let rest = Rest {
        wrap_info: answer.wrap.as_ref(),
        warnings: (!answer.warnings.is_empty()).then_some(&answer.warnings[..]),
        auth: answer.auth.as_ref(),
    };
    match (&answer.data, answer.shape) {
        (Some(Value::Object(data)), Shape::TopLevel) => to_bytes(&Injected { data, head, rest }),
        (data, _) => {
            let data = match &answer.json {
                Some(json) => Cow::Borrowed(&json[..]),
                None => Cow::Owned(to_vec(data)),
            };
            let (mut head, mut rest) = (to_vec(&head), to_vec(&rest));
            // Three objects become one.
            head.pop();
            rest[0] = b',';
            let mut body = Vec::with_capacity(head.len() + 8 + data.len() + rest.len());
            for part in [&head[..], b",\"data\":", &data[..], &rest[..]] {
                body.extend_from_slice(part);
            }
            body.into()
        }
    }
}

/// The envelope with the data's keys beside its own; the envelope's keys win.
struct Injected<'a> {
    data: &'a Map<String, Value>,
    head: Head<'a>,
    rest: Rest<'a>,
}

impl Serialize for Injected<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        const OWN: [&str; 8] = [
            "request_id",
            "lease_id",
            "renewable",
            "lease_duration",
            "data",
            "wrap_info",
            "warnings",
            "auth",
        ];
        let (head, rest) = (&self.head, &self.rest);
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self
            .data
            .iter()
            .filter(|(name, _)| !OWN.contains(&name.as_str()))
        {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("request_id", head.request_id)?;
        map.serialize_entry("lease_id", head.lease_id)?;
        map.serialize_entry("renewable", &head.renewable)?;
        map.serialize_entry("lease_duration", &head.lease_duration)?;
        map.serialize_entry("data", self.data)?;
        map.serialize_entry("wrap_info", &rest.wrap_info)?;
        map.serialize_entry("warnings", &rest.warnings)?;
        map.serialize_entry("auth", &rest.auth)?;
        map.end()
    }
}

fn render_error(error: &ApiError, head: bool) -> http::Response<Bytes> {
    let body = to_bytes(&json!({ "errors": error.texts() }));
    respond(error.status(), if head { Bytes::new() } else { body })
}

/// 307 to a path in normal form.
pub(crate) fn redirect(location: &str) -> http::Response<Bytes> {
    let mut response = respond(StatusCode::TEMPORARY_REDIRECT, Bytes::new());
    if let Ok(value) = http::HeaderValue::from_str(location) {
        let headers = response.headers_mut();
        headers.insert(header::LOCATION, value);
        let html = http::HeaderValue::from_static("text/html; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, html);
    }
    response
}

fn to_bytes(value: &impl Serialize) -> Bytes {
    to_vec(value).into()
}

fn to_vec(value: &impl Serialize) -> Vec<u8> {
    // Maps with text keys and plain values always serialise.
    serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec())
}

fn respond(status: StatusCode, body: Bytes) -> http::Response<Bytes> {
    let mut response = http::Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CACHE_CONTROL,
        http::HeaderValue::from_static("no-store"),
    );
    headers.insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    response
}
