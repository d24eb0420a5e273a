#!/usr/bin/env bash
# Runs the fuzz targets, two at a time: `.ci/fuzz.sh [SECONDS [TARGET...]]`, by default each for 20 s. A
# corpus grows beside the programs that it builds. Fails if a target fails: the input that it failed
# with is then printed. Exits with 77 if the targets cannot be built here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

seconds="${1:-20}"
if (($#)); then shift; fi
targets=("$@")
if ((${#targets[@]} == 0)); then
    mapfile -t targets < <(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' fuzz/Cargo.toml)
fi
# libFuzzer is written in C++.
if ! command -v c++ >/dev/null && ! install g++; then
    echo "SKIPPED: no C++ compiler"
    exit 77
fi
host="$(rustc -vV | sed -n 's/^host: //p')"
runtime="$(rustc --print target-libdir)"
if ! compgen -G "$runtime/librustc-*_rt.asan.a" >/dev/null; then
    echo "SKIPPED: this Rust has no AddressSanitizer"
    exit 77
fi

# These are the options of cargo-fuzz. They are unstable; RUSTC_BOOTSTRAP=1 allows them in a stable compiler.
flags=(--cfg larder_fuzz --cfg fuzzing -Zsanitizer=address -Ccodegen-units=1 -Cdebug-assertions)
flags+=(-Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}"
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/fuzz"
# With --target, the flags do not apply to build scripts.
show cargo build --release --locked --manifest-path fuzz/Cargo.toml --target "$host"

# Runs one target. Prints its last figures, or its whole output if it failed.
fuzz() {
    local target="$1" work="$CARGO_TARGET_DIR/run/$1"
    mkdir -p "$work/corpus"
    if "$CARGO_TARGET_DIR/$host/release/$target" -max_total_time="$seconds" -timeout=10 \
        -rss_limit_mb=2048 -artifact_prefix="$work/" "$work/corpus" >"$work/log" 2>&1; then
        echo "fuzz $target: $(grep '^Done' "$work/log"), $(grep -o 'cov: [0-9]*' "$work/log" | tail -1)"
    else
        cat "$work/log"
        echo "fuzz $target: FAILED"
        return 1
    fi
}
export -f fuzz
export seconds host
printf '%s\n' "${targets[@]}" | xargs -P 2 -I{} bash -c 'fuzz {}'
