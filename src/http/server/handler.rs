//! A request, and the trait with which the program answers requests that are not for the cache.

use std::fmt;
use std::net::SocketAddr;

use super::head::RequestHead;
use super::response::Response;

/// Answers the requests that are not for the cache: the program's own pages.
///
/// Many threads call it at the same time, one for each connection that has a request under way. If a
/// handler panics, the client gets status 500 and the connection stays open.
///
/// Implemented for closures and functions:
///
/// ```
/// use larder::http::{Handler, Request, Response};
///
/// let pages = |request: &Request| match (request.method(), request.path()) {
///     ("GET", "/hello") => Response::text(200, "hello\n"),
///     _ => Response::text(404, "no such page\n"),
/// };
/// # let _: &dyn Handler = &pages;
/// ```
pub trait Handler: Send + Sync {
    /// Answers `request`.
    ///
    /// A handler also gets `HEAD` requests; the length of its response is sent, the body is not.
    fn handle(&self, request: &Request<'_>) -> Response;
}

impl<F> Handler for F
where
    F: Fn(&Request<'_>) -> Response + Send + Sync,
{
    fn handle(&self, request: &Request<'_>) -> Response {
        self(request)
    }
}

/// A request, complete with its body; it borrows from the connection's buffers.
#[derive(Clone, Copy)]
pub struct Request<'r> {
    pub(super) head: &'r RequestHead<'r>,
    pub(super) body: &'r [u8],
    pub(super) peer_addr: Option<SocketAddr>,
}

impl<'r> Request<'r> {
    /// The method as it was sent, such as `GET`. Methods are case-sensitive.
    pub fn method(&self) -> &'r str {
        self.head.method
    }

    /// The path as it was sent, still escaped, without the query. It begins with a slash, except that
    /// of `OPTIONS *`.
    ///
    /// Nothing in it is resolved: it has every `..` and `//` that the client sent.
    pub fn path(&self) -> &'r str {
        self.head.path
    }

    /// The query, which follows the first `?`, as it was sent; `None` without a `?`.
    pub fn query(&self) -> Option<&'r str> {
        self.head.query
    }

    /// The value of the first header with this name, in upper or lower case; `None` if there is none or its
    /// value is not UTF-8.
    pub fn header(&self, name: &str) -> Option<&'r str> {
        self.headers()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .and_then(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// All headers, names and values, in the order and the case in which they were sent.
    pub fn headers(&self) -> impl Iterator<Item = (&'r str, &'r [u8])> {
        self.head
            .fields
            .iter()
            .map(|field| (field.name, field.value))
    }

    /// The body; empty if there is none.
    pub fn body(&self) -> &'r [u8] {
        self.body
    }

    /// The other end of the connection: the client, or the last proxy before this process. `None`
    /// if it is not known.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer_addr
    }
}

/// Shows the method, the path, the size and the address only, because headers and bodies can hold
/// secrets.
impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method())
            .field("path", &self.path())
            .field("body_len", &self.body.len())
            .field("peer_addr", &self.peer_addr)
            .finish_non_exhaustive()
    }
}
