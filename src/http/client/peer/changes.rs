//! The requests that change data at a peer, and the responses that confirm them.

use std::iter;
use std::time::Instant;

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::peer::HttpPeer;
use crate::http::client::transport::target::MAX_PATH;
use crate::http::client::transport::{TransportRequest, TransportResponse};
use crate::pb::{ClearRequest, RemovalTable, RemoveKeysRequest, SetRequest};
use crate::wire;

impl HttpPeer {
    /// Removes keys: one by its path, several by one request.
    ///
    /// A server that is not larder's gets a request for each key, and two for the first. A Go program of the
    /// mailgun protocol would take the request for several keys for a GET, and answer 200.
    pub(super) fn remove_keys(&self, ctx: &Context, request: &RemoveKeysRequest<'_>) -> Result<()> {
        if request.unless_applied.is_some() && self.target().is_keyed() {
            let path = wire::verb_path(self.base(), &request.group, wire::DROP);
            let body = wire::encode_change(request)?;
            return self.change(ctx, "POST", path, &body, None).map(drop);
        }
        let (group, id) = (&*request.group, request.removal_id);
        let mut is_larder = self.target().is_keyed();
        match &request.keys[..] {
            [key] => return self.remove_key(ctx, group, key, id).map(drop),
            [first, ..] if !is_larder => {
                // The response shows which server it is. Larder's server does not count this removal. If it did,
                // it would take the removal of all these keys for applied.
                is_larder = self.remove_key(ctx, group, first, Some(UNCOUNTED))?;
            }
            _ => {}
        }
        let mut keys = request.keys.iter().map(|key| &**key);
        if is_larder && self.remove_list(ctx, group, keys.clone(), id)? {
            return Ok(());
        }
        // A larder server behind a proxy counts each of these removals by its key. So the first key is sent
        // again. If another server has come to this address, it has not removed that key at all.
        keys.try_for_each(|key| self.remove_key(ctx, group, key, None).map(drop))
    }

