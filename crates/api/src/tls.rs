//! TLS of both sides: a client without a certificate that our authority signed does not get as far as HTTP.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

/// Keys or certificates do not fit.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path}: {reason}")]
pub struct TlsError {
    path: PathBuf,
    reason: String,
}

/// The configuration of `--tlsverify --tlscacert --tlscert --tlskey`.
pub fn config(ca: &Path, cert: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let wrong = |path: &Path, reason: String| TlsError { path: path.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    for authority in certificates(ca)? {
        roots.add(authority).map_err(|e| wrong(ca, e.to_string()))?;
    }
    let provider = Arc::new(crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|e| wrong(ca, e.to_string()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, e.to_string()))?;
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(cert, e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(cert)?, private)
        .map_err(|e| wrong(cert, e.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError { path: path.to_owned(), reason };
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))?.collect();
    match found {
        Ok(list) if list.is_empty() => Err(wrong("there is no certificate in it".into())),
        Ok(list) => Ok(list),
        Err(e) => Err(wrong(e.to_string())),
    }
}
