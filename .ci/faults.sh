#!/usr/bin/env bash
# Fault tests that need root: `.ci/faults.sh`. All others run with the usual tests. Exits with 77 if
# they cannot run here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

need_namespaces
if ! command -v setpriv >/dev/null && ! install util-linux; then
    echo "SKIPPED: no setpriv"
    exit 77
fi
if [ ! -c /dev/net/tun ]; then
    echo "SKIPPED: no /dev/net/tun"
    exit 77
fi
# One at a time, because they measure.
show cargo test --locked --test faults -- --ignored --test-threads=1 needs_root
