#!/bin/sh
# Installs what `cargo bench --bench hop` compares larder with, from Debian's packages, and builds
# our node of golang/groupcache, which `--bench fill` runs too. Run it as root, or with the packages there already.
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
