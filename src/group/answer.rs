//! A get with options, and its answer: the value, where it came from, and its times.

use std::time::Duration;

use super::freshness::Phase;
use super::lifetime::Lifetime;
use super::removal_clocks::Counted;
use super::{Group, Inner, LoadBegin, Loaded};
use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::stats::CacheType;

/// The options of [`Group::get_opts`]. The default is [`Group::get_with`].
///
/// ```
/// use larder::GetOptions;
/// use std::time::Duration;
///
/// let options = GetOptions::new().max_age(Duration::from_secs(5));
/// assert!(!options.only_if_cached);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GetOptions {
    /// A cached value is used only if its load began at most this long ago. A value that is
    /// older or of unknown age is loaded again. The owner of the key answers from its own cache, so the new
    /// value can be older than this, too. Default: `None`, no limit.
    pub max_age: Option<Duration>,
    /// A cached value that is not fresh is used only within this time after its time to live, at once and
    /// without a load. The group's own limits hold as well. Default: `None`, only the group's limits.
    pub max_stale: Option<Duration>,
    /// Nothing is loaded: without a cached value that fits, the get fails with
    /// [`ErrorKind::NotCached`]. With [`max_unverified`](crate::GroupBuilder::max_unverified), the peers may
    /// be asked for their removals first. Default: no.
    pub only_if_cached: bool,
    /// A value that this call loads is not kept in this process. If another call loads it already, that
    /// one decides. Default: no.
    pub no_store: bool,
}

impl GetOptions {
    /// The defaults.
    pub fn new() -> Self {
        GetOptions::default()
    }

    /// The same options with a [`max_age`](Self::max_age).
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// The same options with a [`max_stale`](Self::max_stale).
    #[must_use]
    pub fn max_stale(mut self, time: Duration) -> Self {
        self.max_stale = Some(time);
        self
    }

    /// The same options with [`only_if_cached`](Self::only_if_cached).
    #[must_use]
    pub fn only_if_cached(mut self) -> Self {
        self.only_if_cached = true;
        self
    }

    /// The same options with [`no_store`](Self::no_store).
    #[must_use]
    pub fn no_store(mut self) -> Self {
        self.no_store = true;
        self
    }
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The main share of this process's cache.
    Main,
    /// The hot share: a copy of another process's value.
    Hot,
    /// The cache, past its time to live.
    Stale,
    /// A load: another process sent it.
    Peer,
    /// A load: the getter of this process made it.
    Getter,
}

/// The answer of [`Group::get_opts`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Answer {
    /// The value.
    pub value: ByteView,
    /// Where it came from.
    pub source: Source,
    /// The time since its load began, in whatever process that was. `None` if it is not known: a peer
    /// that is not larder sent the value, or the load was weeks ago. It can be too large by up to 10 ms, and by
    /// the time of the request if a peer sent the value.
    pub age: Option<Duration>,
    /// The time until the end of its time to live; zero if that is over, `None` if it does not expire.
    pub expires_in: Option<Duration>,
}

