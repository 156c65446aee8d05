# What start.sh runs on each host, after the variables of the node.
set -eu
umask 077
cd
place=$HOME/.tips-ray/$TIPS_PLACE
mkdir -p "$place"
if [ -s "$place/pid" ] && kill -0 "$(cat "$place/pid")" 2>/dev/null; then
    echo "$TIPS_PLACE: runs already"
    exit
fi
PATH=$(cd "$TIPS_BIN" && pwd):$PATH
command -v tips-ray >/dev/null || { echo "error: $TIPS_PLACE has no tips-ray in $TIPS_BIN; set TIPS_BIN" >&2; exit 2; }
printf %s "$TOKEN" >"$place/token"
printf '%s\n' "$NODE" >"$place/node.sh"
export PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$place/token"
setsid nohup bash "$place/node.sh" sleep infinity >"$place/log" 2>&1 </dev/null &
echo "$!" >"$place/pid"
echo "$TIPS_PLACE: starts"
