#!/usr/bin/env bash
# Sets up and runs every test: formatting, lints, unit, property and whole-call tests. No input, no network beyond
# packages and crates.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --tests
cargo fmt --check
cargo build --locked --tests --bins
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked
else
  cargo test --locked
fi
cargo clippy --locked --all-targets --quiet -- -D warnings
