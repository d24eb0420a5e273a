//! Guides; the reference is everywhere else.

#[doc = include_str!("../docs/from-go-groupcache.md")]
pub mod from_go_groupcache {}
