//! A handle of a group that does not keep the group alive.

use std::fmt;
use std::sync::Weak;

use super::{Group, Inner};
use crate::sync::Arc;

/// A handle of a [`Group`] that does not keep the group alive.
///
/// A group owns its getter and its eviction listener. If one of them holds a [`Group`] of its own
/// group, neither is ever freed. With this handle they are freed with the last [`Group`]:
///
/// ```
/// use std::sync::{Arc, OnceLock};
/// use larder::{Group, RemovalCause, WeakGroup, getter_fn};
///
/// let own: Arc<OnceLock<WeakGroup>> = Arc::default();
/// let itself = own.clone();
/// let colors = Group::builder("colors")
///     .eviction_listener(move |name, _, cause| {
///         // `None` while the group is being made, and once it is gone.
///         let group = itself.get().and_then(WeakGroup::upgrade);
///         if let (Some(group), RemovalCause::Expired) = (group, cause) {
///             // Loads it again.
///             let _ = group.get(name);
///         }
///     })
///     .build(getter_fn(|_ctx, name, dest| Ok(dest.set_str(&format!("the color {name}"))?)))?;
/// assert!(own.set(colors.downgrade()).is_ok());
/// assert_eq!(colors.get("red")?, "the color red");
/// # Ok::<(), larder::Error>(())
/// ```
///
/// A registry holds its groups until they are [removed](crate::Registry::remove_group).
#[derive(Clone)]
pub struct WeakGroup {
    inner: Weak<Inner>,
}

impl WeakGroup {
    /// The group; `None` if it was dropped.
    pub fn upgrade(&self) -> Option<Group> {
        let inner = self.inner.upgrade()?;
        Some(Group { inner })
    }
}

impl Group {
    /// A handle of this group that does not keep it alive.
    pub fn downgrade(&self) -> WeakGroup {
        WeakGroup {
            inner: Arc::downgrade(&self.inner),
        }
    }
}

impl fmt::Debug for WeakGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = self.upgrade();
        let name = group.as_ref().map(Group::name);
        f.debug_struct("WeakGroup").field("name", &name).finish()
    }
}
