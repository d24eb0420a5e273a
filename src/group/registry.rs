//! Named groups, the peer picker they share, and hooks.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use foldhash::fast::RandomState;

use crate::error::{Error, ErrorKind, Result};
use crate::getter::Getter;
use crate::group::Group;
use crate::panics::FirstPanic;
#[cfg(feature = "http")]
use crate::peers::PickerGuard;
use crate::peers::{PeerPicker, PickerSlot, Pickers};
use crate::sync::{Arc, Mutex, RwLock};
use crate::threads::loader_pool::LoaderPool;

/// A set of groups with different names, which share one peer picker.
///
/// A process has one [global](Registry::global) registry, which [`new_group`], [`get_group`] and
/// [`HttpPool::new`](crate::http::HttpPool::new) use. Make further registries to have several nodes
/// in one process, or to avoid global state.
///
/// Cloning is cheap, and clones are the same registry. All methods may be called from any thread at
/// any time, also from hooks, getters and pickers: the registry holds no lock while it runs user
/// code.
#[derive(Clone, Default)]
pub struct Registry {
    inner: Arc<RegistryInner>,
}

#[derive(Default)]
struct RegistryInner {
    /// Where both are locked, `hooks` is locked before `groups`.
    hooks: Mutex<Hooks>,
    /// Read for each request of a peer. The hash is seeded, because clients choose the names in
    /// requests.
    groups: RwLock<HashMap<String, Group, RandomState>>,
    peers: PickerSlot,
    loaders: LoaderPool,
}

type NewGroupHook = dyn Fn(&Group) + Send + Sync;

#[derive(Default)]
struct Hooks {
    new_group_hook: Option<Arc<NewGroupHook>>,
    server_start: Option<Box<dyn FnOnce() + Send>>,
    /// Whether a group was made. The first group takes `server_start`.
    any_group_yet: bool,
}

impl Registry {
    /// A registry with no groups, no peers and no hooks.
    pub fn new() -> Self {
        Registry::default()
    }

