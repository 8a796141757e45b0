//! TLS to directory servers: own roots, own certificate, the ring provider named (nothing is taken from the process's
//! default).

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::{Fault, fault};
use crate::config::directory::Directory;

/// The files a profile names, read once per (re)load.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Files {
    ca: Option<Vec<u8>>,
    client_cert: Option<Vec<u8>>,
    client_key: Option<zeroize::Zeroizing<Vec<u8>>>,
}

impl Files {
    pub(super) fn read(section: &Directory) -> Result<Self, Fault> {
        Ok(Self {
            ca: read("ca_file", section.ca_file.as_deref())?,
            client_cert: read("client_cert_file", section.client_cert_file.as_deref())?,
            client_key: read("client_key_file", section.client_key_file.as_deref())?
                .map(Into::into),
        })
    }
}

fn read(key: &'static str, path: Option<&Path>) -> Result<Option<Vec<u8>>, Fault> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return Ok(None) };
    let failed = |error| fault(key, format!("{}: {error}", path.display()));
    std::fs::read(path).map(Some).map_err(failed)
}

/// The TLS configuration of one server. `address`: compare the certificate with this address instead of the name in
/// the handshake.
pub(super) fn client_config(
    section: &Directory,
    files: &Files,
    address: Option<IpAddr>,
) -> Result<Arc<ClientConfig>, Fault> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut verifier = if section.verify {
        let roots = Arc::new(roots(section, files)?);
        let built = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| fault("tls", format!("certificate check: {error}")))?;
        built as Arc<dyn ServerCertVerifier>
    } else {
        Arc::new(AnyCertificate(Arc::clone(&provider)))
    };
    if let Some(address) = address {
        verifier = Arc::new(ByAddress { inner: verifier, name: ServerName::from(address) });
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fault("tls", error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match client_certificate(section, files)? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| fault("client_cert_file", error.to_string()))?,
    };
    config.enable_sni = address.is_none();
    Ok(Arc::new(config))
}

fn roots(section: &Directory, files: &Files) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = &files.ca else {
        let found = rustls_native_certs::load_native_certs();
        return system_roots(found.certs, &found.errors);
    };
    let path = section.ca_file.as_deref().unwrap_or(Path::new("")).display().to_string();
    let bad = |problem: String| fault("ca_file", format!("{path}: {problem}"));
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("no certificate in PEM form".into()));
    }
    Ok(roots)
}

/// A certificate of the system that cannot be read is left out; the others still count.
fn system_roots(
    certificates: Vec<CertificateDer<'static>>,
    errors: &[impl std::fmt::Display],
) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        let errors: String = errors.iter().map(|error| format!(" ({error})")).collect();
        let problem = format!(
            "not set, and the system has no usable certificates of authorities{errors}; install ca-certificates or set ca_file"
        );
        return Err(fault("ca_file", problem));
    }
    Ok(roots)
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_certificate(
    section: &Directory,
    files: &Files,
) -> Result<Option<ClientCertificate>, Fault> {
    let (certificate, key) = match (&files.client_cert, &files.client_key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => return Err(fault("client_key_file", "needed with client_cert_file")),
        (None, Some(_)) => return Err(fault("client_cert_file", "needed with client_key_file")),
    };
    let shown = |path: &Option<std::path::PathBuf>| {
        path.as_deref().unwrap_or(Path::new("")).display().to_string()
    };
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| {
            fault("client_cert_file", format!("{}: {error}", shown(&section.client_cert_file)))
        })?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
        fault("client_key_file", format!("{}: {error}", shown(&section.client_key_file)))
    })?;
    Ok(Some((chain, key)))
}

/// What a TLS error means for the person who reads it.
pub(super) fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the server's certificate has an unknown issuer; name its authority in ca_file".into()
        }
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "the server's certificate has expired".into(),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("the server's certificate is for another name ({error}); see server_name"),
        other => other.to_string(),
    }
}

/// `verify = false`: takes any certificate; signatures are still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Compares the certificate with an address; the name in the handshake was only a stand-in.
#[derive(Debug)]
struct ByAddress {
    inner: Arc<dyn ServerCertVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for ByAddress {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner.verify_server_cert(certificate, chain, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_without_authorities_is_named() {
        let broken = CertificateDer::from(b"no certificate".to_vec());
        for (certificates, errors, expected) in [
            (
                vec![],
                &["/etc/x: permission denied"][..],
                "authorities (/etc/x: permission denied); ",
            ),
            (vec![broken], &[], "authorities; install ca-certificates or set ca_file"),
        ] {
            let fault = system_roots(certificates, errors).unwrap_err();
            assert_eq!(fault.key, "ca_file");
            assert!(fault.problem.contains(expected), "{}", fault.problem);
        }
    }
}
