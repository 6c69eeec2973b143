#!/usr/bin/env bash
# Sets up, builds, and plays a recorded caller to an agent. Arguments go to `offhook demo` (try `--call opening-hours`).
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
cargo build --release --locked
exec target/release/offhook demo "$@"
