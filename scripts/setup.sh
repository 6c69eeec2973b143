#!/usr/bin/env bash
# Installs what the build and the demo need on Debian (with `--tests`: what the tests need too). Does nothing where
# everything is there. Needs root or sudo only when something is missing.
set -euo pipefail

packages=(cmake clang libclang-dev pkg-config g++ espeak-ng)
if [ "${1:-}" = "--tests" ]; then
  packages+=(flite sox ffmpeg postgresql baresip-core linphone-cli kamailio sip-tester python3 python3-venv)
fi
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  root=""
  [ "$(id -u)" = 0 ] || root="sudo"
  echo "installing: ${missing[*]}"
  $root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
command -v cargo >/dev/null || { echo "Rust is missing: install it with rustup (1.95 or newer), then run this again." >&2; exit 1; }

# The reference SDK of MCP, for tests/tool_mcp.rs, in a Python environment of its own; it is in its place when it is whole.
if [ "${1:-}" = "--tests" ]; then
  sdk="mcp==2.3.0"
  target="${CARGO_TARGET_DIR:-$(dirname "$0")/../target}"
  python="$target/mcp-python"
  if [ "$(cat "$python/made" 2>/dev/null)" != "$sdk" ] || ! "$python/bin/python" -c "import mcp" 2>/dev/null; then
    echo "installing: $sdk"
    rm -rf "$python" "$python.new"
    mkdir -p "$target"
    if python3 -m venv "$python.new" &&
      "$python.new/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "$sdk"; then
      echo "$sdk" >"$python.new/made"
      mv "$python.new" "$python"
    else
      echo "$sdk could not be installed: the tests against it are skipped" >&2
    fi
  fi
fi
