#!/usr/bin/env bash
# Tests of the promise of a removal between processes with networks of their own: `.ci/promise.sh`. The same
# tests on the loopback address are among the usual ones. Exits with 77 if they cannot run here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

need_namespaces
show cargo test --locked --test promise -- --ignored needs_root
