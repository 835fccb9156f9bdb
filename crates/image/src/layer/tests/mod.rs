//! Tests of the store as a whole: tars in, what Linux sees in a mounted layer out.

mod attributes;
mod hostile;
mod random;
mod store;
mod support;
mod whiteouts;
