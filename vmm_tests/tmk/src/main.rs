//! tmk
fn main() {}
