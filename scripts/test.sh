#!/usr/bin/env bash
# Sets up and runs every test: formatting, lints, unit, property and whole-call tests, those of the store on SQLite and on
# a PostgreSQL that is started for them. No input, no network beyond packages and crates.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --tests
cargo fmt --check
cargo build --locked --tests --bins
if cargo nextest --version >/dev/null 2>&1; then
  scripts/postgres.sh cargo nextest run --locked
else
  scripts/postgres.sh cargo test --locked
fi
cargo clippy --locked --all-targets --quiet -- -D warnings
