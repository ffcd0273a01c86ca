//! underhill_entry
fn main() {}
