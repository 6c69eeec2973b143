#!/usr/bin/env bash
# Runs a command with a PostgreSQL of its own: scripts/postgres.sh cargo nextest run
# The server lives in a temporary folder, listens on a socket there and nowhere else, and is gone when the command ends.
# OFFHOOK_TEST_POSTGRES tells the command where it is.
set -euo pipefail

bin=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
if [ -z "$bin" ]; then
  echo "PostgreSQL is missing: scripts/setup.sh --tests installs it" >&2
  exit 1
fi

folder=$(mktemp -d)
# PostgreSQL refuses to run as root.
as=()
if [ "$(id -u)" = 0 ]; then
  as=(runuser -u postgres --)
  chown postgres "$folder"
fi

stop() {
  if [ -s "$folder/db/postmaster.pid" ]; then
    pid=$(head -n 1 "$folder/db/postmaster.pid")
    # Fast shutdown: clients that are left are thrown out.
    kill -INT "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
  fi
  rm -rf "$folder"
}
trap stop EXIT

"${as[@]}" "$bin/initdb" -D "$folder/db" -U postgres -A trust -E UTF8 --locale=C --no-sync >/dev/null
# The data is thrown away: nothing has to survive a power cut.
"${as[@]}" "$bin/postgres" -D "$folder/db" -k "$folder" -c listen_addresses= -c max_connections=300 -c fsync=off \
  -c synchronous_commit=off -c full_page_writes=off >"$folder/log" 2>&1 &
for _ in $(seq 100); do
  if "$bin/pg_isready" -q -h "$folder" -U postgres; then
    break
  fi
  sleep 0.1
done
if ! "$bin/pg_isready" -q -h "$folder" -U postgres; then
  cat "$folder/log" >&2
  exit 1
fi

OFFHOOK_TEST_POSTGRES="postgres://postgres@localhost/postgres?host=$folder" "$@"
