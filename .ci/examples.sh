#!/usr/bin/env bash
# Runs every example as a person would, servers with curl, and checks what they answer and print.
# `.ci/examples.sh`, or some of them: `.ci/examples.sh color json_sink`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

EXAMPLES=(color color_tiny_http cluster custom_transport getter_file getter_sqlite getter_redis
    json_sink proto_sink)
BIN="$CARGO_TARGET_DIR/release/examples"

example_getter_file() {
    local out
    out="$(run getter_file)"
    says "$out" '^lib\.rs .* read from the disk$'
    says "$out" '^lib\.rs .* from the cache$'
    says "$out" '^no/such/file\.rs .* NotFound: '
    says "$out" '^7 gets: 1 from the cache, 2 files read, 4 failed'
}

example_getter_sqlite() {
    local out
    out="$(run getter_sqlite)"
    says "$out" '^100001 gets by 4 threads'
    says "$out" ' loads from the database$'
    says "$out" ' 1 failed: '
}

example_getter_redis() {
    local out port
    if ! command -v redis-server >/dev/null; then
        if ! install redis-server; then
            echo "SKIPPED: getter_redis needs a redis-server"
            exit 77
        fi
        # Debian starts one for everybody; the example starts its own.
        service redis-server stop >/dev/null 2>&1 || true
    fi
    out="$(run getter_redis)"
    says "$out" '^40000 gets by 4 threads .* 10 loads from Redis'
    says "$out" '^larder-example:none: NotFound: '
    says "$out" '^larder-example:list: Loader: '
    port="$(sed -n 's|^started redis-server at redis://127\.0\.0\.1:||p' <<<"$out")"
    if is_open "$port"; then
        echo "the example left its redis-server running on port $port"
        return 1
    fi
}

example_json_sink() {
    local out
    out="$(run json_sink)"
    says "$out" '^User { name: "Grace Hopper"'
    says "$out" '^as a number: Sink: '
    says "$out" '^4 gets, 3 from the cache, 1 loaded$'
}

example_proto_sink() {
    local out
    out="$(run proto_sink)"
    says "$out" '^Product { name: "Plum jam"'
    says "$out" '^price-list: Sink: '
    says "$out" '^4 gets, 2 from the cache, 2 loaded$'
}

# Runs an example to its end, prints what it says and passes that on; fails if the example does.
run() {
    local name="$1"
    shift
    echo "+ $name $*" >&2
    timeout --kill-after=10 120 "$BIN/$name" "$@" | tee /dev/stderr
}

# Fails unless a line of the text matches the pattern.
says() {
    if ! grep -qE -- "$2" <<<"$1"; then
        echo "no line matches: $2"
        return 1
    fi
}

is_open() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

show cargo build --quiet --locked --release --all-features --examples
if (($#)); then EXAMPLES=("$@"); fi
run_all example "${EXAMPLES[@]}"
