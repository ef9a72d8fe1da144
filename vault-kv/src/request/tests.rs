use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use http::StatusCode;

use super::*;

fn caller() -> Caller {
    Caller::anonymous(Remote::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST)), Via::Http)
}

fn parse(method: &str, uri: &str, body: &str) -> Result<Request, Refusal> {
    with(method, uri, body, &[])
}

fn with(method: &str, uri: &str, body: &str, headers: &[(&str, &str)]) -> Result<Request, Refusal> {
    let mut builder = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    Request::parse(
        &builder.body(Bytes::from(body.to_string())).unwrap(),
        caller(),
    )
}

fn status(result: Result<Request, Refusal>) -> StatusCode {
    match result {
        Ok(_) => StatusCode::OK,
        Err(Refusal::Redirect(_)) => StatusCode::TEMPORARY_REDIRECT,
        Err(Refusal::Error(error)) => error.status(),
    }
}

#[test]
fn a_path_is_decoded_once_and_has_one_form() {
    let path = |uri| {
        parse("GET", uri, "")
            .ok()
            .map(|r| r.path.as_str().to_string())
    };
    assert_eq!(
        path("/v1/kv/data/uni%20code/%C3%A9").unwrap(),
        "kv/data/uni code/é"
    );
    assert_eq!(path("/v1/kv/data/a%2Fx").unwrap(), "kv/data/a/x");
    assert_eq!(path("/v1/kv/data/a%252e").unwrap(), "kv/data/a%2e");
    assert_eq!(
        path("/v1/kv/metadata/a?list=true").unwrap(),
        "kv/metadata/a/"
    );
    for bad in [
        "/v1/kv/../sys/seal",
        "/v1/kv/./x",
        "/v1/kv/%2e%2e/sys",
        "/v1/kv/%2E/x",
        "/v1/kv/..",
        "/v1/..",
        "/v1/kv%2F%2Fx",
        "/v1/%2Fkv",
        "/v1/kv/%00",
        "/v1/kv/%0a",
        "/v1/kv/%7f",
        "/v1/kv/%e2%80%8b",
        "/v1/kv/%c2%a0",
        "/v1/kv/%ff",
        "/v1/kv/%zz",
        "/v1/kv/%2",
    ] {
        assert_eq!(
            status(parse("GET", bad, "")),
            StatusCode::BAD_REQUEST,
            "{bad}"
        );
    }
    assert_eq!(status(parse("GET", "/ui/", "")), StatusCode::NOT_FOUND);
    match parse("GET", "/v1/kv//data///x?a=b", "") {
        Err(Refusal::Redirect(to)) => assert_eq!(to, "/v1/kv/data/x?a=b"),
        _ => panic!("a redirect"),
    }
}

