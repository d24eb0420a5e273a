//! Guides. The reference documentation is in the other modules.

#[doc = include_str!("../docs/from-go-groupcache.md")]
pub mod from_go_groupcache {}
