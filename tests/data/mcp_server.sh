# A small MCP server over standard input and output, for tests: `sh mcp_server.sh FOLDER`. It notes each start, with its
# process id, in FOLDER/starts. What a tool does is in its name.
echo "$$" >> "$1/starts"
echo "a token of mine is $CRM_TOKEN" >&2
read_only='"annotations":{"readOnlyHint":true}'
tools=''
for name in env die mute flood ping ask; do
  tools="$tools{\"name\":\"$name\",\"inputSchema\":{\"type\":\"object\"},$read_only},"
done
text() { printf '{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"%s"}]}}\n' "$id" "$1"; }
while read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  case "$line" in
  *'"initialize"'*)
    printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},' "$id"
    printf '"serverInfo":{"name":"sh","version":"1"}}}\n'
    ;;
  *'"tools/list"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"tools":[%s]}}\n' "$id" "${tools%,}" ;;
  *'"notifications/cancelled"'*) echo "$line" >> "$1/cancelled" ;;
  *'"name":"env"'*) text "$(env | sort | cut -d = -f 1 | tr '\n' ' ') token $CRM_TOKEN" ;;
  *'"name":"die"'*) exit 3 ;;
  *'"name":"mute"'*) ;;
  *'"name":"flood"'*) head -c 3000000 /dev/zero | tr '\0' 'x'; echo; text "after the flood" ;;
  *'"name":"ask"'*)
    # Nobody reads the answers: there are more of them than a pipe holds.
    yes '{"jsonrpc":"2.0","id":78,"method":"ping"}' | head -n 20000
    text "asked enough"
    ;;
  *'"name":"ping"'*)
    printf '{"jsonrpc":"2.0","id":77,"method":"ping"}\n'
    read -r line
    case "$line" in *'"id":77'*'"result"'*|*'"result"'*'"id":77'*) text "it answered" ;; *) text "no answer" ;; esac
    ;;
  esac
done
# Nobody asks any more, and it stays, with a process of its own.
trap '' TERM
sleep 1000 &
echo "$!" >> "$1/starts"
wait
