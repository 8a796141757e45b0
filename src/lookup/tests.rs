//! Look-ups over a real store.
