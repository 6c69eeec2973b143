#!/usr/bin/env bash
# Installs what the build and the demo need on Debian (with `--tests`: what the tests need too). Does nothing where
# everything is there. Needs root or sudo only when something is missing.
set -euo pipefail

packages=(cmake clang libclang-dev pkg-config g++ espeak-ng)
if [ "${1:-}" = "--tests" ]; then
  packages+=(flite sox ffmpeg postgresql baresip-core linphone-cli kamailio sip-tester)
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
