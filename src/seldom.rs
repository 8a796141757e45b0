//! What nearly nobody has. A hundred thousand remembered people take as many empty lists: room for one is made when
//! something comes into it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Deref, DerefMut};

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

impl<T> Seldom<T> {
    /// The value for a change that needs no room of its own: `None` where there is nothing.
    pub fn present(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
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

/// Makes room.
impl<T: Empty> DerefMut for Seldom<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
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
        assert!(set.present().is_none());
        assert_eq!(set, BTreeSet::new());
        assert_eq!(size_of_val(&set), size_of::<usize>());

        set.insert(1);
        assert_eq!(set, BTreeSet::from([1]));
        assert_eq!(set.iter().collect::<Vec<_>>(), [&1]);
        set.remove(&1);

        assert_eq!(set, Seldom::default());
        assert!(Seldom::<BTreeSet<u8>>::from_iter([]).present().is_none());
    }
}
