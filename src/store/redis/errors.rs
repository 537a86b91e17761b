//! What an error of a server means: to try again, or to give up and say why.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// What became of a request.
pub(super) enum Fault {
    /// It may succeed later, or on another node.
    Again(String),
    /// It will not.
    Refused(String),
}

/// Words of errors that last, and what to do.
const LASTING: [(&str, &str); 12] = [
    ("cluster support disabled", "the server is not in cluster mode: take redis:// in place of redis+cluster://"),
    ("CLUSTER SLOTS", "the server is not in cluster mode: take redis:// in place of redis+cluster://"),
    ("WRONGPASS", ""),
    ("NOAUTH", "a password is needed: redis://USER:PASSWORD@HOST:PORT"),
    ("NOPERM", ""),
    ("without any password configured", ""),
    ("Password authentication failed", ""),
    ("OOM", "raise maxmemory, or remove an older version"),
    ("certificate", ""),
    ("InvalidContentType", "the server does not speak TLS: take redis:// in place of rediss://"),
    ("corrupt message", "the server does not speak TLS: take redis:// in place of rediss://"),
    ("MISCONF", ""),
];

/// Sorts an error. In a cluster slots may move; a server alone that speaks of it is part of one.
pub(super) fn fault(e: &RedisError, cluster: bool) -> Fault {
    let text = text(e);
    if let Some((_, hint)) = LASTING.iter().find(|(word, _)| text.contains(word)) {
        return Fault::Refused(if hint.is_empty() { text } else { format!("{text}: {hint}") });
    }
    match e.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig | ErrorKind::RESP3NotSupported => Fault::Refused(text),
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) if !cluster => {
            Fault::Refused(format!("{text}: the server is part of a cluster: take redis+cluster:// in place of redis://"))
        }
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly,
        )
        | ErrorKind::Io
        | ErrorKind::ClusterConnectionNotFound
        | ErrorKind::Client => Fault::Again(text),
        _ => Fault::Refused(text),
    }
}

/// The error on one line.
fn text(e: &RedisError) -> String {
    let text = match (e.code(), e.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => e.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches('.').to_owned()
}
