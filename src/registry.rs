//! STUB: replaced soon. Signatures are final.
use crate::error::Result;
use crate::getter::Getter;
use crate::group::Group;
use crate::peers::{PeerPicker, PickerSlot};
use crate::sync::{Arc, Mutex};
use std::collections::HashMap;
use std::sync::LazyLock;

/// A set of named groups, with one peer picker.
#[derive(Clone, Default)]
pub struct Registry {
    groups: Arc<Mutex<HashMap<String, Group>>>,
    slot: PickerSlot,
}

impl Registry {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }
    /// The process's.
    pub fn global() -> &'static Registry {
        static GLOBAL: LazyLock<Registry> = LazyLock::new(Registry::new);
        &GLOBAL
    }
    /// Makes a group.
    pub fn new_group(
        &self,
        name: &str,
        capacity: u64,
        getter: impl Getter + 'static,
    ) -> Result<Group> {
        let _ = capacity;
        let group = Group::stub(name, getter);
        self.groups.lock().insert(name.into(), group.clone());
        Ok(group)
    }
    /// Finds a group.
    pub fn get_group(&self, name: &str) -> Option<Group> {
        self.groups.lock().get(name).cloned()
    }
    /// Registers the picker of all groups; Err(AlreadyRegistered) the second time.
    pub fn register_peer_picker(&self, picker: Arc<dyn PeerPicker>) -> Result<()> {
        self.slot.register(Arc::new(move |_| picker.clone()))
    }
}