    /// The process's registry.
    pub fn global() -> &'static Registry {
        static GLOBAL: LazyLock<Registry> = LazyLock::new(Registry::new);
        &GLOBAL
    }

    /// Makes a group with default options and the given capacity in bytes.
    ///
    /// # Errors
    ///
    /// As for [`GroupBuilder::build`](crate::GroupBuilder::build).
    pub fn new_group(
        &self,
        name: &str,
        max_capacity: u64,
        getter: impl Getter + 'static,
    ) -> Result<Group> {
        Group::builder(name)
            .registry(self)
            .max_capacity(max_capacity)
            .build(getter)
    }

    /// The group of this name, if there is one.
    #[inline]
    pub fn get_group(&self, name: &str) -> Option<Group> {
        self.inner.groups.read().get(name).cloned()
    }

    /// All groups, in no particular order.
    pub fn groups(&self) -> Vec<Group> {
        self.inner.groups.read().values().cloned().collect()
    }

    /// Removes a group, so that its name can be used again. Handles of the group stay usable. Peers
    /// that request it get [`ErrorKind::UnknownGroup`].
    pub fn remove_group(&self, name: &str) -> Option<Group> {
        self.inner.groups.write().remove(name)
    }

    /// Sets the picker that finds the owner of a key for all groups.
    ///
    /// Groups that exist already use it from their next load on. It stays registered as long as the
    /// registry exists. Without a picker, this process owns every key.
    ///
    /// An [`HttpPool`](crate::http::HttpPool) registers itself, and unregisters when it is dropped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyRegistered`] if there is a picker.
    pub fn register_peer_picker(&self, picker: Arc<dyn PeerPicker>) -> Result<()> {
        self.inner.peers.register(Pickers::One(picker))
    }

    /// Sets the picker until the returned guard is dropped.
    #[cfg(feature = "http")]
    pub(crate) fn lend_peer_picker(&self, picker: Arc<dyn PeerPicker>) -> Result<PickerGuard> {
        self.inner.peers.lend(picker)
    }

    /// Sets a function that returns the picker for a group's name. Every load calls it, and calls it
    /// again before it asks a second peer. So it should only look the picker up.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyRegistered`] if there is a picker.
    pub fn register_per_group_peer_picker(
        &self,
        picker_of: impl Fn(&str) -> Arc<dyn PeerPicker> + Send + Sync + 'static,
    ) -> Result<()> {
        self.inner
            .peers
            .register(Pickers::ByGroup(Arc::new(picker_of)))
    }

    /// Sets a hook that is called with every group made from now on. It runs on the thread that makes
    /// the group, before `build` returns. Other threads may find the group in the registry before the
    /// hook runs.
    ///
    /// If the hook panics, so does `build`, and the group is not registered.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyRegistered`] if there is a hook.
    pub fn register_new_group_hook(
        &self,
        hook: impl Fn(&Group) + Send + Sync + 'static,
    ) -> Result<()> {
        let mut hooks = self.inner.hooks.lock();
        if hooks.new_group_hook.is_some() {
            return Err(already("a new-group hook"));
        }
        hooks.new_group_hook = Some(Arc::new(hook));
        Ok(())
    }

    /// Sets a function that runs once, when the first group is made: for instance, to start the
    /// server that answers peers.
    ///
    /// If it panics, so does the `build` of that group, and the group is not registered. Another
    /// function can be set then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyRegistered`] if there is such a function, or if a group was made already,
    /// because the function would never run.
    pub fn register_server_start(&self, start: impl FnOnce() + Send + 'static) -> Result<()> {
        let mut hooks = self.inner.hooks.lock();
        if hooks.server_start.is_some() {
            return Err(already("a server-start function"));
        }
        if hooks.any_group_yet {
            return Err(Error::new(
                ErrorKind::AlreadyRegistered,
                "a group was made already; register the server-start function before",
            ));
        }
        hooks.server_start = Some(Box::new(start));
        Ok(())
    }

    /// The most threads that run loads for the callers of all groups of this registry: see
    /// [`GroupBuilder::max_loader_threads`](crate::GroupBuilder::max_loader_threads). Default: 1,024.
    ///
    /// A group gets another thread only while it has fewer than are left. So one group whose getter hangs
    /// takes at most half of them, two such groups two thirds, and the others can go on. Loads for the
    /// clients of a server take at most half of them, rounded up. A change does not affect loads under
    /// way.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] for 0.
    pub fn set_max_loader_threads(&self, threads: usize) -> Result<()> {
        if threads == 0 {
            let message = "max_loader_threads must be at least 1";
            return Err(Error::new(ErrorKind::InvalidOption, message));
        }
        self.inner.loaders.set_max_threads(threads);
        Ok(())
    }

    pub(crate) fn loaders(&self) -> &LoaderPool {
        &self.inner.loaders
    }

    /// Registers the group that `make` makes, unless its name is taken.
    pub(crate) fn register(
        &self,
        name: &str,
        make: impl FnOnce(PickerSlot) -> Group,
    ) -> Result<Group> {
        let taken = || {
            Error::new(
                ErrorKind::DuplicateGroup,
                format!("a group named {name:?} exists; use get_group, or another name"),
            )
        };
        if self.get_group(name).is_some() {
            return Err(taken());
        }
        let group = make(self.inner.peers.clone());
        let (start, hook) = {
            let mut hooks = self.inner.hooks.lock();
            let mut groups = self.inner.groups.write();
            // Another thread may have registered the name since the check above.
            if groups.contains_key(name) {
                drop((groups, hooks));
                return Err(taken());
            }
            groups.insert(name.into(), group.clone());
            hooks.any_group_yet = true;
            (hooks.server_start.take(), hooks.new_group_hook.clone())
        };
        let mut panic = FirstPanic::default();
        if let Some(start) = start {
            panic.catch(start);
            if panic.is_some() {
                self.inner.hooks.lock().any_group_yet = false;
            }
        }
        if let Some(hook) = hook.filter(|_| !panic.is_some()) {
            panic.catch(|| hook(&group));
        }
        if panic.is_some() {
            let mut groups = self.inner.groups.write();
            // The hook may have replaced the group by another of this name.
            if groups.get(name).is_some_and(|other| other.is(&group)) {
                groups.remove(name);
            }
        }
        panic.resume();
        Ok(group)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<String> = self.groups().iter().map(|g| g.name().into()).collect();
        names.sort_unstable();
        f.debug_struct("Registry")
            .field("groups", &names)
            .finish_non_exhaustive()
    }
}

/// Makes a group in [`Registry::global`].
///
/// # Errors
///
/// As for [`GroupBuilder::build`](crate::GroupBuilder::build).
pub fn new_group(name: &str, max_capacity: u64, getter: impl Getter + 'static) -> Result<Group> {
    Registry::global().new_group(name, max_capacity, getter)
}

/// The group of this name in [`Registry::global`].
pub fn get_group(name: &str) -> Option<Group> {
    Registry::global().get_group(name)
}

fn already(hook: &str) -> Error {
    Error::new(
        ErrorKind::AlreadyRegistered,
        format!("this registry has {hook} already; make a Registry of its own for another"),
    )
}
