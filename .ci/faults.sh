#!/usr/bin/env bash
# Fault tests that need root: `.ci/faults.sh`. All others run with the usual tests. Exits with 77 if
# they cannot run here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

if [ "$(id -u)" != 0 ]; then
    echo "SKIPPED: not root"
    exit 77
fi
if ! command -v setpriv >/dev/null && ! install util-linux; then
    echo "SKIPPED: no setpriv"
    exit 77
fi
show cargo test --locked --test faults -- --ignored needs_root
