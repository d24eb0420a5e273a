#!/usr/bin/env bash
# Runs the test suites under ThreadSanitizer, with an instrumented standard library: `.ci/tsan.sh
# [SUITE[=TEST]...]`, by default all that have threads. TEST is a part of a test's name.
#
# Each test is a process of its own. One that does not pass is run again alone, with more time and memory.
# Fails if there is a data race, in a test or in a process that it starts. A test that fails for another
# reason is only listed with it, because the limits of some tests are too short for a program that runs
# ten times slower. Takes an hour, so it is not a step of `.ci/run`.
#
#   LARDER_TSAN_SECONDS  the time of a test (120), and four times as much when it is alone
#   LARDER_TSAN_MIB      the memory of each of its processes (3000), and twice as much when it is alone
#
# The compiler and the source of its standard library are Debian's, unpacked beside the build and not
# installed. Exits with 77 if they cannot be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

work="$CARGO_TARGET_DIR/tsan"
root="$work/root"
results="$work/results"
wanted=("$@")
if ((${#wanted[@]} == 0)); then wanted=(lib cluster faults group http promise); fi
seconds="${LARDER_TSAN_SECONDS:-120}"
mib="${LARDER_TSAN_MIB:-3000}"

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
# A backtrace takes longer to print than the tests of panics wait.
export RUST_BACKTRACE=0
# Optimized, because many tests have limits of time. The standard library is too.
export CARGO_PROFILE_DEV_OPT_LEVEL=1
export TSAN_OPTIONS="history_size=4 die_after_fork=0"
if command -v llvm-symbolizer >/dev/null; then
    # The target of the link, because the runtime decides by the program's name how to talk to it.
    TSAN_OPTIONS+=" external_symbolizer_path=$(readlink -f "$(command -v llvm-symbolizer)")"
fi

# Builds a suite, and prints its program.
build() {
    local suite="$1" option=(--test "$1")
    if [ "$suite" = lib ]; then option=(--lib); fi
    cargo test --no-run -Zbuild-std --target x86_64-unknown-linux-gnu --locked -p larder --all-features \
        "${option[@]}" >"$work/build.log" 2>&1 || return 1
    sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$work/build.log"
}

# The files of a test in this folder. The options of the runtime are separated by colons.
files() {
    echo "$1/${2//::/.}"
}

# run PROGRAM FOLDER SECONDS MIB TEST: runs one test. Its file `.log` has what it prints, `.tsan.PID` what
# the runtime says of each process, and `.result` how it ended.
run() {
    local program="$1" seconds="$3" mib="$4" test="$5" code=0 out result
    out="$(files "$2" "$test")"
    rm -f "$out".*
    TSAN_OPTIONS+=" log_path=$out.tsan hard_rss_limit_mb=$mib" timeout -k 10 "$seconds" \
        "$program" --exact "$test" --test-threads=1 </dev/null >"$out.log" 2>&1 || code=$?
    if grep -qs 'WARNING: ThreadSanitizer' "$out".tsan.*; then
        result="RACE"
    elif ((code == 0)); then
        result=passed
    elif grep -qs 'rss limit exhausted' "$out".tsan.*; then
        result="needs more than $mib MiB"
    elif ((code == 124 || code == 137)); then
        result="takes longer than $seconds s"
    else
        result="fails: $(grep -A1 -F "thread '$test'" "$out.log" | sed 's/.*panicked at //' | tr '\n' ' ' |
            cut -c1-200 || true)"
    fi
    echo "$result" >"$out.result"
}
export -f run files

# Runs the tests of a suite: two at a time, and then those that did not pass, one at a time.
run_suite() {
    local suite="$1" program="$2" part="$3" folder="$results/$1" test
    mkdir -p "$folder"
    "$program" --list --format terse --ignored | sed -n 's/: test$//p' | sort >"$folder/ignored"
    "$program" --list --format terse | sed -n 's/: test$//p' | sort | comm -23 - "$folder/ignored" |
        { grep -F -e "$part" || true; } >"$folder/tests"
    # shellcheck disable=SC2016 # expanded by the inner shell
    xargs -a "$folder/tests" -r -P 2 -n 1 bash -c 'run "$@"' run "$program" "$folder" "$seconds" "$mib"
    while read -r test; do
        if ! grep -qE '^(passed|RACE)' "$(files "$folder" "$test").result"; then
            run "$program" "$folder" "$((4 * seconds))" "$((2 * mib))" "$test"
        fi
    done <"$folder/tests"
}

# Prints the races and the tests that did not pass, and counts them.
report() {
    local suite="$1" folder="$results/$1" test result run=0 races=0 left=0
    while read -r test; do
        result="$(cat "$(files "$folder" "$test").result")"
        case "$result" in
        passed) run=$((run + 1)) ;;
        RACE)
            races=$((races + 1))
            echo "$suite $test: RACE"
            cat "$(files "$folder" "$test")".tsan.* | head -100
            ;;
        *)
            left=$((left + 1))
            echo "$suite $test $result; no race until then"
            ;;
        esac
    done <"$folder/tests"
    echo "tsan $suite: $run tests passed, $left did not, $races with races, $(wc -l <"$folder/ignored") ignored"
    total=$((total + run)) total_left=$((total_left + left)) total_races=$((total_races + races))
}

rm -rf "$results"
mkdir -p "$results"
total=0 total_left=0 total_races=0 suites=0
for item in "${wanted[@]}"; do
    suite="${item%%=*}" part="${item#"${item%%=*}"}"
    if ! program="$(build "$suite")"; then
        tail -40 "$work/build.log"
        exit 1
    fi
    run_suite "$suite" "$program" "${part#=}"
    report "$suite"
    suites=$((suites + 1))
done
echo "tsan: $suites suites, $total tests passed, $total_left did not, $total_races with races"
((total_races == 0))
