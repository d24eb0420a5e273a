#!/usr/bin/env bash
# A node with a cache of 16 MiB in a real cgroup of 32 MiB. Its neighbor takes 12 MiB. Checks that the
# node is not killed, gives back 8 MiB within 2 s, and is back within 60 s after the neighbor has gone.
# Needs root and a memory controller, version 1 or 2.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

BIN="$CARGO_TARGET_DIR/release/examples/memory_pressure"
LIMIT=$((32 << 20))

# Prints the folder of a new cgroup with the limit; fails if there can be none.
make_cgroup() {
    local v1 v2 cgroup name="larder-pressure-$$"
    v1="$(awk '$3 == "cgroup" && $4 ~ /(^|,)memory(,|$)/ { print $2; exit }' /proc/mounts)"
    v2="$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)"
    if [ -n "$v1" ]; then
        cgroup="$v1/$name"
        mkdir "$cgroup" && echo "$LIMIT" >"$cgroup/memory.limit_in_bytes"
    elif [ -n "$v2" ] && grep -qw memory "$v2/cgroup.controllers"; then
        cgroup="$v2/$name"
        echo +memory >"$v2/cgroup.subtree_control" || return 1
        mkdir "$cgroup" && echo "$LIMIT" >"$cgroup/memory.max" && echo 0 >"$cgroup/memory.swap.max"
    else
        return 1
    fi
    echo "$cgroup"
}

# The last line of the node, as its numbers: seconds, the group's KiB, its limit, the process's KiB.
state() {
    tail -n 1 "$LOG" | grep -o '[0-9.]*' | head -n 4 | tr '\n' ' '
}

# Waits until a condition on USED, ALLOWED and RESIDENT holds, for some seconds at most.
wait_until() {
    local seconds="$1" condition="$2" end=$((SECONDS + $1 + 1))
    while :; do
        if ! kill -0 "$NODE" 2>/dev/null; then
            echo "the node was killed"
            return 1
        fi
        read -r _ USED ALLOWED RESIDENT < <(state) || true
        if (($condition)); then return 0; fi
        if ((SECONDS >= end)); then
            echo "not within $seconds s: $condition, with $(tail -n 1 "$LOG")"
            return 1
        fi
        sleep 0.1
    done
}

if [ "$(id -u)" != 0 ] || ! CGROUP="$(make_cgroup 2>/dev/null)"; then
    echo "SKIPPED: no cgroup with a memory limit can be made here"
    exit 77
fi
LOG="$(mktemp)"
NODE=0 NEIGHBOR=0
stop() {
    local pid
    for pid in "$NODE" "$NEIGHBOR"; do
        if ((pid)); then kill -KILL "$pid" 2>/dev/null || true; fi
    done
    wait || true
    rmdir "$CGROUP" || true
    rm -f "$LOG"
}
trap stop EXIT

show cargo build --locked --release -p larder-examples --no-default-features --example memory_pressure

# In a shell that enters the cgroup and becomes the program.
enter() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    exec sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$CGROUP" "$@"
}

enter "$BIN" node 16 >"$LOG" &
NODE=$!
sleep 0.5
wait_until 20 'USED > 15000'
echo "full: $(tail -n 1 "$LOG")"
BEFORE=$RESIDENT

enter "$BIN" neighbor 12 >"$LOG.taken" &
NEIGHBOR=$!
while ! grep -q taken "$LOG.taken"; do
    kill -0 "$NEIGHBOR" 2>/dev/null || { echo "the neighbor was killed"; exit 1; }
    sleep 0.1
done
rm -f "$LOG.taken"
wait_until 2 "RESIDENT <= BEFORE - 8192"
echo "beside its neighbor: $(tail -n 1 "$LOG")"
sleep 5
wait_until 0 "RESIDENT <= BEFORE - 6000"

kill -KILL "$NEIGHBOR"
wait "$NEIGHBOR" 2>/dev/null || true
NEIGHBOR=0
wait_until 60 'ALLOWED >= 16384 && USED > 15000'
echo "alone again: $(tail -n 1 "$LOG")"
