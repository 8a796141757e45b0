//! TLS of http doors. Certificates are read when the door opens and at each reload; a bad file keeps the ones before.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

use super::listener::BindError;
use crate::config::listen::DoorTls;

/// The time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// The certificates of one door.
pub(super) struct Certificates {
    files: DoorTls,
    current: ArcSwap<ServerConfig>,
}

impl Certificates {
    /// Reads the files; `None`: the door speaks no TLS.
    ///
    /// # Errors
    /// A file cannot be used.
    pub(super) fn read(files: &DoorTls) -> Result<Option<Arc<Self>>, BindError> {
        let Some(config) = server_config(files)? else { return Ok(None) };
        let current = ArcSwap::new(config);
        Ok(Some(Arc::new(Self { files: files.clone(), current })))
    }

    /// Reads the files again; what comes back is put in place with [`Certificates::replace`].
    ///
    /// # Errors
    /// A file cannot be used; the certificates before stay.
    pub(super) fn read_again(&self) -> Result<Arc<ServerConfig>, BindError> {
        Ok(server_config(&self.files)?.unwrap_or_else(|| self.current.load_full()))
    }

    /// From the next connection on.
    pub(super) fn replace(&self, config: Arc<ServerConfig>) {
        self.current.store(config);
    }

    /// Shakes hands. Where callers must show a certificate, one that shows none or a wrong one does not get through.
    ///
    /// # Errors
    /// What the peer did wrong, or that it took too long.
    pub(super) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = TlsAcceptor::from(self.current.load_full()).accept(stream);
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake is too slow"))?
    }
}

fn server_config(files: &DoorTls) -> Result<Option<Arc<ServerConfig>>, BindError> {
    let (Some(certificate), Some(key)) = (&files.cert_file, &files.key_file) else {
        return Ok(None);
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |key, path: &Path, problem: &dyn std::fmt::Display| BindError::Tls {
        key,
        problem: format!("{}: {problem}", path.display()),
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("cert_file", certificate, &error))?;
    let builder = match &files.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates("client_ca_file", path)? {
                roots.add(authority).map_err(|error| unusable("client_ca_file", path, &error))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.map_err(|error| unusable("client_ca_file", path, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = certificates("cert_file", certificate)?;
    let pem = Zeroizing::new(read("key_file", key)?);
    let private = PrivateKeyDer::from_pem_slice(&pem);
    let private = private.map_err(|error| unusable("key_file", key, &error))?;
    let mut config = builder.with_single_cert(chain, private).map_err(|error| {
        unusable("key_file", key, &format!("with {}: {error}", certificate.display()))
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, BindError> {
    let bad =
        |problem: String| BindError::Tls { key, problem: format!("{}: {problem}", path.display()) };
    let pem = read(key, path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| bad(error.to_string()))?;
    if found.is_empty() {
        return Err(bad("no certificate in PEM form".into()));
    }
    Ok(found)
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, BindError> {
    let failed = |error| BindError::Tls { key, problem: format!("{}: {error}", path.display()) };
    std::fs::read(path).map_err(failed)
}
