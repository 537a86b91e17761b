//! Mutual TLS: both sides of a connection show a certificate that the CA of the job has signed, and a side that connects
//! checks that the other's is for the host of the endpoint. A [`Stream`] is plain or within TLS; who has no certificates pays
//! one branch per read.

use super::Room;
use super::local::Socket;
use super::prompt::Prompt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, ServerConfig};
use std::fmt;
use std::io::{self, IoSlice};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// How errors begin that no other attempt mends.
const REFUSED: &str = "TLS: ";
/// How long a peer that is refused has to read why.
const LINGER: Duration = Duration::from_secs(1);

/// The certificates of a process, for both directions.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads a certificate (with those between it and the CA, if there are any), its key, and the certificates of the CA, all PEM.
    ///
    /// # Errors
    /// A file that is not to be read, or does not hold what it should; a key of another certificate. One line.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Self, String> {
        let (chain, authorities) = (certificates(cert)?, certificates(ca)?);
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| format!("{}: no private key in PEM", key.display()))?;
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|e| format!("{}: no certificate of a CA: {e}", ca.display()))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let own = |e: Error| match e {
            Error::InconsistentKeys(_) => format!("{}: it is not the key of {}", key.display(), cert.display()),
            e => format!("{}: {e}", cert.display()),
        };
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let verifier = verifier.build().map_err(|e| format!("{}: {e}", ca.display()))?;
        let server = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(own)?;
        let server = server.with_client_cert_verifier(verifier).with_single_cert(chain.clone(), secret.clone_key()).map_err(own)?;
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(own)?;
        let client = client.with_root_certificates(roots).with_client_auth_cert(chain, secret).map_err(own)?;
        Ok(Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(|| format!("{}: no certificate in PEM", path.display()))
}

/// A connection, plain or within TLS.
pub(crate) enum Stream {
    Plain(Prompt),
    Tls(Box<TlsStream<Prompt>>),
}

/// Why a connection was not made.
pub(crate) enum Unreached {
    /// Another attempt may do.
    Again(String),
    /// The peers do not trust each other, or do not speak the same.
    Refused(String),
}

impl From<io::Error> for Unreached {
    fn from(e: io::Error) -> Self {
        let text = e.to_string();
        refusal(&text).map(Self::Refused).unwrap_or(Self::Again(text))
    }
}

/// That TLS comes where plain text was to come.
pub(crate) fn spoken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{REFUSED}the peer speaks TLS, and this process has no certificate"))
}

/// What an error says that no other attempt mends, without where it came through.
pub(crate) fn refusal(text: &str) -> Option<String> {
    text.find(REFUSED).map(|at| text[at..].to_owned())
}

impl Stream {
    /// Connects to the server at `endpoint` without TCP, if it is on this machine and takes such connections (see `local`); with the
    /// memory that both then share.
    pub(crate) async fn beside(endpoint: &str) -> Option<(Self, Option<Arc<Room>>)> {
        let (stream, room) = Socket::beside(endpoint).await?;
        stream.prepare().ok()?;
        Some((Self::Plain(Prompt::dialed(stream)), room))
    }

    /// Connects to `endpoint` (`host:port`); its name is resolved anew at each call.
    pub(crate) async fn dial(endpoint: &str, tls: Option<&Tls>) -> Result<Self, Unreached> {
        let stream = Socket::dial(endpoint).await?;
        stream.prepare()?;
        let stream = Prompt::dialed(stream);
        let Some(tls) = tls else { return Ok(Self::Plain(stream)) };
        let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| Unreached::Refused(format!("{REFUSED}\"{host}\" is no name that a certificate could be for")))?;
        match tls.connector.connect(name, stream).await {
            Ok(stream) => Ok(Self::Tls(Box::new(stream.into()))),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Unreached::Again("it closed the connection in the TLS handshake; does it speak plain text?".into()))
            }
            Err(e) => Err(explained(e).into()),
        }
    }

    /// Takes a connection in.
    ///
    /// # Errors
    /// A peer that is not trusted, or does not speak TLS where we do; it is told so.
    pub(crate) async fn accept(stream: Socket, tls: Option<&Tls>) -> io::Result<Self> {
        stream.prepare()?;
        let stream = Prompt::accepted(stream);
        let Some(tls) = tls else { return Ok(Self::Plain(stream)) };
        match tls.acceptor.accept(stream).into_fallible().await {
            Ok(stream) => Ok(Self::Tls(Box::new(stream.into()))),
            Err((e, mut stream)) => {
                // An end with bytes unread would overtake the alert that says why.
                _ = stream.shutdown().await;
                let rest = async { while stream.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {} };
                _ = tokio::time::timeout(LINGER, rest).await;
                Err(explained(e))
            }
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<std::net::SocketAddr> {
        let prompt = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        prompt.socket().local_addr()
    }
}

/// An error of TLS as an operator would say it.
fn explained(error: io::Error) -> io::Error {
    let Some(e) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) else { return error };
    let text = match e {
        Error::InvalidCertificate(e) => certificate(e),
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => "it requires a certificate of ours".into(),
            AlertDescription::UnknownCA | AlertDescription::DecryptError => "it does not know the CA of our certificate".into(),
            AlertDescription::CertificateExpired => "our certificate has expired".into(),
            other => format!("it refuses the connection ({other:?})"),
        },
        Error::InvalidMessage(_) => "the peer speaks no TLS".into(),
        Error::NoCertificatesPresented => "the peer shows no certificate".into(),
        other => other.to_string(),
    };
    io::Error::new(error.kind(), format!("{REFUSED}{text}"))
}

fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the peer's certificate has expired".into(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "the peer's certificate is not valid yet".into(),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "the peer's certificate is not signed by our CA".into(),
        CertificateError::NotValidForName => "the peer's certificate is for another name".into(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            // Each comes as `DnsName("host")` or `IpAddress(127.0.0.1)`.
            let bare = |name: &String| name.split(['(', ')', '"']).rfind(|part| !part.is_empty()).unwrap_or(name).to_owned();
            let presented: Vec<String> = presented.iter().map(bare).collect();
            format!(
                "the peer's certificate is not for \"{}\" but for {}",
                expected.to_str(),
                if presented.is_empty() { "no name".into() } else { presented.join(", ") }
            )
        }
        other => format!("the peer's certificate is not accepted: {other}"),
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => match Pin::new(stream).poll_read(cx, buf) {
                // A peer that is killed takes no leave; frames tell whether something is missing.
                Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                other => other.map_err(explained),
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes).map_err(explained),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts).map_err(explained),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx).map_err(explained),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
