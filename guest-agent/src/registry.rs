//! Named things that take a while to make.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::error::Error;
use crate::sync::lock;

/// Longest id, in bytes; containerd's own limit is 76.
const MAX_ID: usize = 255;

/// The things of one kind, by id. An id is taken from the moment something starts to
/// be made under it.
#[derive(Debug)]
pub struct Registry<T> {
    kind: &'static str,
    slots: Mutex<HashMap<String, Option<Arc<T>>>>,
}

/// A taken id: give it up by dropping, or [fill](Reservation::fill) it.
#[derive(Debug)]
pub struct Reservation<'a, T> {
    registry: &'a Registry<T>,
    id: &'a str,
}

impl<T> Registry<T> {
    /// An empty one; `kind` is what errors call its contents.
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            slots: Mutex::default(),
        }
    }

    /// Takes `id`, which must be a plain file name: cgroups are named after it.
    pub fn reserve<'a>(&'a self, id: &'a str) -> Result<Reservation<'a, T>, Error> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if id.is_empty() || id.len() > MAX_ID || id.starts_with('.') || !id.bytes().all(plain) {
            return Err(Error::Id {
                kind: self.kind,
                id: id.into(),
            });
        }
        let mut slots = lock(&self.slots);
        if slots.contains_key(id) {
            return Err(Error::Exists {
                kind: self.kind,
                id: id.into(),
            });
        }
        slots.insert(id.into(), None);
        Ok(Reservation { registry: self, id })
    }

    /// The thing called `id`.
    pub fn get(&self, id: &str) -> Result<Arc<T>, Error> {
        match lock(&self.slots).get(id) {
            Some(Some(found)) => Ok(Arc::clone(found)),
            Some(None) => Err(Error::State {
                kind: self.kind,
                id: id.into(),
                why: "it is still being made".into(),
            }),
            None => Err(Error::NotFound {
                kind: self.kind,
                id: id.into(),
            }),
        }
    }

    /// Forgets `id`.
    pub fn remove(&self, id: &str) {
        lock(&self.slots).remove(id);
    }
}

impl<T> Reservation<'_, T> {
    /// Puts `thing` under the reserved id.
    pub fn fill(self, thing: T) -> Arc<T> {
        let thing = Arc::new(thing);
        lock(&self.registry.slots).insert(self.id.into(), Some(Arc::clone(&thing)));
        thing
    }
}

impl<T> Drop for Reservation<'_, T> {
    fn drop(&mut self) {
        let mut slots = lock(&self.registry.slots);
        if slots.get(self.id).is_some_and(Option::is_none) {
            slots.remove(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_while_its_thing_is_being_made() {
        let registry = Registry::<u8>::new("thing");
        let reservation = registry.reserve("a").unwrap();
        assert!(matches!(registry.reserve("a"), Err(Error::Exists { .. })));
        assert!(matches!(registry.get("a"), Err(Error::State { .. })));
        reservation.fill(7);
        assert_eq!(*registry.get("a").unwrap(), 7);
        assert!(matches!(registry.reserve("a"), Err(Error::Exists { .. })));
        registry.remove("a");
        assert!(matches!(registry.get("a"), Err(Error::NotFound { .. })));
    }

    #[test]
    fn a_failed_making_frees_the_id() {
        let registry = Registry::<u8>::new("thing");
        drop(registry.reserve("a").unwrap());
        assert!(matches!(registry.get("a"), Err(Error::NotFound { .. })));
    }

    #[test]
    fn ids_are_plain_names() {
        let registry = Registry::<u8>::new("thing");
        for id in [
            "",
            ".",
            "..",
            ".a",
            "a/b",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(256),
        ] {
            assert!(
                matches!(registry.reserve(id), Err(Error::Id { .. })),
                "{id:?} was accepted"
            );
        }
        for id in ["a", "a.b-c_1", "0123456789abcdef"] {
            assert!(registry.reserve(id).is_ok(), "{id:?} was refused");
        }
    }
}
