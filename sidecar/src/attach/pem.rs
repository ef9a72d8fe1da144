//! DER to PEM and back, for certificates, requests and keys.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

/// The text is no PEM of the wanted kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no PEM {0}")]
pub struct PemError(&'static str);

/// Certificates, one block each, in the order given.
pub fn certificates<C: AsRef<[u8]>>(chain: &[C]) -> String {
    chain
        .iter()
        .map(|der| block("CERTIFICATE", der.as_ref()))
        .collect()
}

/// The certificates in a PEM text; at least one.
///
/// # Errors
/// When there is none, or one is broken.
pub fn read_certificates(pem: &str) -> Result<Vec<Vec<u8>>, PemError> {
    let wrong = PemError("certificate");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|der| der.map(|der| der.to_vec()))
        .collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or(wrong)
}

/// A certificate request.
pub fn request(der: &[u8]) -> String {
    block("CERTIFICATE REQUEST", der)
}

/// A private key in PKCS#8. The text is as secret as the key.
pub fn private_key(der: &[u8]) -> String {
    block("PRIVATE KEY", der)
}

/// The request in a PEM text.
///
/// # Errors
/// When it holds none.
pub fn read_request(pem: &str) -> Result<Vec<u8>, PemError> {
    CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map(|der| der.to_vec())
        .map_err(|_| PemError("certificate request"))
}

fn block(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|&b| char::from(b)));
        text.push('\n');
    }
    text + "-----END " + label + "-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let ders: Vec<Vec<u8>> = (0..200_u8).map(|n| vec![n; usize::from(n) + 1]).collect();
        assert_eq!(read_certificates(&certificates(&ders)).unwrap(), ders);
        for der in &ders {
            assert_eq!(&read_request(&request(der)).unwrap(), der);
        }
    }

    #[test]
    fn one_kind_is_not_taken_for_the_other() {
        assert_eq!(
            read_request(&certificates(&[[1]])),
            Err(PemError("certificate request"))
        );
        assert_eq!(
            read_certificates(&request(&[1])),
            Err(PemError("certificate"))
        );
        assert_eq!(read_certificates(""), Err(PemError("certificate")));
    }
}
