#!/bin/sh
# Installs the competitors of `cargo bench --bench hop` from Debian's packages, and builds the node of
# golang/groupcache, which `--bench fill` uses too. Run it as root, or with the packages installed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$here/../../target/larder-bench
packages="memcached golang-go golang-github-golang-groupcache-dev"

missing=
for package in $packages; do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
if [ -n "$missing" ]; then
    apt-get update
    # shellcheck disable=SC2086
    apt-get install -y --no-install-recommends $missing
fi

mkdir -p "$out"
cd "$here/golang"
GO111MODULE=off GOPATH=/usr/share/gocode go build -o "$out/golang-node" .
echo "built: target/larder-bench/golang-node"
