//! Parses arguments, calls the library, prints the error chain.

fn main() {}
