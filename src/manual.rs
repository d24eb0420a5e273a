//! Guides. The reference documentation is in the other modules.

#[doc = include_str!("../docs/boards.md")]
pub mod boards {}

#[doc = include_str!("../docs/from-go-groupcache.md")]
pub mod from_go_groupcache {}

// The picture stands in the page as a file, which is not part of this documentation. It is shown inline.
#[doc = "<style>.docblock img[src='eviction.svg'] { display: none }</style>"]
#[doc = ""]
#[doc = include_str!("../docs/eviction.svg")]
#[doc = ""]
#[doc = include_str!("../docs/eviction.md")]
pub mod eviction {}

#[doc = "<style>.docblock img[src='freshness.svg'] { display: none }</style>"]
#[doc = ""]
#[doc = include_str!("../docs/freshness.svg")]
#[doc = ""]
#[doc = include_str!("../docs/freshness.md")]
pub mod freshness {}

#[doc = include_str!("../docs/removal.md")]
pub mod removal {}
