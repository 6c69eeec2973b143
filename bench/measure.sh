#!/usr/bin/env bash
# Measures the server from outside: mock engines with known delays (default), or others by
#   BENCH_STT=whisper BENCH_TTS=espeak BENCH_LLM=builtin bench/measure.sh 1 --fixture echo-100
#   BENCH_STT=scripted BENCH_TTS=scripted BENCH_LLM=scripted bench/measure.sh 200
# By SIP and RTP in place of Twilio's websocket, the second one for INVITE to 200 alone:
#   BENCH_SIP=1 BENCH_STT=scripted BENCH_TTS=scripted BENCH_LLM=scripted bench/measure.sh 200 --ramp 20
#   BENCH_SIP=1 BENCH_STT=scripted BENCH_TTS=scripted BENCH_LLM=scripted bench/measure.sh 6000 --ramp 100 --call-limit 0
# Usage: bench/measure.sh CALLS [further arguments of `offhook load`]. Prints load's report, then the server's CPU and
# memory per call and its own histograms. OFFHOOK names the program (default target/release/offhook).
set -euo pipefail
cd "$(dirname "$0")/.."
offhook=${OFFHOOK:-target/release/offhook}
calls=${1:?how many calls}
shift
export BENCH_STT=${BENCH_STT:-openai} BENCH_TTS=${BENCH_TTS:-openai} BENCH_LLM=${BENCH_LLM:-openai}
rm -rf out/bench
mkdir -p out/bench
"$offhook" mock --stt-ms "${STT_MS:-100}" --llm-ttft-ms "${LLM_MS:-150}" --llm-token-ms "${TOKEN_MS:-15}" --tts-ms "${TTS_MS:-120}" >out/bench/mock.log 2>&1 &
mock=$!
# Where the server tells of each call and its analysis.
python3 - >out/bench/sink.log 2>&1 <<'PY' &
import http.server
class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 9105), Sink).serve_forever()
PY
sink=$!
trap 'kill $mock $sink ${server:-} 2>/dev/null || true' EXIT
url=$("$offhook" --config bench/mock.toml apply bench/setup.toml --no-verify | grep -o '/webhooks/twilio/[^ ]*/voice' | head -n 1)
"$offhook" --config bench/mock.toml serve >out/bench/server.log 2>&1 &
server=$!
for _ in $(seq 100); do
  curl -fs http://127.0.0.1:8181/readyz >/dev/null 2>&1 && break
  sleep 0.1
done
ticks() { awk '{print $14 + $15}' "/proc/$server/stat"; }
rss() { awk '/VmRSS/ {print $2}' "/proc/$server/status"; }
before_cpu=$(ticks) before_rss=$(rss) began=$(date +%s.%N)
(
  peak=0
  while kill -0 $server 2>/dev/null; do
    now=$(rss 2>/dev/null || echo 0)
    [ "${now:-0}" -gt "$peak" ] && peak=$now && echo "$peak" >out/bench/peak_rss
    sleep 0.5
  done
) &
status=0
if [ -n "${BENCH_SIP:-}" ]; then
  # SIP listens when the first line with a SIP side is known.
  for _ in $(seq 100); do
    grep -qi ':143D ' /proc/net/udp && break
    sleep 0.1
  done
  way=(--sip "sip:+15550001112@127.0.0.1:5181")
else
  way=(--webhook "http://127.0.0.1:8181$url" --auth-token bench)
fi
"$offhook" load "${way[@]}" --calls "$calls" --json out/bench/load.json --html out/bench/load.html "$@" || status=$?
after_cpu=$(ticks) ended=$(date +%s.%N)
# What comes after the last calls is under way.
sleep 3
curl -fs http://127.0.0.1:8181/metrics >out/bench/metrics.txt
peak=$(cat out/bench/peak_rss)
awk -v cpu=$((after_cpu - before_cpu)) -v hz="$(getconf CLK_TCK)" -v began="$began" -v ended="$ended" -v calls="$calls" \
  -v rss0="$before_rss" -v rss1="$peak" -v json=out/bench/load.json 'BEGIN {
    s = cpu / hz
    printf "server: %.1f CPU-seconds in %.1f s, memory %.1f MB idle, %.1f MB at most: %.2f MB a call\n", s, ended - began, rss0 / 1024, rss1 / 1024, (rss1 - rss0) / 1024 / calls
  }'
python3 - <<'PY'
import re, collections
buckets = collections.defaultdict(list)
for line in open("out/bench/metrics.txt"):
    m = re.match(r'(offhook_(?:tick_lateness|turn_latency|turn_added|barge_in|stt_final|llm_first_token|tts_first_audio)_seconds)_bucket\{(?:.*,)?le="([^"]+)"\} (\d+)', line)
    if m: buckets[m[1]].append((float(m[2]), int(m[3])))
for name, rows in sorted(buckets.items()):
    rows.sort(); total = rows[-1][1]
    if not total: continue
    at = lambda q: next(le for le, n in rows if n >= q * total)
    print(f"server: {name}: n={total} p50<={at(.5)*1000:g} p95<={at(.95)*1000:g} p99<={at(.99)*1000:g} ms")
for name in ("offhook_call_analysis_total", "offhook_webhook_out_total"):
    counts = re.findall(name + r'\{(.*)\} (\d+)', open("out/bench/metrics.txt").read())
    print(f"server: {name}:", ", ".join(f"{count} ({labels})" for labels, count in counts) or "none")
PY
exit $status
