//! Shared exchanges: several keys of one group asked for in one request, for threads that ride
//! together and for `get_many`.

use std::cell::Cell;
use std::time::{Duration, Instant};

use ureq::http::HeaderValue;
use ureq::http::header::CONTENT_TYPE;

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::http::client::combiner::Turn;
use crate::http::client::peer::HttpPeer;
use crate::http::client::sharing::{Answers, Failure};
use crate::http::client::transport::TransportRequest;
use crate::peers::PeerResponse;
use crate::sync::atomic::Ordering;
use crate::wire;

impl HttpPeer {
    /// Asks for one key, with other threads if there are some.
    pub(crate) fn get_together(
        &self,
        ctx: &Context,
        group: &str,
        key: &str,
    ) -> Result<PeerResponse> {
        if let Some(ended) = ctx.err() {
            return Err(ended);
        }
        let common = self.limits.exchange_timeout;
        let budget = ctx.remaining().map_or(common, |left| left.min(common));
        let single = |budget| {
            let answer = self.exchange(ctx, group, key, budget)?;
            self.sharing.note_len(answer.value.len());
            Ok(answer)
        };
        if !self.sharing.pays() {
            return single(budget);
        }
        // Who does not wait does not read the clock; who waits begins to when it is asked first.
        let begun = Cell::new(None);
        let time_left = || match begun.get() {
            Some(begun) => budget.saturating_sub(Instant::elapsed(&begun)),
            None => {
                begun.set(Some(Instant::now()));
                budget
            }
        };
        let (told, place) = match self.traffic.combiner.join(group, key, time_left) {
            Turn::Alone(_guard) => return single(budget),
            Turn::Singly => return single(budget),
            Turn::TooLate => return Err(self.too_late(ctx)),
            Turn::Told(told, place) => (told, place),
            Turn::Lead(lead) => {
                let keys: Vec<&str> = lead.keys().iter().map(|key| &**key).collect();
                let outcome = self.ask_many(ctx, group, &keys, time_left());
                let place = lead.place();
                (lead.finish(outcome), place)
            }
        };
        match told.outcome() {
            Some(Ok(answers)) => {
                if let Some(response) = answers.get(place, key) {
                    return Ok(response);
                }
            }
            Some(Err(Failure::Said(error))) => return Err(error.clone()),
            Some(Err(Failure::AskSingly)) | None => {}
        }
        drop(told);
        let left = time_left();
        if left.is_zero() {
            return Err(self.too_late(ctx));
        }
        single(left)
    }

    /// Asks for the keys that the peer has cached, in as few exchanges as the limits allow. `None`
    /// for each that has to be asked for singly.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownGroup`], and where `ctx` has ended. Any other failure is `None`.
    pub(crate) fn get_cached(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
    ) -> Result<Vec<Option<PeerResponse>>> {
        let mut found = Vec::with_capacity(keys.len());
        while found.len() < keys.len() && self.sharing.is_known() {
            if let Some(ended) = ctx.err() {
                return Err(ended);
            }
            let rest = &keys[found.len()..];
            let asked = &rest[..self.fitting(rest)];
            let common = self.limits.exchange_timeout;
            let budget = ctx.remaining().map_or(common, |left| left.min(common));
            match self.ask_many(ctx, group, asked, budget) {
                Ok(answers) => {
                    let values = asked.iter().enumerate();
                    found.extend(values.map(|(place, key)| answers.get(place, key)));
                }
                Err(Failure::Said(error)) => return Err(error),
                Err(Failure::AskSingly) => break,
            }
        }
        found.resize(keys.len(), None);
        Ok(found)
    }

    /// How many of `keys` go in one exchange: at least one.
    fn fitting(&self, keys: &[&str]) -> usize {
        let mut room = self.sharing.limits.max_key_bytes();
        let fits = |key: &&&str| {
            let left = room.checked_sub(key.len());
            room = left.unwrap_or(0);
            left.is_some()
        };
        let count = keys.iter().take_while(fits).count();
        count.clamp(1, self.sharing.limits.max_keys)
    }

    /// One shared exchange.
    fn ask_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
        budget: Duration,
    ) -> Result<Answers, Failure> {
        let failed = |error: Error| {
            log::debug!("{error}");
            Failure::AskSingly
        };
        let (_permit, budget) = self.permit(ctx, budget).map_err(failed)?;
        let max_bytes = self.sharing.limits.max_bytes;
        let body = wire::many_request(keys, max_bytes).map_err(failed)?;
        let path = wire::group_path(&self.base, group);
        let mut sent = TransportRequest::batch(path, &body, Instant::now() + budget);
        sent.set_parsed(CONTENT_TYPE, HeaderValue::from_static(wire::CONTENT_TYPE));
        let response = self.transport.round_trip(ctx, sent).map_err(failed)?;
        let status = response.status();
        if status != 200 {
            let is_ours = response.header(wire::ERROR_HEADER).is_some();
            let error = self.explain(response);
            if is_ours && error.kind() == ErrorKind::UnknownGroup {
                return Err(Failure::Said(error));
            }
            // Other statuses pass: too busy, too many, too slow.
            if !is_ours && matches!(status, 400 | 404 | 405 | 411 | 415 | 501) {
                self.sharing.unknown.store(true, Ordering::Relaxed);
            }
            return Err(failed(error));
        }
        let most = self.sharing.limits.max_answer();
        let body = self.read_message(ctx, response, most).map_err(failed)?;
        match wire::decode_many_response(&body, keys.len()) {
            Ok(slots) => {
                let answers = Answers { body, slots };
                self.note_lens(&answers);
                Ok(answers)
            }
            Err(error) => {
                // It answers anything with 200: no peer of ours.
                self.sharing.unknown.store(true, Ordering::Relaxed);
                Err(failed(error))
            }
        }
    }

    fn note_lens(&self, answers: &Answers) {
        let values = || answers.slots.iter().flatten();
        let sum: usize = values().map(|value| value.range.len()).sum();
        if let Some(mean) = sum.checked_div(values().count()) {
            self.sharing.note_len(mean);
        }
    }
}
