#!/usr/bin/env bash
# Nodes for small boards in cgroups of 32 MiB: a cache of 16 MiB and 64 peers, under 64 clients that keep
# their connections, and 500 hostile connections. Checks that no node is killed, and that no get fails.
#
#   .ci/small.sh [SECONDS [glibc]]     60 by default
#
# One node is linked to glibc, with its default arenas; the other is static, on musl, if .ci/boards.sh can
# build it, which takes minutes the first time. Both run at the same time; with `glibc`, the first alone.
# Needs root and a memory controller, version 1 or 2: version 2 counts the buffers of TCP connections,
# version 1 does not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

SECONDS_EACH="${1:-60}"
LIMIT=$((32 << 20))
DYNAMIC="$CARGO_TARGET_DIR/release/examples/board"
MUSL=x86_64-unknown-linux-musl
STATIC="${BOARDS:-$PWD/target/boards}/target/$MUSL/release/examples/board"

# Sets VERSION and PARENT, the folder of the memory controller.
find_controller() {
    PARENT="$(awk '$3 == "cgroup" && $4 ~ /(^|,)memory(,|$)/ { print $2; exit }' /proc/mounts)"
    VERSION=1
    if [ -n "$PARENT" ]; then return; fi
    PARENT="$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)"
    VERSION=2
    [ -n "$PARENT" ] && grep -qw memory "$PARENT/cgroup.controllers"
    echo +memory >"$PARENT/cgroup.subtree_control"
}

# Prints the folder of a new cgroup with the limit.
make_cgroup() {
    local cgroup="$PARENT/larder-small-$$-$1"
    mkdir "$cgroup"
    if [ "$VERSION" = 1 ]; then
        echo "$LIMIT" >"$cgroup/memory.limit_in_bytes"
        # Without swap, where the system counts it.
        echo "$LIMIT" >"$cgroup/memory.memsw.limit_in_bytes" || true
    else
        echo "$LIMIT" >"$cgroup/memory.max" && echo 0 >"$cgroup/memory.swap.max"
    fi
    echo "$cgroup"
}

peak() {
    local kib
    kib=$(($(cat "$1/memory.max_usage_in_bytes" 2>/dev/null || cat "$1/memory.peak") >> 10))
    echo "peak of the cgroup (version $VERSION) $kib KiB"
}

# Runs one node under the load. $1 is its name, $2 its program, $3 the third byte of its port.
attack() {
    local name="$1" program="$2" port="$3" cgroup node peers=127.0.0.2 log="$DIR/$1" failed=0
    cgroup="$(make_cgroup "$name")"
    # A shell that enters the cgroup and becomes the node.
    # shellcheck disable=SC2016 # expanded by the inner shell
    sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$cgroup" \
        "$program" node "127.0.0.1:$port" "$peers:$((port + 1))" >"$log" 2>&1 &
    node=$!
    until grep -q listening "$log"; do
        kill -0 "$node" 2>/dev/null || { cat "$log"; return 1; }
        sleep 0.1
    done
    "$DYNAMIC" load "127.0.0.1:$port" "$peers:$((port + 1))" "$SECONDS_EACH" >"$log.load" 2>&1 || failed=1
    if ! kill -0 "$node" 2>/dev/null; then
        echo "$name: the node was killed"
        failed=1
    fi
    kill -KILL "$node" 2>/dev/null || true
    wait "$node" 2>/dev/null || true
    if grep -E '^(wrong|failed)' "$log" | head -n 5 | grep .; then failed=1; fi
    echo "$name: $(peak "$cgroup"); $(grep connections, "$log" | tail -n 1)"
    echo "$name: $(tail -n 5 "$log.load")"
    rmdir "$cgroup"
    return "$failed"
}

if [ "$(id -u)" != 0 ] || ! find_controller 2>/dev/null; then
    echo "SKIPPED: no cgroup with a memory limit can be made here"
    exit 77
fi
DIR="$(mktemp -d)"
trap 'rm -rf "$DIR"' EXIT
BUILD=(build --release -p larder-examples --no-default-features --features http --example board)
show cargo "${BUILD[@]}" --locked
if [ "${2:-}" != glibc ] && .ci/boards.sh setup "$MUSL"; then
    show .ci/boards.sh cargo "$MUSL" "${BUILD[@]}"
else
    STATIC=
fi
PORT=$((20000 + RANDOM % 10000))
attack glibc "$DYNAMIC" "$PORT" &
GLIBC=$! FAILED=0
if [ -n "$STATIC" ]; then attack musl "$STATIC" "$((PORT + 2))" || FAILED=1; fi
wait "$GLIBC" || FAILED=1
exit "$FAILED"
