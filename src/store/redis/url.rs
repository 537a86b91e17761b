//! Where a Redis store is: `redis[s][+cluster]://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/NAME][?ca=FILE&cert=FILE&key=FILE]`.

use std::fmt;
use std::path::PathBuf;

/// The address of a Redis store. Its text never shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Whether it is a cluster.
    pub(super) cluster: bool,
    /// Whether connections are within TLS.
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) endpoints: Vec<(String, u16)>,
    /// What its keys begin with.
    pub(super) name: String,
    /// Certificates of the CA, where it is not one of the system's.
    pub(super) ca: Option<PathBuf>,
    /// Certificate and key to show.
    pub(super) own: Option<(PathBuf, PathBuf)>,
}

/// The name where the address has none.
const NAME: &str = "graphtool";
const PORT: u16 = 6379;

impl RedisUrl {
    /// The schemes that there are.
    pub const SCHEMES: [&str; 4] = ["redis", "redis+cluster", "rediss", "rediss+cluster"];

    /// Reads an address.
    ///
    /// # Errors
    /// Says what is wrong, without the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("expected redis+cluster://HOST:PORT,…/NAME")?;
        let (cluster, tls) = match scheme {
            "redis" => (false, false),
            "redis+cluster" => (true, false),
            "rediss" => (false, true),
            "rediss+cluster" => (true, true),
            _ => return Err(format!("expected one of {}", Self::SCHEMES.join(", "))),
        };
        // A password may hold any of the other marks.
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let (user, password) = match login.map(|l| l.split_once(':')) {
            None => (None, None),
            Some(Some((user, password))) => (Some(user).filter(|u| !u.is_empty()), Some(password)),
            Some(None) => return Err("before \"@\" stands USER:PASSWORD or :PASSWORD".into()),
        };
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (list, name) = rest.split_once('/').map_or((rest, NAME), |(list, name)| (list, if name.is_empty() { NAME } else { name }));
        let endpoints = list.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;
        if !cluster && endpoints.len() > 1 {
            return Err(format!("{scheme}:// is one server, found {}; a cluster is {scheme}+cluster://", endpoints.len()));
        }
        let letter = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.len() > 100 || !name.chars().all(letter) || name.chars().all(|c| c.is_ascii_digit()) {
            return Err(format!("\"{name}\" is no NAME: letters, digits, '-', '_' and '.', not digits alone"));
        }
        let decoded = |text: Option<&str>| text.map(decode).transpose();
        let (user, password) = (decoded(user)?, decoded(password)?);
        let mut url = Self { cluster, tls, user, password, endpoints, name: name.into(), ca: None, own: None };
        url.files(query)?;
        Ok(url)
    }

    fn files(&mut self, query: Option<&str>) -> Result<(), String> {
        let (mut cert, mut key) = (None, None);
        for pair in query.into_iter().flat_map(|q| q.split('&')).filter(|p| !p.is_empty()) {
            let (name, file) = pair.split_once('=').unwrap_or((pair, ""));
            let place = match name {
                "ca" => &mut self.ca,
                "cert" => &mut cert,
                "key" => &mut key,
                _ => return Err(format!("\"{name}\" is not known; after \"?\" there are ca, cert and key")),
            };
            *place = Some(PathBuf::from(decode(file)?));
        }
        self.own = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err("cert and key stand together".into()),
        };
        if !self.tls && (self.ca.is_some() || self.own.is_some()) {
            return Err("ca, cert and key are for rediss:// and rediss+cluster://".into());
        }
        Ok(())
    }
}

fn endpoint(text: &str) -> Result<(String, u16), String> {
    let fail = || format!("\"{text}\" is no HOST:PORT");
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').map(str::to_owned)),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port.to_owned()))),
    };
    let port = port.map_or(Ok(PORT), |p| p.parse().map_err(|_| fail()))?;
    if host.is_empty() || host.contains(char::is_whitespace) { Err(fail()) } else { Ok((host.into(), port)) }
}

/// Text with `%XX` for what cannot stand in an address.
fn decode(text: &str) -> Result<String, String> {
    let fail = || "a \"%\" is not followed by two hexadecimal digits of text".to_owned();
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = more.get(..2).and_then(|d| std::str::from_utf8(d).ok()).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        out.push(digits.and_then(|d| u8::from_str_radix(d, 16).ok()).ok_or_else(fail)?);
        rest = &more[2..];
    }
    String::from_utf8(out).map_err(|_| fail())
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls { "s" } else { "" };
        let cluster = if self.cluster { "+cluster" } else { "" };
        write!(f, "redis{s}{cluster}://")?;
        if self.password.is_some() {
            write!(f, "{}:***@", self.user.as_deref().unwrap_or_default())?;
        }
        for (i, (host, port)) in self.endpoints.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            if host.contains(':') { write!(f, "{comma}[{host}]:{port}")? } else { write!(f, "{comma}{host}:{port}")? }
        }
        write!(f, "/{}", self.name)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_its_password_never_shown() {
        let url = RedisUrl::parse("rediss+cluster://ada:p%40s@:/,s@h1:7000,[::1]:7001,h2/ads?ca=/etc/ca.pem").unwrap();
        assert!(url.cluster && url.tls);
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("ada"), Some("p@s@:/,s")));
        assert_eq!(url.endpoints, [("h1".into(), 7000), ("::1".into(), 7001), ("h2".into(), 6379)]);
        assert_eq!((url.name.as_str(), url.ca), ("ads", Some("/etc/ca.pem".into())));
        let url = RedisUrl::parse("redis://:secret@localhost").unwrap();
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (None, Some("secret")));
        assert_eq!(format!("{url} {url:?}"), "redis://:***@localhost:6379/graphtool redis://:***@localhost:6379/graphtool");
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_password() {
        for (text, why) in [
            ("redis+cluster:h:1", "expected redis+cluster://HOST:PORT,…/NAME"),
            ("http://h:1", "expected one of redis, redis+cluster, rediss, rediss+cluster"),
            ("redis://a:1,b:2", "redis:// is one server, found 2; a cluster is redis+cluster://"),
            ("redis://secret@h:1", "before \"@\" stands USER:PASSWORD or :PASSWORD"),
            ("redis://:secret@h:x", "\"h:x\" is no HOST:PORT"),
            ("redis://:secret@:1", "\":1\" is no HOST:PORT"),
            ("redis://:secret@h:1/0", "\"0\" is no NAME: letters, digits, '-', '_' and '.', not digits alone"),
            ("redis://:secret@h:1/a{b}", "\"a{b}\" is no NAME: letters, digits, '-', '_' and '.', not digits alone"),
            ("rediss://:%zzsecret@h", "a \"%\" is not followed by two hexadecimal digits of text"),
            ("rediss://h?cert=a", "cert and key stand together"),
            ("redis://h?ca=a", "ca, cert and key are for rediss:// and rediss+cluster://"),
            ("rediss://h?db=1", "\"db\" is not known; after \"?\" there are ca, cert and key"),
        ] {
            assert_eq!(RedisUrl::parse(text).unwrap_err(), why, "{text}");
        }
    }
}