#[test]
fn verbs() {
    let operation = |method, uri| parse(method, uri, "").ok().map(|r| r.operation);
    assert_eq!(operation("LIST", "/v1/kv/metadata"), Some(Operation::List));
    assert_eq!(
        operation("GET", "/v1/kv/metadata?list=true"),
        Some(Operation::List)
    );
    assert_eq!(
        operation("GET", "/v1/kv/metadata?list=false"),
        Some(Operation::Read)
    );
    assert_eq!(operation("PUT", "/v1/kv/data/x"), Some(Operation::Write));
    assert_eq!(
        status(parse("GET", "/v1/kv/metadata?list=maybe", "")),
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        status(parse("PROPFIND", "/v1/kv/x", "")),
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert_eq!(
        status(parse("PATCH", "/v1/kv/x", "{}")),
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    assert_eq!(
        status(with(
            "PATCH",
            "/v1/kv/x",
            "{}",
            &[(
                "content-type",
                "application/merge-patch+json; charset=utf-8"
            )]
        )),
        StatusCode::OK
    );
    assert_eq!(
        status(parse("POST", "/v1/kv/x/", "{}")),
        StatusCode::BAD_REQUEST
    );
}

#[test]
fn bodies() {
    let text = |body: &str, kind: &str| {
        let headers: &[(&str, &str)] = if kind.is_empty() {
            &[]
        } else {
            &[("content-type", kind)]
        };
        with("POST", "/v1/x", body, headers)
            .ok()
            .and_then(|r| r.data.text("data").ok().flatten())
    };
    assert_eq!(text(r#"{"data":"a b"}"#, "").as_deref(), Some("a b"));
    assert_eq!(
        text(r#"{"data":"a b"}"#, "text/plain").as_deref(),
        Some("a b")
    );
    assert_eq!(
        text("data=a+b%21", "application/x-www-form-urlencoded").as_deref(),
        Some("a b!")
    );
    assert_eq!(
        text(r#"{"data":"j"}"#, "application/x-www-form-urlencoded").as_deref(),
        Some("j")
    );
    assert_eq!(status(parse("POST", "/v1/x", "")), StatusCode::OK);
    for bad in ["{", "[1]", "\"x\"", "{\"a\":1} xx", "data=1", "7"] {
        assert_eq!(
            status(parse("POST", "/v1/x", bad)),
            StatusCode::BAD_REQUEST,
            "{bad}"
        );
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
    assert_eq!(
        status(parse("POST", "/v1/x", &deep)),
        StatusCode::BAD_REQUEST
    );
    let many = format!("{{\"a\":[{}0]}}", "0,".repeat(200_000));
    assert_eq!(
        status(parse("POST", "/v1/x", &many)),
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        status(parse("POST", "/v1/x", &" ".repeat(MAX_BODY + 1))),
        StatusCode::PAYLOAD_TOO_LARGE
    );
}

/// CVE-2025-4166: a parse error must not repeat what was sent.
#[test]
fn cve_2025_4166_errors_never_quote_the_body() {
    for body in [
        r#"{"password":"hunter2" oops}"#,
        r#"{"password":hunter2}"#,
        r#"["hunter2"]"#,
        r#""hunter2""#,
        r#"{"password":"hunter2"#,
    ] {
        match parse("POST", "/v1/x", body) {
            Err(Refusal::Error(error)) => {
                assert!(!error.texts().join(" ").contains("hunter2"), "{body}");
                assert!(!format!("{error:?}").contains("hunter2"), "{body}");
            }
            _ => panic!("{body} is no request"),
        }
    }
    let request = parse(
        "POST",
        "/v1/x",
        r#"{"n":"hunter2","m":{"x":{"y":"hunter2"}},"d":"hunter2 d"}"#,
    )
    .ok()
    .unwrap();
    for error in [
        request.data.int("n").err(),
        request.data.text_map("m").err(),
        request.data.duration("d").err(),
        request.data.flag("n").err(),
        request.data.text("m").err(),
    ] {
        assert!(!error.unwrap().to_string().contains("hunter2"));
    }
}

#[test]
fn the_vault_header_beats_the_bearer() {
    let token = |headers: &[(&str, &str)]| {
        with("GET", "/v1/x", "", headers)
            .ok()
            .and_then(|r| r.token.map(|t| t.expose().to_string()))
    };
    assert_eq!(
        token(&[("x-vault-token", "a"), ("authorization", "Bearer b")]).as_deref(),
        Some("a")
    );
    assert_eq!(
        token(&[("x-vault-token", ""), ("authorization", "bearer b")]).as_deref(),
        Some("b")
    );
    assert_eq!(token(&[("authorization", "Basic b")]), None);
    assert_eq!(token(&[]), None);
}

#[test]
fn local_means_this_machine() {
    let v6 = |text: &str| Remote::Ip(IpAddr::V6(text.parse::<Ipv6Addr>().unwrap()));
    assert!(Remote::Unix.is_local());
    assert!(v6("::1").is_local());
    assert!(v6("::ffff:127.0.0.1").is_local());
    assert!(!v6("::ffff:10.0.0.1").is_local());
    assert!(!Remote::Ip(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))).is_local());
}
