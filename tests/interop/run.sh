#!/usr/bin/env bash
# Go and larder in one cluster: installs missing packages, builds, and runs the tests of this folder.
# `tests/interop/run.sh`, or some tests of the cluster: `tests/interop/run.sh keys:: load::`.
#
# Needs cargo, and Debian's golang and golang-github-golang-groupcache-dev, which it installs as root.
# Without them it prints SKIPPED and exits with 77. Takes about two minutes, and less than five with
# everything to build.
#
#   LARDER_INTEROP_CASES    cases of the comparison with net/url (1000000)
#   LARDER_INTEROP_SEED     its seed (1)
#   LARDER_INTEROP_SECONDS  length of the load (30)
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here/../.."
GOCODE=/usr/share/gocode

skip() {
    echo "SKIPPED: $1"
    exit 77
}

have_go() {
    command -v go >/dev/null && [ -d "$GOCODE/src/github.com/golang/groupcache" ]
}

if ! have_go; then
    command -v apt-get >/dev/null || skip "no Go with groupcache here, and no apt-get to install them"
    [ "$(id -u)" = 0 ] || skip "no Go with groupcache here, and only root can install them"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || true
    apt-get install -y -qq --no-install-recommends golang golang-github-golang-groupcache-dev >/dev/null ||
        skip "golang and golang-github-golang-groupcache-dev cannot be installed"
    have_go || skip "the packages have no Go with groupcache"
fi

work="$(mktemp -d)"
running=

# Ends the command of `count` with all its processes.
end_running() {
    if [ -n "$running" ]; then kill -KILL -- "-$running" 2>/dev/null || true; fi
    running=
}
trap 'end_running; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

echo "== build: $(go version), $(cargo --version)"
export CARGO_TERM_COLOR=never
target="$(cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')"
(cd "$here/go" && GO111MODULE=off GOPATH="$GOCODE" GOFLAGS='' GOCACHE="$target/gocache" go build -o "$work/interop" .)
# With all features, so that the builds for the other tests are used again.
cargo build --quiet --locked --all-features --example interop_node
cp "$target/debug/examples/interop_node" "$work/"
cargo test --quiet --locked --all-features --no-run --lib --test interop
export LARDER_INTEROP_GO="$work/interop" LARDER_INTEROP_NODE="$work/interop_node"

passed=0 failed=0

# Runs a command, shows what it prints, and adds up the tests that it counts.
count() {
    local code=0 counts
    # A job of its own, so that it can be ended as a whole. `wait` returns when a signal arrives.
    set -m
    {
        timeout --foreground --kill-after=5 240 "$@" 2>&1 | tee "$work/log"
    } &
    running=$!
    set +m
    wait "$running" || code=$?
    end_running
    counts="$(sed -n 's/^test result:.* \([0-9]*\) passed; \([0-9]*\) failed;.*/\1 \2/p' "$work/log")"
    # It ended without a count, or it failed and counted no failure.
    if [ -z "$counts" ] || { [ "$code" != 0 ] && [ "${counts#* }" = 0 ]; }; then
        counts="${counts:-0 0}"
        counts="${counts% *} 1"
    fi
    passed=$((passed + ${counts% *})) failed=$((failed + ${counts#* }))
}

echo "== ring vectors are those of Go"
if "$work/interop" vectors | cmp - "$here/ring-vectors.json"; then
    passed=$((passed + 1))
else
    failed=$((failed + 1))
    echo "generate them again: the Go program's \`vectors > tests/interop/ring-vectors.json\`"
fi

echo "== paths and keys, by net/url and by larder"
count cargo test --locked --all-features --lib -- --ignored --nocapture wire::differential

echo "== one cluster"
# A network namespace has addresses besides 127.0.0.1, and no other load. All its processes end with
# the first.
# shellcheck disable=SC2016 # for the inner shell
in_namespace='ip link set lo up && ip addr add 10.99.0.1/32 dev lo && ip addr add 10.99.0.2/32 dev lo &&
    LARDER_INTEROP_ADDRESSES="10.99.0.1 10.99.0.2" exec "$@"'
inside=(unshare --net --pid --fork --kill-child --mount-proc sh -c "$in_namespace" sh)
if ! "${inside[@]}" true 2>/dev/null; then
    echo "no namespaces here: on the loopback address"
    inside=()
fi
count "${inside[@]}" cargo test --locked --all-features --test interop -- --ignored --nocapture --test-threads=1 "$@"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
