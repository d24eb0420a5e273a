#!/usr/bin/env bash
# Tests of the promise of a removal between processes with networks of their own: `.ci/promise.sh`. The same
# tests on the loopback address are among the usual ones. Exits with 77 if they cannot run here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

if [ "$(id -u)" != 0 ]; then
    echo "SKIPPED: not root"
    exit 77
fi
if ! command -v ip >/dev/null && ! install iproute2; then
    echo "SKIPPED: no ip"
    exit 77
fi
probe="ldrprobe$$"
if ! ip netns add "$probe"; then
    echo "SKIPPED: no network namespaces"
    exit 77
fi
ip netns del "$probe"
show cargo test --locked --test promise -- --ignored needs_root
