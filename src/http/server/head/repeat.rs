//! The head of a request that differs from the last one's in its target only.

use std::ops::Range;

use httparse::{EMPTY_HEADER, Header};

use super::{Head, split_target};
use crate::wire::find_space;
use crate::wire::repeat::Repeat;

/// The last head of a connection.
pub(crate) struct LastHead(Repeat<Read>);

/// What was read of it, but for its target.
struct Read {
    method: &'static str,
    /// The name of each header, and where its value is, counted from the end of the target.
    fields: Vec<(Box<str>, Range<usize>)>,
    content_length: u64,
    keep_alive: bool,
    http_10: bool,
    expects_continue: bool,
}

/// A head that has arrived.
pub(crate) struct Arrived {
    pub len: usize,
    /// Where its target is, if the last head of the connection tells the rest.
    pub target: Option<Range<usize>>,
}

impl LastHead {
    pub(crate) fn new() -> Self {
        LastHead(Repeat::new())
    }

    /// Keeps a head of these bytes, if it is of a kind that comes again.
    pub(crate) fn keep(&mut self, bytes: &[u8], head: &Head<'_>) {
        let Some(method) = METHODS.into_iter().find(|&method| method == head.method) else {
            return;
        };
        // Behind the method comes one space, then the target, which has none.
        let start = offset(bytes, head.method.as_bytes()) + method.len() + 1;
        let Some(len) = find_space(&bytes[start..]).filter(|_| head.fields.len() <= FEW) else {
            return;
        };
        let end = start + len;
        let place = |value: &[u8]| {
            let from = offset(bytes, value) - end;
            from..from + value.len()
        };
        let fields = head.fields.iter();
        let read = Read {
            method,
            fields: fields
                .map(|field| (field.name.into(), place(field.value)))
                .collect(),
            content_length: head.content_length,
            keep_alive: head.keep_alive,
            http_10: head.http_10,
            expects_continue: head.expects_continue,
        };
        self.0.keep(bytes, start..end, read);
    }

    /// The head that `bytes` begin with, if it is the last one but for the target.
    ///
    /// No byte of the target is a space or a control character, so that it ends where the parser
    /// would have it end, and the lines behind it are those of the last head.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<Arrived> {
        let (_, target, len) = self.0.find(bytes, find_space)?;
        let target = Some(target);
        Some(Arrived { len, target })
    }

    /// Reads the head that [`find`](Self::find) found; `fields` is where its headers are put.
    ///
    /// `None` if it has to be read like any other: its target may be none.
    pub(crate) fn read<'h>(
        &'h self,
        bytes: &'h [u8],
        target: Range<usize>,
        fields: &'h mut [Header<'h>; FEW],
    ) -> Option<Head<'h>> {
        let read = self.0.read()?;
        let rest = &bytes[target.end..];
        for (field, (name, value)) in fields.iter_mut().zip(&read.fields) {
            field.name = name;
            field.value = &rest[value.clone()];
        }
        let target = std::str::from_utf8(&bytes[target]).ok()?;
        let (path, query) = split_target(read.method, target).ok()?;
        Some(Head {
            method: read.method,
            path,
            query,
            fields: &fields[..read.fields.len()],
            content_length: read.content_length,
            keep_alive: read.keep_alive,
            http_10: read.http_10,
            expects_continue: read.expects_continue,
        })
    }
}

/// Where `part` lies in the `bytes` that it is a part of.
fn offset(bytes: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - bytes.as_ptr().addr()
}

/// Room for the headers of a head that is kept.
pub(crate) const NO_FEW_FIELDS: [Header<'static>; FEW] = [EMPTY_HEADER; FEW];

/// The most headers of a head that is kept. Peers send two to four.
const FEW: usize = 8;

/// What peers ask with.
const METHODS: [&str; 2] = ["GET", "POST"];
