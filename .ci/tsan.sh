#!/usr/bin/env bash
# Runs the test suites under ThreadSanitizer, with an instrumented standard library: `.ci/tsan.sh
# [SUITE...]`, by default lib, group and http. Fails if there is a data race. A test that fails for
# another reason is only shown, because the limits of some tests are too short for a program that runs
# ten times slower. Takes 20 minutes, so it is not a step of `.ci/run`.
#
# The compiler and the source of its standard library are Debian's, unpacked beside the build and not
# installed. Exits with 77 if they cannot be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

work="$CARGO_TARGET_DIR/tsan"
root="$work/root"
suites=("$@")
if ((${#suites[@]} == 0)); then suites=(lib group http); fi

# Unpacks the newest of Debian's Rust packages, and the LLVM that it needs.
unpack() {
    local version minor llvm package
    command -v apt-get >/dev/null || return 1
    apt-get update -qq || true
    version="$(apt-cache madison rustc-web | awk '{ print $3 }' | sort -V | tail -1)"
    minor="$(grep -o '^[0-9]*\.[0-9]*' <<<"$version")" || return 1
    llvm="$(apt-cache show "libstd-rust-web-$minor=$version" | grep -o 'libllvm[0-9]*' | head -1)" || return 1
    mkdir -p "$work/packages"
    (
        cd "$work/packages"
        apt-get download "rustc-web=$version" "libstd-rust-web-dev=$version" "rust-web-src=$version" \
            "libstd-rust-web-$minor=$version" "$llvm" "libclang-rt-${llvm#libllvm}-dev"
        for package in *.deb; do dpkg-deb -x "$package" "$root"; done
    ) || return 1
    rm -r "$work/packages"
    # Where cargo looks for the source, and rustc for the runtime.
    rm -rf "$root/usr/lib/rustlib/src"
    mkdir -p "$root/usr/lib/rustlib/src/rust"
    ln -s "$(compgen -G "$root/usr/src/rustc-*/library")" "$root/usr/lib/rustlib/src/rust/library"
    cp "$root"/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.tsan-x86_64.a \
        "$root/usr/lib/rustlib/x86_64-unknown-linux-gnu/lib/librustc-stable_rt.tsan.a"
}

if [ "$(uname -m)" != x86_64 ]; then
    echo "SKIPPED: this script knows x86_64 only"
    exit 77
fi
if [ ! -x "$root/usr/bin/rustc" ] && ! unpack; then
    rm -rf "$root"
    echo "SKIPPED: Debian's rustc-web and rust-web-src could not be unpacked"
    exit 77
fi
printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' \
    "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/rustc" >"$work/rustc"
chmod +x "$work/rustc"

export RUSTC="$work/rustc" RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=thread
export CARGO_TARGET_DIR="$work/target"
unset RUSTUP_TOOLCHAIN RUSTC_WRAPPER
export TSAN_OPTIONS="history_size=4 suppressions=$PWD/.ci/tsan.supp"
if command -v llvm-symbolizer >/dev/null; then
    # Not a link: the runtime decides by the name how to talk to the program.
    TSAN_OPTIONS+=" external_symbolizer_path=$(readlink -f "$(command -v llvm-symbolizer)")"
fi
failed=0
for suite in "${suites[@]}"; do
    option=(--test "$suite")
    if [ "$suite" = lib ]; then option=(--lib); fi
    log="$work/$suite.log"
    cargo test -Zbuild-std --target x86_64-unknown-linux-gnu --locked -p larder --all-features \
        "${option[@]}" -- --test-threads=2 >"$log" 2>&1 || true
    grep -E '^(error|test result)|\.\.\. FAILED' "$log" || true
    races="$(grep -c 'WARNING: ThreadSanitizer' "$log" || true)"
    echo "tsan $suite: $races reports"
    if ((races > 0)) || ! grep -q '^test result' "$log"; then
        grep -A40 'WARNING: ThreadSanitizer' "$log" | head -200 || tail -20 "$log"
        failed=1
    fi
done
exit "$failed"
