#!/usr/bin/env bash
# Ends the Ray cluster that start.sh has started, the head last. Stop its runs before (`tips-ray runs stop`): they save.
#   cluster/ssh/stop.sh HOSTS
# Only processes that start.sh has started are ended, not another Ray of the same hosts. TIPS_PORT, TIPS_SSH: as in start.sh.
set -euo pipefail

hosts_file=${1:?give the file with the hosts}
port=${TIPS_PORT:-6379}
read -ra ssh <<<"${TIPS_SSH:-ssh -o BatchMode=yes}"

# shellcheck disable=SC2329
end_node() { # sent to the host
    place=$HOME/.tips-ray/$1
    [ -s "$place/pid" ] || exit 0
    pid=$(cat "$place/pid")
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 300); do
        kill -0 "$pid" 2>/dev/null || { rm -f "$place/pid" && echo "$1: has ended" && exit 0; }
        sleep 1
    done
    echo "error: $1: process $pid has not ended for 300 s" >&2
    exit 1
}

failed=0
while read -r host _; do
    { declare -f end_node && printf 'end_node %q\n' "${host##*@}-$port"; } | "${ssh[@]}" "$host" bash -s || failed=1
done < <(sed 's/#.*//' "$hosts_file" | grep -v '^[[:space:]]*$' | tac)
exit "$failed"
