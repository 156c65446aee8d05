#!/usr/bin/env bash
# Starts a Ray cluster over ssh and waits until all nodes have joined. It stays until stop.sh; a second start starts what
# has ended meanwhile.
#   cluster/ssh/start.sh HOSTS
# HOSTS has a line for each node, the head first: [user@]address, then what it offers (by default all that it has):
#   10.0.0.1  cpus=0
#   10.0.0.2  train=8 label:kind=train       roles as in `resources.roles`
#   10.0.0.3  cpus=30 gpus=0 data=30
# More for a node: address=ADDRESS, where Ray would choose another; agent=PORT, where another Ray has the usual one.
#   TIPS_BIN             folder with tips-ray on every host (tips-ray/.venv/bin below the home)
#   TIPS_PORT            port of the head (6379)
#   TIPS_START_SECONDS   longest wait for all nodes (300)
#   TIPS_SSH             command (ssh -o BatchMode=yes)
# A new token is made once and kept in ~/.tips-ray here and on every host; it goes through ssh alone, never as an argument.
set -euo pipefail
umask 077

hosts_file=${1:?give the file with the hosts}
here=$(cd "$(dirname "$0")" && pwd)
port=${TIPS_PORT:-6379}
seconds=${TIPS_START_SECONDS:-300}
read -ra ssh <<<"${TIPS_SSH:-ssh -o BatchMode=yes}"

lines=()
while read -r line; do lines+=("$line"); done < <(sed 's/#.*//' "$hosts_file" | grep -v '^[[:space:]]*$')
[ "${#lines[@]}" -gt 0 ] || { echo "error: $hosts_file names no host" >&2; exit 2; }
read -r head_host _ <<<"${lines[0]}"

token_file=~/.tips-ray/token-${head_host##*@}-$port
mkdir -p ~/.tips-ray
[ -s "$token_file" ] || head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$token_file"

offers() { # what the words of a node say, as variables of node.sh in `given`
    local host=$1 resources='' labels='' word
    shift
    given=()
    for word in "$@"; do
        case $word in
            cpus=* | gpus=* | address=*) given+=("TIPS_$(tr '[:lower:]' '[:upper:]' <<<"${word%%=*}")=${word#*=}") ;;
            agent=*) given+=(TIPS_AGENT_PORT="${word#*=}") ;;
            label:*=*) labels+="${labels:+,}${word#label:}" ;;
            train=* | data=* | caption=*) resources+="${resources:+, }\"${word%%=*}\": ${word#*=}" ;;
            *) echo "error: $hosts_file: $host has $word; known are cpus, gpus, train, data, caption, label:KEY," \
                "address, agent, each with =" >&2 && exit 2 ;;
        esac
    done
    [ -z "$resources" ] || given+=(TIPS_RESOURCES="{$resources}")
    [ -z "$labels" ] || given+=(TIPS_LABELS="$labels")
}

start_node() { # number, host, what it offers
    local rank=$1 host=$2
    shift
    offers "$@"
    given+=(TIPS_RANK="$rank" TIPS_NODES="${#lines[@]}" TIPS_HEAD="${head_host##*@}" TIPS_PORT="$port")
    given+=(TIPS_START_SECONDS="$seconds" TIPS_BIN="${TIPS_BIN:-tips-ray/.venv/bin}" TIPS_PLACE="${host##*@}-$port")
    {
        printf 'export %q\n' "${given[@]}"
        printf 'TOKEN=%q\n' "$(cat "$token_file")"
        printf 'NODE=%q\n' "$(cat "$here/../nodes/node.sh")"
        cat "$here/remote.sh"
    } | "${ssh[@]}" "$host" bash -s
}

for line in "${lines[@]}"; do # mistakes are told before anything starts
    read -ra words <<<"$line"
    offers "${words[@]}"
done
rank=0
for line in "${lines[@]}"; do
    read -ra words <<<"$line"
    start_node "$rank" "${words[@]}"
    rank=$((rank + 1))
done

place="\$HOME/.tips-ray/${head_host##*@}-$port"
deadline=$((SECONDS + seconds + 60))
until said=$("${ssh[@]}" "$head_host" "cat $place/log") && grep -q "all ${#lines[@]} nodes have joined" <<<"$said"; do
    if ! "${ssh[@]}" "$head_host" "kill -0 \$(cat $place/pid)" 2>/dev/null || [ "$SECONDS" -ge "$deadline" ]; then
        echo "$said" >&2
        echo "error: not all nodes have joined; each host has its words in ~/.tips-ray/*-$port/log" >&2
        exit 1
    fi
    sleep 1
done
echo "${#lines[@]} nodes have joined. On the head:"
echo "  export RAY_ADDRESS=${head_host##*@}:$port RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$place/token"
echo "  tips-ray pretrain RUN.yaml --supervise"
