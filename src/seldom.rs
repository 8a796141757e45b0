//! What nearly nobody has. A hundred thousand remembered people take as many empty lists: room for one is made when
//! something comes into it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;

/// A value that is empty for nearly everybody; read like the value itself.
#[derive(Clone)]
pub struct Seldom<T>(Option<Box<T>>);

/// What can be empty.
pub trait Empty: Default + 'static {
    /// The one that all share who have nothing.
    const EMPTY: &'static Self;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool;
}

impl<K: 'static, V: 'static> Empty for BTreeMap<K, V> {
    const EMPTY: &'static Self = &Self::new();

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<T: 'static> Empty for BTreeSet<T> {
    const EMPTY: &'static Self = &Self::new();

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Empty> Seldom<T> {
    /// The value, with room for something new.
    pub fn make(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }

    /// Calls `work` with what there is, and not at all where there is nothing: it may take things out or change them,
    /// not add any. Where nothing is left the room is given back.
    pub fn change(&mut self, work: impl FnOnce(&mut T)) {
        if let Some(value) = &mut self.0 {
            work(value);
            if value.is_empty() {
                self.0 = None;
            }
        }
    }

    /// Whether it takes room of its own.
    pub fn has_room(&self) -> bool {
        self.0.is_some()
    }
}

impl<T> Default for Seldom<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Empty> Deref for Seldom<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::EMPTY)
    }
}

impl<T: Empty> From<T> for Seldom<T> {
    fn from(value: T) -> Self {
        Self((!value.is_empty()).then(|| Box::new(value)))
    }
}

impl<T: Empty + FromIterator<I>, I> FromIterator<I> for Seldom<T> {
    fn from_iter<A: IntoIterator<Item = I>>(items: A) -> Self {
        items.into_iter().collect::<T>().into()
    }
}

impl<'a, T: Empty> IntoIterator for &'a Seldom<T>
where
    &'a T: IntoIterator,
{
    type Item = <&'a T as IntoIterator>::Item;
    type IntoIter = <&'a T as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        (**self).into_iter()
    }
}

/// Nothing is nothing, with room for it or without.
impl<T: Empty + PartialEq> PartialEq for Seldom<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Empty + Eq> Eq for Seldom<T> {}

impl<T: Empty + PartialEq> PartialEq<T> for Seldom<T> {
    fn eq(&self, other: &T) -> bool {
        **self == *other
    }
}

impl<T: Empty + fmt::Debug> fmt::Debug for Seldom<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_takes_no_room_and_is_equal_however_it_came_about() {
        let mut set = Seldom::<BTreeSet<u8>>::default();
        set.change(|_| panic!("there is nothing to change"));
        assert!(!set.has_room());
        assert_eq!(set, BTreeSet::new());
        assert_eq!(size_of_val(&set), size_of::<usize>());

        set.make().extend([1, 2]);
        set.change(|set| set.retain(|it| *it == 1));
        assert!(set.has_room());
        assert_eq!(set, BTreeSet::from([1]));
        assert_eq!((&set).into_iter().collect::<Vec<_>>(), [&1]);
        set.change(|set| set.retain(|_| false));

        assert!(!set.has_room());
        set.make();
        assert_eq!(set, Seldom::default());
        assert!(!Seldom::<BTreeSet<u8>>::from_iter([]).has_room());
    }
}
