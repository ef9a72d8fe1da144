//! Answers packed with gzip, for clients that ask for it.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, header};

use crate::http::Reply;

/// A shorter answer is sent as it is.
const LEAST: usize = 1 << 10;
/// A longer one is packed by a thread that holds up nobody.
const LONG: usize = 64 << 10;

/// Whether a request says that it takes gzip: by name, and not with the weight 0.
pub fn wanted(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    let mut codings = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").unwrap_or("1");
        name.trim().eq_ignore_ascii_case("gzip") && weight.parse::<f32>().is_ok_and(|q| q > 0.0)
    })
}

/// Packs an answer that is worth it. What comes piece by piece stays as it is.
pub async fn compress(reply: Reply) -> Reply {
    let packed = reply.headers().contains_key(header::CONTENT_ENCODING);
    let length = reply.body().length().unwrap_or_default();
    if packed || length < LEAST {
        return reply;
    }
    let (mut head, body) = reply.into_parts();
    let Some(plain) = body.into_bytes() else {
        unreachable!("what has a length is whole")
    };
    let packed = match length > LONG {
        false => pack(&plain).ok(),
        true => {
            let plain = plain.clone();
            let packed = tokio::task::spawn_blocking(move || pack(&plain));
            packed.await.ok().and_then(Result::ok)
        }
    };
    let body = match packed {
        Some(packed) => {
            let gzip = HeaderValue::from_static("gzip");
            head.headers.insert(header::CONTENT_ENCODING, gzip);
            Bytes::from(packed)
        }
        // Nothing is wrong with it as it is.
        None => plain,
    };
    Reply::from_parts(head, body.into())
}

fn pack(plain: &[u8]) -> io::Result<Vec<u8>> {
    let room = Vec::with_capacity(plain.len() / 4);
    let mut encoder = GzEncoder::new(room, Compression::fast());
    encoder.write_all(plain)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use http::StatusCode;

    use super::*;
    use crate::http::text;

    fn asks(value: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        wanted(&headers)
    }

    #[test]
    fn only_those_who_ask_get_it() {
        for value in ["gzip", "deflate, GZIP", "gzip;q=0.5, br", "gzip; q=1"] {
            assert!(asks(value), "{value}");
        }
        for value in ["", "br", "gzip;q=0", "identity, gzip; q=0.0", "*"] {
            assert!(!asks(value), "{value}");
        }
    }

    #[tokio::test]
    async fn long_answers_are_packed_and_read_the_same() {
        for times in [200, 20_000] {
            let plain = "{\"Node\":\"n1\"}".repeat(times);
            let reply = compress(text(StatusCode::OK, plain.clone())).await;
            assert_eq!(reply.headers()[header::CONTENT_ENCODING], "gzip");
            let body = reply.into_body().into_bytes().unwrap();
            assert!(body.len() < plain.len() / 5, "{} bytes", body.len());
            let mut read = String::new();
            GzDecoder::new(&*body).read_to_string(&mut read).unwrap();
            assert_eq!(read, plain);
        }
        let short = compress(text(StatusCode::OK, "short")).await;
        assert!(!short.headers().contains_key(header::CONTENT_ENCODING));
    }
}
