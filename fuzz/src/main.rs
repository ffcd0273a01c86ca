//! fuzz
fn main() {}