impl Group {
    /// The value of `key` within the bounds of `ctx`, as `options` ask for it, and with its times.
    ///
    /// ```
    /// use larder::{Context, GetOptions, Registry, Source, getter_fn};
    /// # let colors = Registry::new().new_group("colors", 1 << 20, getter_fn(|_, name, dest| Ok(dest.set_str(name)?)))?;
    ///
    /// let ctx = Context::background();
    /// let answer = colors.get_opts(&ctx, "red", GetOptions::new())?;
    /// assert_eq!((answer.value, answer.source), ("red".into(), Source::Getter));
    /// let answer = colors.get_opts(&ctx, "red", GetOptions::new().only_if_cached())?;
    /// assert_eq!(answer.source, Source::Main);
    /// # Ok::<(), larder::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get_with`](Self::get_with); and [`ErrorKind::NotCached`] with
    /// [`only_if_cached`](GetOptions::only_if_cached).
    ///
    /// # Panics
    ///
    /// As for [`get_with`](Self::get_with).
    pub fn get_opts(&self, ctx: &Context, key: &str, options: GetOptions) -> Result<Answer> {
        let inner = &self.inner;
        if !inner.may_serve(ctx) {
            inner.remove_here(key, Counted::Not);
        }
        let key = inner.key(key);
        let ctx = &match options.no_store {
            true => ctx.with_value(NoStore),
            false => ctx.clone(),
        };
        let hash = key.hash;
        let epochs = || inner.epochs(hash);
        let not_cached = || Err(Error::from(ErrorKind::NotCached));
        let found = inner
            .store
            .get(hash, key.key, epochs, || inner.sample_hit(&key));
        let hit = match found {
            Ok(hit) => hit,
            Err(miss) => {
                inner.count_miss(&key, || inner.purge_some());
                return match options.only_if_cached {
                    true => not_cached(),
                    false => Ok(inner.loaded_answer(inner.load(ctx, &key, Some(&miss))?)),
                };
            }
        };
        let share = hit.share;
        let old = inner.loaded(hit.clone());
        let phase = inner.phase(&old.lifetime);
        if !inner.fits(&old.lifetime, options) {
            let fits = |lifetime: &Lifetime| {
                inner.fits(lifetime, options)
                    && (options.max_stale.is_some() || inner.phase(lifetime) != Phase::Stale)
            };
            return match options.only_if_cached {
                true => not_cached(),
                false => Ok(inner.loaded_answer(inner.load_newer(ctx, &key, fits)?)),
            };
        }
        if phase == Phase::Stale && options.max_stale.is_none() {
            if options.only_if_cached {
                return not_cached();
            }
            let begun = old.lifetime.begun;
            let loaded = inner.get_due(ctx, &key, hit)?;
            // It may not be known when the load of a peer's value began.
            return Ok(match !loaded.by_peer && loaded.lifetime.begun == begun {
                true => inner.answer(loaded, share.into()),
                false => inner.loaded_answer(loaded),
            });
        }
        if phase == Phase::Refresh && !options.only_if_cached {
            inner.refresh(&key);
        }
        Ok(inner.answer(old, share.into()))
    }
}

impl Inner {
    /// Whether a cached value is young and fresh enough.
    fn fits(&self, lifetime: &Lifetime, options: GetOptions) -> bool {
        let now = self.store.clock().now();
        let is_young = |max| lifetime.begun.is_some_and(|begun| now.since(begun) <= max);
        let stale_for = |end| now.since(end);
        let is_fresh = |max| lifetime.fresh_until.is_none_or(|end| stale_for(end) <= max);
        options.max_age.is_none_or(is_young) && options.max_stale.is_none_or(is_fresh)
    }

    fn loaded_answer(&self, loaded: Loaded) -> Answer {
        let source = match loaded.by_peer {
            true => Source::Peer,
            false => Source::Getter,
        };
        self.answer(loaded, source)
    }

    fn answer(&self, loaded: Loaded, source: Source) -> Answer {
        let now = self.store.clock().now();
        let Lifetime {
            begun, fresh_until, ..
        } = loaded.lifetime;
        let is_stale = fresh_until.is_some_and(|end| end <= now);
        let is_cached = matches!(source, Source::Main | Source::Hot);
        Answer {
            value: loaded.view,
            source: match is_stale && is_cached {
                true => Source::Stale,
                false => source,
            },
            age: begun.map(|begun| now.since(begun)),
            expires_in: fresh_until.map(|end| end.since(now)),
        }
    }
}

impl From<CacheType> for Source {
    fn from(share: CacheType) -> Source {
        match share {
            CacheType::Main => Source::Main,
            CacheType::Hot => Source::Hot,
        }
    }
}

/// Marks the context of a load whose value is not kept.
struct NoStore;

impl LoadBegin {
    /// Reads from the context of the load whether the value is to be cached.
    pub(super) fn set_context(&mut self, ctx: &Context) {
        self.is_kept = ctx.value::<NoStore>().is_none();
    }
}
