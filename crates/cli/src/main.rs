//! The `posttrain` command line.
fn main() {}
