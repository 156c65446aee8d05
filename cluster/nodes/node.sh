#!/usr/bin/env bash
# One node of a Ray cluster that trains one run. Every node runs this script with a command; rank 0 is the head: it starts
# Ray, waits for the other nodes, runs the command and ends with its exit code. The others stay while the head does.
#
#   TIPS_RANK, TIPS_NODES    number of this node from 0, and of all nodes
#   TIPS_HEAD                address of the head
#   TIPS_PORT                port of the head (6379)
#   TIPS_ADDRESS             address of this node, where Ray would choose another
#   TIPS_CPUS, TIPS_GPUS     what the node offers; all that it has by default
#   TIPS_RESOURCES           roles of the node as JSON: {"train": 8}
#   TIPS_LABELS              labels of the Ray node: kind=train,zone=a
#   TIPS_AGENT_PORT          port of Ray's agent, where another Ray has the usual one
#   TIPS_START_SECONDS       longest wait for the head and for the other nodes (3600)
#   TIPS_POLL_SECONDS        how often a node looks for the head; it leaves after four looks without an answer (5)
#   RAY_AUTH_MODE, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH: the same token on all nodes
#
# SIGTERM and SIGUSR1: the head passes them on as SIGTERM, so that the run saves, and ends with 75, "stopped and saved".
# SIGTERM to another node: Ray drains it, and it ends with 75. A run that was stopped without a signal (`tips-ray runs stop`) ends with 0,
# because a scheduler would start it again.
set -u

port=${TIPS_PORT:-6379}
seconds=${TIPS_START_SECONDS:-3600}
poll=${TIPS_POLL_SECONDS:-5}
signalled=''
ray='' main=''
log=$(mktemp) # what Ray says while it starts and ends

say() {
    echo "node $TIPS_RANK: $*" >&2
}

start_ray() { # with more arguments; Ray then runs in the background
    local given=(--block --disable-usage-stats) try
    [ -n "${TIPS_ADDRESS:-}" ] && given+=(--node-ip-address="$TIPS_ADDRESS")
    [ -n "${TIPS_CPUS:-}" ] && given+=(--num-cpus="$TIPS_CPUS")
    [ -n "${TIPS_GPUS:-}" ] && given+=(--num-gpus="$TIPS_GPUS")
    [ -n "${TIPS_RESOURCES:-}" ] && given+=(--resources="$TIPS_RESOURCES")
    [ -n "${TIPS_LABELS:-}" ] && given+=(--labels="$TIPS_LABELS")
    [ -n "${TIPS_AGENT_PORT:-}" ] && given+=(--dashboard-agent-listen-port="$TIPS_AGENT_PORT")
    for try in 1 2 3 4 5; do # the head may be busy
        ray start "${given[@]}" "$@" >"$log" 2>&1 &
        ray=$!
        until grep -q 'Ray runtime started' "$log" || ! kill -0 "$ray" 2>/dev/null; do pause 0.3; done
        [ -n "$signalled" ] && kill -TERM "$ray" 2>/dev/null && return 75
        kill -0 "$ray" 2>/dev/null && return 0
        say "Ray did not start (try $try of 5)"
        pause "$try"
    done
    tail -n 20 "$log" >&2
    say "Ray does not start; the reason stands above"
    return 1
}

ended() { # wait for a process through signals, return its exit code
    while kill -0 "$1" 2>/dev/null; do wait "$1"; done
    wait "$1"
}

end_ray() { # at once, as nothing is left to be saved: SIGTERM would wait for actors; Ray's reaper ends its processes
    { kill -KILL "$ray" && wait "$ray"; } 2>/dev/null
}

head_answers() {
    timeout 5 bash -c "exec 3<>'/dev/tcp/$TIPS_HEAD/$port'" 2>/dev/null
}

pause() { # a signal ends it
    sleep "$1" &
    wait $!
}

# shellcheck disable=SC2329
on_signal() { # of the trap below
    signalled=1
    [ -n "$main" ] && kill -TERM "$main" 2>/dev/null
}

await_head() {
    local deadline=$((SECONDS + seconds))
    until head_answers; do
        [ -n "$signalled" ] && return 75
        if [ "$SECONDS" -ge "$deadline" ]; then
            say "the head at $TIPS_HEAD:$port has not answered for $seconds s"
            return 1
        fi
        pause "$poll"
    done
}

await_nodes() {
    exec python - "$TIPS_HEAD:$port" "$TIPS_NODES" "$seconds" <<'END'
import sys, time
import ray

address, wanted, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address=address, logging_level="ERROR", log_to_driver=False)
deadline, told = time.monotonic() + seconds, -1
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if there != told:
        print(f"head: {there} of {wanted} nodes have joined", file=sys.stderr, flush=True)
        told = there
    if time.monotonic() > deadline:
        sys.exit(f"head: only {there} of {wanted} nodes have joined in {seconds:.0f} s; see the logs of the others")
    time.sleep(1)
print(f"head: all {wanted} nodes have joined", file=sys.stderr, flush=True)
END
}

run_head() {
    local code
    start_ray --head --port="$port"
    code=$?
    if [ "$code" = 0 ]; then
        await_nodes &
        main=$!
        ended "$main"
        code=$?
    fi
    if [ "$code" = 0 ] && [ -z "$signalled" ]; then
        RAY_ADDRESS="$TIPS_HEAD:$port" "$@" &
        main=$!
        [ -n "$signalled" ] && kill -TERM "$main" 2>/dev/null
        ended "$main"
        code=$?
    fi
    end_ray
    [ -n "$signalled" ] && [ "$code" -ne 0 ] && return 75
    [ "$code" = 75 ] && say "the run was stopped; the same job goes on with it" && return 0
    return "$code"
}

run_other() {
    local missed=0
    await_head || return
    start_ray --address="$TIPS_HEAD:$port" || return
    main=$ray
    while kill -0 "$ray" 2>/dev/null && [ -z "$signalled" ] && [ "$missed" -lt 4 ]; do
        pause "$poll"
        if head_answers; then missed=0; else missed=$((missed + 1)); fi
    done
    if [ -n "$signalled" ]; then
        ended "$ray"
        return 75
    fi
    if [ "$missed" -lt 4 ] && head_answers; then
        tail -n 20 "$log" >&2
        say "Ray has ended here; the reason stands above"
        return 1
    fi
    end_ray
    return 0 # the head has ended: its exit code is the job's
}

{ # read as a whole before it runs, because bash reads on in a file that may have changed for days
    trap 'rm -f "$log"' EXIT
    trap on_signal TERM INT HUP USR1
    if [ "$TIPS_RANK" = 0 ]; then
        run_head "$@"
    else
        trap : USR1 # the run is about to be saved; the head ends it
        run_other
    fi
    exit
}
