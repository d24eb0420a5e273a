//! The URL of a peer: which texts are valid, and the address that they name.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::error::{Error, ErrorKind, Result};

/// A peer's base URL: `http://host:port`, with a path if a proxy mounts the peer below one.
///
/// Two texts can mean one peer (`http://A/` and `http://a:80`). [`as_str`](Self::as_str) is the text
/// that the user wrote. The ring hashes it, because other processes, some of them in Go, hash that
/// very text. [`canonical`](Self::canonical) is the same for all texts of one peer.
#[derive(Clone)]
pub(crate) struct PeerUrl {
    text: String,
    /// Host and port as the user wrote them.
    authority: String,
    host: Host,
    port: u16,
    /// The path without the slash at its end; empty for a peer at the root.
    prefix: String,
}

/// The host of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// An address, which needs no resolving.
    Ip(IpAddr),
    /// A name, in lower case.
    Name(String),
}

impl PeerUrl {
    /// Parses the text that the user wrote.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPeer`], naming the text and what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Self::parse_parts(text).map_err(|why| {
            Error::new(
                ErrorKind::InvalidPeer,
                format!(
                    "{text:?} is not the URL of a peer: {why}; write http://host:port, \
                     such as http://10.0.0.1:8080"
                ),
            )
        })
    }

    fn parse_parts(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            Some(parts) => parts,
            None if text.is_empty() => return Err("it is empty".into()),
            None => return Err("it does not begin with http://".into()),
        };
        match scheme.to_ascii_lowercase().as_str() {
            "http" => {}
            "https" => return Err("TLS is not built in, use http".into()),
            _ => return Err(format!("its scheme is {scheme}, not http")),
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("it has a user name (@), which no peer asks for".into());
        }
        if path.contains('#') {
            return Err("it has a fragment (#)".into());
        }
        if path.contains('?') {
            return Err("it has a query (?)".into());
        }
        if text.len() > MAX_LEN || !path.bytes().all(is_path_byte) {
            return Err("its path is not that of a URL".into());
        }
        let (host, port) = split_authority(authority);
        Ok(PeerUrl {
            text: text.to_owned(),
            host: parse_host(host)?,
            port: port.map_or(Ok(DEFAULT_PORT), parse_port)?,
            prefix: path.trim_end_matches('/').to_owned(),
            authority: authority.to_owned(),
        })
    }

    /// The text that the user wrote.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Host, port and path in one form for all texts of this peer.
    pub(crate) fn canonical(&self) -> String {
        let PeerUrl { port, prefix, .. } = self;
        match &self.host {
            Host::Ip(ip) => format!("{}{prefix}", SocketAddr::new(*ip, *port)),
            Host::Name(name) => format!("{name}:{port}{prefix}"),
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// The port; 80 where the URL has none.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The path before the base path: empty, or `/` and more, with no slash at its end.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Host and port as the user wrote them.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerUrl").field(&self.text).finish()
    }
}

/// The host, and the port if there is one. The colons of an IPv6 address stand in brackets.
fn split_authority(authority: &str) -> (&str, Option<&str>) {
    let host_end = match authority.starts_with('[') {
        true => authority.find(']').map_or(authority.len(), |at| at + 1),
        false => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(host_end);
    let port = (!port.is_empty()).then(|| port.strip_prefix(':').unwrap_or(port));
    (host, port)
}

/// The bytes that a path may contain. RFC 3986 has fewer, but texts with the others are in use.
fn is_path_byte(byte: u8) -> bool {
    !byte.is_ascii_control() && !b" <>`".contains(&byte)
}

fn parse_host(host: &str) -> Result<Host, String> {
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or("its [ has no ]")?;
        let ip: Ipv6Addr = inner
            .parse()
            .map_err(|_| format!("{inner:?} is not an IPv6 address"))?;
        return Ok(Host::Ip(ip.into()));
    }
    if let Ok(ip) = host.parse() {
        return Ok(Host::Ip(ip));
    }
    let fits = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if host.is_empty() || host.len() > MAX_HOST_NAME || !host.bytes().all(fits) {
        return Err(format!("{host:?} is not a host name"));
    }
    Ok(Host::Name(host.to_ascii_lowercase()))
}

fn parse_port(digits: &str) -> Result<u16, String> {
    let port = digits
        .bytes()
        .all(|c| c.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
        .filter(|port| *port != 0);
    port.ok_or_else(|| format!("{digits:?} is not a port (1 to 65535)"))
}

/// The port of http, by RFC 9110, section 4.2.1.
const DEFAULT_PORT: u16 = 80;

/// The longest URL, in bytes.
const MAX_LEN: usize = 65_534;

/// The longest name that the domain name system can hold, by RFC 1035, section 2.3.4.
const MAX_HOST_NAME: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_split_in_host_port_and_prefix() {
        for (text, host, port, prefix) in [
            ("http://10.0.0.1:8080", "10.0.0.1", 8080, ""),
            ("http://10.0.0.1", "10.0.0.1", 80, ""),
            ("http://[::1]:8080/", "::1", 8080, ""),
            ("http://[2001:DB8::1]", "2001:db8::1", 80, ""),
            ("http://Cache-1.example:99", "cache-1.example", 99, ""),
            ("HTTP://a_b.svc:1/x/y/", "a_b.svc", 1, "/x/y"),
        ] {
            let url = PeerUrl::parse(text).unwrap();
            let found = match url.host() {
                Host::Ip(ip) => ip.to_string(),
                Host::Name(name) => name.clone(),
            };
            assert_eq!(
                (found.as_str(), url.port(), url.prefix()),
                (host, port, prefix)
            );
            assert_eq!(url.as_str(), text);
        }
    }

    #[test]
    fn invalid_url_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "empty"),
            ("10.0.0.1:8080", "http://"),
            ("/_groupcache/", "http://"),
            ("https://a", "TLS is not built in"),
            ("ftp://a", "scheme is ftp"),
            ("http://", ""),
            ("http://:80", "not a host name"),
            ("http://a:0", "not a port"),
            ("http://a:", "not a port"),
            ("http://a:65536", "not a port"),
            ("http://a:+80", "not a port"),
            ("http://user:pass@a", "user name"),
            ("http://a?x=1", "query"),
            ("http://a/#top", "fragment"),
            ("http://a b", ""),
            ("http://a%20b", ""),
            ("http://a~b", "not a host name"),
            ("http://\u{e9}", ""),
            ("http://[::1", ""),
            ("http://[zz]:80", "not an IPv6 address"),
            ("http://::1:80", ""),
            ("http://a,http://b", ""),
            ("http://a\r\nhost: b", ""),
        ] {
            let error = PeerUrl::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidPeer, "{text}");
            let message = error.to_string();
            assert!(message.contains(why), "{text}: {message}");
            assert!(message.contains("http://10.0.0.1:8080"), "{text}");
        }
    }

    #[test]
    fn all_texts_of_a_peer_have_one_canonical_form() {
        for (one, other, same) in [
            ("http://a:80", "http://A/", true),
            ("http://[0:0::1]:8080", "http://[::1]:8080/", true),
            ("http://a/x", "http://a/x/", true),
            ("http://a/x", "http://a/X", false),
            ("http://a:81", "http://a", false),
        ] {
            let canonical = |text| PeerUrl::parse(text).unwrap().canonical();
            assert_eq!(canonical(one) == canonical(other), same, "{one} {other}");
        }
    }
}
