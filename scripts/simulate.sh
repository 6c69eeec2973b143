#!/usr/bin/env bash
# The whole way of a company's call without an account anywhere: a simulated Twilio, `apply` (credentials tried, webhooks
# written), the server, a recorded caller who rings, and what is known of the call afterwards.
#   scripts/simulate.sh [CALLER=booking]        a folder of audio-fixtures/
# Everything listens on 127.0.0.1 (8090, 9300, 9301), lives in out/simulate/ and is stopped at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in curl python3; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install $tool" >&2; exit 1; }
done
offhook=${OFFHOOK:-target/release/offhook}
caller=${1:-booking}
if [ ! -x "$offhook" ]; then
  scripts/setup.sh
  cargo build --release --locked --bin offhook
fi
folder=out/simulate
rm -rf "$folder"
mkdir -p "$folder"
export OFFHOOK_SECURITY__ADMIN_TOKEN
OFFHOOK_SECURITY__ADMIN_TOKEN=$(head -c 24 /dev/urandom | base64)
cat >"$folder/offhook.toml" <<TOML
[server]
listen = "127.0.0.1:8090"
public_url = "http://127.0.0.1:8090"
[store]
url = "sqlite://$folder/offhook.db"
[recording]
enabled = true
dir = "$folder/recordings"
[telemetry]
log = "warn"
TOML
cat >"$folder/setup.toml" <<'TOML'
[[company]]
name = "Oak Garden"
[[integration]]
company = "Oak Garden"
name = "Main"
provider = "twilio"
account_sid = "AC00000000000000000000000000000001"
auth_token = "0123456789abcdef0123456789abcdef"
api_base = "http://127.0.0.1:9300"
[[agent]]
company = "Oak Garden"
name = "Front desk"
greeting = "Hello, Oak Garden, how can I help you?"
workflow = "../../workflows/front-desk.toml"
tools = ["make_call", "send_sms", "get_call_history"]
[[line]]
integration = "Main"
number = "+15550001111"
agent = "Front desk"
TOML
started=()
stop() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait
}
trap stop EXIT
wait_for() { # URL
  for _ in $(seq 100); do curl -fs -o "$folder/answer" "$1" && return; sleep 0.1; done
  echo "nothing answers at $1; see $folder/*.log" >&2
  return 1
}
api() { curl -fsS -H "Authorization: Bearer $OFFHOOK_SECURITY__ADMIN_TOKEN" "http://127.0.0.1:8090/api/v1/$1"; }
field() { python3 -c "import json, sys; print(json.load(sys.stdin)$1)"; }

"$offhook" mock --listen 127.0.0.1:9301 --twilio 127.0.0.1:9300 --twilio-account-sid AC00000000000000000000000000000001 \
  --twilio-auth-token 0123456789abcdef0123456789abcdef --twilio-number +15550001111 \
  --twilio-caller "audio-fixtures/$caller" >"$folder/mock.log" 2>&1 &
started+=($!)
wait_for http://127.0.0.1:9300/mock/requests
echo "== apply"
"$offhook" --config "$folder/offhook.toml" apply "$folder/setup.toml"
"$offhook" --config "$folder/offhook.toml" serve >"$folder/serve.log" 2>&1 &
started+=($!)
wait_for http://127.0.0.1:8090/readyz
echo "== a caller rings: $caller"
curl -fsS http://127.0.0.1:9300/simulate/call -H 'content-type: application/json' \
  -d '{"from":"+15550002222","to":"+15550001111"}'
echo
company=$(api companies | field '["items"][0]["id"]')
for _ in $(seq 120); do
  ended=$(api "calls?company_id=$company" | field '["items"][0].get("ended_at")' 2>/dev/null || true)
  [ -n "$ended" ] && [ "$ended" != None ] && break
  sleep 1
done
call=$(api "calls?company_id=$company" | field '["items"][0]["id"]')
echo "== what was said"
api "calls/$call/transcript" | python3 -c "
import json, sys
for line in json.load(sys.stdin)['lines']:
    print('  %6.1f  %-7s %s' % (line['start_ms'] / 1000, line['who'], line['text']))"
echo "== the call"
api "calls/$call" | python3 -m json.tool | sed -n 1,40p
echo "recording: $folder/recordings/$call/call.wav   docs: http://127.0.0.1:8090/api/docs (while it runs)"
