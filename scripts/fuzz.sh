#!/bin/sh
# Throws random messages at the parsers for a while: scripts/fuzz.sh [seconds=60] [target=twilio_stream]
# Findings land in fuzz/artifacts/. Without the tools it says how to get them and fails.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
target=${2:-twilio_stream}

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzzing needs the nightly toolchain: rustup toolchain install nightly" >&2
    exit 1
fi
if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "fuzzing needs cargo-fuzz: cargo install cargo-fuzz" >&2
    exit 1
fi

# Where each line is one message: a corpus to start from, so that the first second already knows JSON.
corpus=fuzz/corpus/$target
mkdir -p "$corpus"
if [ "$target" = twilio_stream ]; then
    media='{"event":"media","sequenceNumber":"2","streamSid":"MZ1","media":{"track":"inbound","chunk":"1","timestamp":"20","payload":"//9/fw=="}}'
    dtmf='{"event":"dtmf","sequenceNumber":"3","streamSid":"MZ1","dtmf":{"track":"inbound_track","digit":"5"}}'
    mark='{"event":"mark","sequenceNumber":"4","streamSid":"MZ1","mark":{"name":"g0-1"}}'
    stop='{"event":"stop","sequenceNumber":"5","streamSid":"MZ1","stop":{"accountSid":"AC1","callSid":"CA1"}}'
    printf '%s\n' "$media" "$dtmf" "$mark" "$mark" "$stop" >"$corpus/call"
    printf '!{"event":"connected","protocol":"Call","version":"1.0.0"}\n%s\n' "$media" >"$corpus/early"
fi

exec cargo +nightly fuzz run "$target" -- "-max_total_time=$seconds" -max_len=4096 -timeout=5
