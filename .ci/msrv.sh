#!/usr/bin/env bash
# The library compiles with the oldest Rust that Cargo.toml allows, its cargo included, with each set
# of features. That Rust is Debian's, installed beside the usual one. Exits with 77 if it cannot be
# installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

MSRV="$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)"

# Debian's packages install them here. Others may be earlier in PATH.
CARGO=/usr/bin/cargo
export RUSTC=/usr/bin/rustc

is_there() {
    [ -x "$CARGO" ] && [ -x "$RUSTC" ] &&
        [[ "$("$CARGO" --version)" == "cargo $MSRV."* && "$("$RUSTC" --version)" == "rustc $MSRV."* ]]
}

# Debian also has newer versions by these names: hence the version.
is_there || install "cargo-web=$MSRV*" "rustc-web=$MSRV*" "libstd-rust-web-dev=$MSRV*" || true
if ! is_there; then
    echo "SKIPPED: no Rust $MSRV in /usr/bin, and Debian's cargo-web and rustc-web did not bring it"
    exit 77
fi
"$CARGO" --version
"$RUSTC" --version

# Settings for the usual toolchain.
unset RUSTUP_TOOLCHAIN RUSTC_WRAPPER
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/msrv"
# Only the library: the dependencies of tests, examples and benchmarks may need a newer Rust.
for features in "" http ureq tiny_http json ureq,tiny_http,json; do
    show "$CARGO" check --locked -p larder --lib --no-default-features --features "$features"
done
