#!/usr/bin/env bash
# Builds a program that uses larder without a network: from `cargo vendor`, an empty home of cargo, and
# no interface but loopback where the system allows that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

LARDER="$PWD"
DIR="$(mktemp -d)"
trap 'rm -rf "$DIR"' EXIT
mkdir -p "$DIR/program/src" "$DIR/program/.cargo"
# The versions that larder's own tests use. cargo leaves out the crates that the program does not need.
cp Cargo.lock "$DIR/program"
cd "$DIR/program"
cat >Cargo.toml <<END
[package]
name = "program"
version = "0.1.0"
edition = "2024"

[dependencies]
larder = { path = "$LARDER" }
END
cat >src/main.rs <<'END'
fn main() -> Result<(), larder::Error> {
    let getter = larder::getter_fn(|_ctx, key, dest| Ok(dest.set_str(key)?));
    let group = larder::new_group("echo", 1 << 20, getter)?;
    println!("{}", String::from_utf8_lossy(&group.get("vendored")?));
    Ok(())
}
END
cargo vendor >.cargo/config.toml 2>/dev/null
echo "$(find vendor -mindepth 1 -maxdepth 1 | wc -l) crates are vendored"
OFFLINE=(env CARGO_HOME="$DIR/home" CARGO_TARGET_DIR="$DIR/target")
if unshare --map-root-user --net true 2>/dev/null; then OFFLINE+=(unshare --map-root-user --net); fi
show "${OFFLINE[@]}" cargo build --offline --locked
[ "$("$DIR/target/debug/program")" = vendored ]