    /// Removes keys by one request. False if it was not larder's server that answered.
    fn remove_list<'k>(
        &self,
        ctx: &Context,
        group: &str,
        keys: impl Iterator<Item = &'k str>,
        id: Option<u64>,
    ) -> Result<bool> {
        let body = wire::encode_keys(group, keys);
        let path = wire::verb_path(self.base(), group, wire::REMOVE_KEYS);
        self.change(ctx, "POST", path, &body, id)
    }

    /// Removes a key by its path, or by a list of one if it is too long for a path. As JSON, the longest keys
    /// can be over the limit for bodies, so they are sent as a message. If it is not known which server it is,
    /// the head may be too long for larder's: then the list follows. Returns whether larder's server answered.
    fn remove_key(&self, ctx: &Context, group: &str, key: &str, id: Option<u64>) -> Result<bool> {
        let path = wire::key_path(self.base(), group, key);
        let longest = match self.target().is_keyed() {
            true => LONGEST_PATH,
            false => MAX_PATH,
        };
        if key.len() > MAX_JSON_KEY {
            let path = wire::verb_path(self.base(), group, wire::DROP);
            let body = wire::encode_change(&RemoveKeysRequest {
                group: group.into(),
                keys: vec![key.into()],
                removal_id: id,
                unless_applied: None,
            })?;
            return self.change(ctx, "POST", path, &body, None);
        }
        if path.len() > longest && self.remove_list(ctx, group, iter::once(key), id)? {
            return Ok(true);
        }
        let is_long = path.len() > SHORT_PATH;
        let removed = self.change(ctx, "DELETE", path, &[], id);
        match removed.is_err() && is_long {
            true => self.remove_list(ctx, group, iter::once(key), id),
            false => removed,
        }
    }

    pub(super) fn set_value(&self, ctx: &Context, request: &SetRequest<'_>) -> Result<()> {
        let path = wire::key_path(self.base(), &request.group, &request.key);
        let body = wire::encode_change(request)?;
        self.change(ctx, "PUT", path, &body, None).map(drop)
    }

    pub(super) fn clear_group(&self, ctx: &Context, request: &ClearRequest<'_>) -> Result<()> {
        let path = wire::verb_path(self.base(), &request.group, wire::CLEAR);
        let body = wire::encode_change(request)?;
        match self.change(ctx, "POST", path, &body, None)? {
            true => Ok(()),
            false => Err(self.unsupported("POST")),
        }
    }

    pub(super) fn exchange_tables(
        &self,
        ctx: &Context,
        request: &RemovalTable<'_>,
    ) -> Result<RemovalTable<'static>> {
        let path = wire::verb_path(self.base(), &request.group, wire::REMOVALS);
        let body = wire::encode_change(request)?;
        let read = |response: TransportResponse| {
            // A Go program answers with the value of this "key".
            if !response.is_from_larder() {
                return Err(self.unsupported("POST"));
            }
            let body = self.read_message(ctx, response, MAX_TABLE)?;
            let table = wire::decode_table(&body).map_err(|why| self.failure(why))?;
            Ok(RemovalTable {
                group: table.group.into_owned().into(),
                clocks: table.clocks.map(|clocks| clocks.into_owned().into()),
                applied: table.applied.map(|applied| applied.into_owned().into()),
            })
        };
        self.post(ctx, "POST", path, &body, None, read)
    }

    /// Sends a change, and reads the response to its end. Returns whether larder's own server sent it.
    ///
    /// # Errors
    ///
    /// If the peer did not confirm it with 200, or with a body as that of a GET: golang/groupcache
    /// handles every method like GET.
    fn change(
        &self,
        ctx: &Context,
        method: &'static str,
        path: String,
        body: &[u8],
        id: Option<u64>,
    ) -> Result<bool> {
        self.post(ctx, method, path, body, id, |response| {
            if response.is_protobuf() {
                return Err(self.unsupported(method));
            }
            self.drain(ctx, response)
        })
    }

    /// Sends a request, and passes a response with status 200 to `read`.
    fn post<R>(
        &self,
        ctx: &Context,
        method: &'static str,
        path: String,
        body: &[u8],
        id: Option<u64>,
        read: impl FnOnce(TransportResponse) -> Result<R>,
    ) -> Result<R> {
        let deadline = self.deadline(ctx, Instant::now())?;
        let _permit = self.permit(ctx, deadline)?;
        let mut request = TransportRequest::change(method, path, body, deadline);
        request.set_checked(wire::RECIPIENT_HEADER.into(), (&*self.recipient).into());
        if let Some(id) = id {
            request.set_checked(wire::REMOVAL_ID_HEADER.into(), id.to_string().into());
        } else if !body.is_empty() {
            request.set_checked("content-type".into(), wire::CONTENT_TYPE.into());
        }
        let response = self.transport().round_trip(ctx, request)?;
        match response.status() {
            200 => return read(response),
            wire::MISDIRECTED => {
                self.connections.close_idle();
                self.target().addresses().refresh();
            }
            _ => {}
        }
        Err(self.error_of(response, None))
    }

    fn unsupported(&self, method: &str) -> Error {
        let message = format!("peer {}: it takes a {method} for a get", self.target().url);
        Error::new(ErrorKind::Unsupported, message)
    }
}

/// The number of a removal that is no part of the clocks.
const UNCOUNTED: u64 = 0;

/// The longest path of a removal that is sent to larder's server, whose heads may be limited to 1 KiB.
const LONGEST_PATH: usize = 512;

/// The longest path that is surely within the limit of larder's server for heads, 8 KiB with the other fields.
const SHORT_PATH: usize = 7 << 10;

/// The longest key in a list as JSON, which has up to six bytes for each of the key's. Servers accept bodies
/// of up to 128 KiB.
const MAX_JSON_KEY: usize = 16 << 10;

/// The most bytes of a table of removals, with its group.
const MAX_TABLE: u64 = 128 << 10;
