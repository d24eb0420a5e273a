//! The HTTP front by which the tests control a node. It uses the same port as the peers.

use std::sync::Arc;
use std::time::Duration;

use larder::http::{Handler, HttpPool, Request, Response};
use larder::{BoxError, Context, ErrorKind, Group, SetOptions};
use serde_json::{Value, json};

use crate::hammer;
use crate::source::Source;

/// Answers the same requests as `tests/interop/go/node.go`.
pub struct Front {
    pool: HttpPool,
    source: Arc<Source>,
}

impl Front {
    /// The front of a node.
    pub fn new(pool: HttpPool, source: Arc<Source>) -> Self {
        Front { pool, source }
    }

    fn answer(&self, request: &Request<'_>) -> Result<Response, BoxError> {
        Ok(match request.path() {
            "/get" => get(request)?,
            "/remove" => {
                let removed = values()?.remove(&Context::background(), text(request)?);
                changed(removed)
            }
            "/set" => {
                let key = parameter(request, "key").unwrap_or_default();
                let (ctx, options) = (Context::background(), SetOptions::new());
                changed(values()?.set(&ctx, key, request.body(), options))
            }
            "/stats" => json_response(200, &stats()),
            "/loads" => json_response(200, &json!(self.source.loads())),
            "/peers" => {
                let urls: Vec<String> = serde_json::from_slice(request.body())?;
                self.pool.set(&urls)?;
                json_response(200, &json!(urls.len()))
            }
            "/owners" => {
                let keys: Vec<String> = serde_json::from_slice(request.body())?;
                let owners = keys.iter().map(|key| self.pool.owner(key));
                json_response(200, &owners.collect())
            }
            "/hammer" => json_response(200, &hammer::run(serde_json::from_slice(request.body())?)?),
            "/wait" => {
                let count = parameter(request, "loading").unwrap_or_default().parse()?;
                let millis = parameter(request, "timeout_ms")
                    .unwrap_or_default()
                    .parse()?;
                let came = self.source.wait(count, Duration::from_millis(millis));
                json_response(if came { 200 } else { 504 }, &json!(came))
            }
            _ => json_response(404, &json!({"error": "no such page"})),
        })
    }
}

impl Handler for Front {
    fn handle(&self, request: &Request<'_>) -> Response {
        self.answer(request)
            .unwrap_or_else(|error| json_response(400, &json!({"error": error.to_string()})))
    }
}

fn values() -> Result<Group, BoxError> {
    Ok(larder::get_group("values").ok_or("no such group")?)
}

fn text<'a>(request: &Request<'a>) -> Result<&'a str, BoxError> {
    Ok(std::str::from_utf8(request.body())?)
}

/// The answer to a change of the cluster.
fn changed(result: larder::Result<()>) -> Response {
    match result {
        Ok(()) => json_response(200, &json!(true)),
        Err(error) => json_response(500, &json!({"error": error.to_string()})),
    }
}

/// `POST /get` with the key as its body; `group=` and `timeout_ms=` in the query.
fn get(request: &Request<'_>) -> Result<Response, BoxError> {
    let key = text(request)?;
    let group = larder::get_group(parameter(request, "group").unwrap_or("values"));
    let group = group.ok_or("no such group")?;
    let found = match parameter(request, "timeout_ms") {
        Some(millis) => {
            let timeout = Duration::from_millis(millis.parse()?);
            group.get_with(&Context::background().with_timeout(timeout), key)
        }
        None => group.get(key),
    };
    Ok(match found {
        Ok(value) => Response::new(200, "application/octet-stream", value.to_vec()),
        Err(error) => {
            let status = match error.kind() {
                ErrorKind::DeadlineExceeded => 504,
                ErrorKind::NotFound => 404,
                _ => 500,
            };
            json_response(status, &json!({"error": error.to_string()}))
        }
    })
}

fn stats() -> Value {
    let groups = larder::Registry::global().groups();
    let all: Vec<_> = groups.iter().map(larder::Group::stats).collect();
    let sum = |count: fn(&larder::Stats) -> u64| all.iter().map(count).sum::<u64>();
    json!({
        "gets": sum(|stats| stats.gets),
        "cache_hits": sum(|stats| stats.cache_hits),
        "peer_loads": sum(|stats| stats.peer_loads),
        "peer_errors": sum(|stats| stats.peer_errors),
        "local_loads": sum(|stats| stats.local_loads),
        "local_load_errs": sum(|stats| stats.local_load_errs),
        "server_requests": sum(|stats| stats.server_requests),
    })
}

fn parameter<'a>(request: &Request<'a>, name: &str) -> Option<&'a str> {
    let pairs = request.query()?.split('&');
    pairs
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(other, value)| (other == name).then_some(value))
}

fn json_response(status: u16, value: &Value) -> Response {
    Response::new(status, "application/json", value.to_string())
}
