//! The house checks itself: the tests of this crate look at the sources of all others.
