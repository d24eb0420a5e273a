#!/usr/bin/env bash
# Runs every example as a user would, asks the servers with curl, and checks their answers and output.
# `.ci/examples.sh`, or some of them: `.ci/examples.sh color json_sink`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

EXAMPLES=(chaos color color_tiny_http cluster custom_transport forecast getter_file getter_http getter_sqlite getter_redis
    json_sink proto_sink soak warm)
BIN="$CARGO_TARGET_DIR/release/examples"

example_color() {
    color_cluster
}

example_color_tiny_http() {
    color_cluster --tiny-http
}

# Checks the quick start of Go's example, then three processes, asked one after the other and at once.
color_cluster() {
    local flags=("$@") ports dir port name answers loads i
    if ! command -v curl >/dev/null && ! install curl; then
        echo "SKIPPED: the color example is asked by curl"
        exit 77
    fi
    dir="$(mktemp -d)"
    # Expanded now, because the variables of this function are gone when the shell exits.
    # shellcheck disable=SC2064
    trap "[ \$? = 0 ] || tail -n 20 '$dir'/log.*; stop_all; rm -rf '$dir'" EXIT

    mapfile -t ports < <(free_ports 1)
    start_color "$dir" "-addr=127.0.0.1:${ports[0]}" "-pool=http://127.0.0.1:${ports[0]}" "${flags[@]}"
    wait_open "${ports[0]}" "$dir"
    expect "200 #00FF00" "${ports[0]}" green
    expect "200 #FF0000" "${ports[0]}" red
    expect 404 "${ports[0]}" no-such-colour
    stop_all

    mapfile -t ports < <(free_ports 3)
    rm "$dir"/*
    for port in "${ports[@]}"; do
        start_color "$dir" --addr "127.0.0.1:$port" --pool "$(urls "$port" "${ports[@]}")" "${flags[@]}"
    done
    for port in "${ports[@]}"; do wait_open "$port" "$dir"; done
    for name in green blue black yellow; do
        for port in "${ports[@]}" "${ports[@]}"; do
            [[ "$(ask "$port" "$name")" == "200 #"* ]] || { echo "$port has no $name"; return 1; }
        done
        loads="$(count_loads "$dir" "$name")"
        [ "$loads" = 1 ] || { echo "$name: $loads loads, not 1"; return 1; }
    done
    echo "3 processes: 24 answers of 4 colours, each loaded once"

    answers="$(for i in {0..199}; do echo "http://127.0.0.1:${ports[i % 3]}/color?name=red"; done |
        xargs -n 1 -P 50 curl -sS --max-time 30 | sort | uniq -c)"
    loads="$(count_loads "$dir" red)"
    echo "200 asked at once: $answers, $loads loads"
    [[ "$answers" =~ ^\ *200\ \#FF0000$ ]]
    # There is one load, and more only if a process got no processor for a second.
    ((loads >= 1 && loads <= 3))
    for port in "${ports[@]}"; do expect 404 "$port" no-such-colour; done
}

example_chaos() {
    capture "$BIN/chaos" --seconds 5 --seed 3
    says '^judged      [1-9][0-9]* gets, [1-9]'
    says '^violations  0$'
}

# Runs the command of the README, shortened.
example_cluster() {
    local port
    capture bash -c "$(grep -m1 '^cargo run .*cluster' README.md) -- --seconds 5"
    says ': node 2 is killed '
    says ': node 2 is started again$'
    says '^callers   [1-9].* 0 errors$'
    says '^values .* 0 values differ$'
    while read -r port; do
        is_closed "$port"
    done < <(sed -n 's/^node [0-9]* listens on 127\.0\.0\.1://p' <<<"$OUT")
}

example_custom_transport() {
    capture "$BIN/custom_transport"
    says '^b: getter .* loads "page-[0-9]*" for req-1$'
    says '^node a: 2 gets, 2 loads from the peer, .* 0 own loads$'
    says '^node b: .* 2 requests of the peer, 2 own loads$'
}

example_forecast() {
    capture "$BIN/forecast"
    says '^ +2 MiB  █+. '
    says '^ +8 MiB  █+.* %  \(now\)$'
    says '^ +32 MiB  █+. '
    says '^Measured with twice the memory: [1-9][0-9.]* %\.$'
}

example_getter_file() {
    capture "$BIN/getter_file"
    says '^lib\.rs .* read from the disk$'
    says '^lib\.rs .* from the cache$'
    says '^no/such/file\.rs .* NotFound: '
    says '^7 gets: 1 from the cache, 2 files read, 4 failed'
}

example_getter_http() {
    capture "$BIN/getter_http"
    says '^news: 100000 bytes, the server answered 200$'
    says '^news: 100000 bytes, the server answered 304$'
    says '^no-such-page: there is no page no-such-page, the server answered 404$'
    # Two pages, and one of them once more.
    says '^12 gets, 300000 bytes of pages sent by the server$'
}

example_getter_sqlite() {
    capture "$BIN/getter_sqlite"
    says '^100001 gets by 4 threads'
    says ' loads from the database$'
    says ' 1 failed: '
}

example_getter_redis() {
    if ! command -v redis-server >/dev/null; then
        if ! install redis-server; then
            echo "SKIPPED: getter_redis needs a redis-server"
            exit 77
        fi
        # Debian starts a server; the example starts its own.
        service redis-server stop >/dev/null 2>&1 || true
    fi
    capture "$BIN/getter_redis"
    says '^40000 gets by 4 threads .* 10 loads from Redis'
    says '^larder-example:none: NotFound: '
    says '^larder-example:list: Getter: '
    is_closed "$(sed -n 's|^started redis-server at redis://127\.0\.0\.1:||p' <<<"$OUT")"
}

example_json_sink() {
    capture "$BIN/json_sink"
    says '^User { name: "Grace Hopper"'
    says '^as a number: Sink: '
    says '^4 gets, 3 from the cache, 1 loaded$'
}

example_proto_sink() {
    capture "$BIN/proto_sink"
    says '^Product { name: "Plum jam"'
    says '^price-list: Sink: '
    says '^4 gets, 2 from the cache, 2 loaded$'
}

# The full length is 10 minutes.
example_soak() {
    capture "$BIN/soak" --seconds 60
    says '^[1-9][0-9]* gets, 0 failed or wrong$'
}

example_warm() {
    capture "$BIN/warm"
    says ' 10000 of 10000'
    says '^10000 loaded, 0 failed, in '
}

# Runs a command as `show` does and keeps its stdout in OUT. Fails if the command fails.
OUT=""
capture() {
    local code=0
    OUT="$(show "$@")" || code=$?
    echo "$OUT"
    return "$code"
}

# Fails unless a line of OUT matches the pattern.
says() {
    if ! grep -qE -- "$1" <<<"$OUT"; then
        echo "no line matches: $1"
        return 1
    fi
}

# Starts the color example, its stderr in a file below the directory.
start_color() {
    local dir="$1"
    shift
    echo "+ color $*"
    "$BIN/color" "$@" 2>"$(mktemp "$dir/log.XXXXXX")" &
    PIDS+=("$!")
}

# Counts the loads of a colour by all processes.
count_loads() {
    cat "$1"/log.* | grep -cF " loads \"$2\"" || true
}

# Prints the argument of --pool: the URLs of all processes, the URL of the process itself first.
urls() {
    local own="$1" list port
    shift
    list="http://127.0.0.1:$own"
    for port in "$@"; do
        if [ "$port" != "$own" ]; then list+=",http://127.0.0.1:$port"; fi
    done
    echo "$list"
}

# Fails unless the answer to the name of a colour, a status and a text, begins as expected.
expect() {
    local got
    got="$(ask "$2" "$3")"
    echo "$3: $got"
    [[ "$got" == "$1"* ]]
}

ask() {
    curl -sS --max-time 30 -w '%{http_code}\n' "http://127.0.0.1:$1/color?name=$2" |
        { read -r text; read -r status; echo "$status $text"; }
}

PIDS=()

# Ends the processes of `start_color`, and no others.
stop_all() {
    local pid
    for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${PIDS[@]}"; do wait "$pid" 2>/dev/null || true; done
    PIDS=()
}

# Prints different ports that are free now, chosen by the kernel.
free_ports() {
    perl -MIO::Socket::INET -e '
        my @held = map { IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1:0") or die $@ } 1 .. shift;
        print $_->sockport, "\n" for @held' "$1"
}

# Waits until a process listens on the port, 10 s at most.
wait_open() {
    local try
    for try in {1..200}; do
        if is_open "$1"; then return; fi
        sleep 0.05
    done
    echo "no process listens on port $1 after $try tries"
    cat "$2"/log.*
    return 1
}

# Fails if a process still listens on the port.
is_closed() {
    if is_open "$1"; then
        echo "a process still listens on port $1"
        return 1
    fi
}

is_open() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

show cargo build --quiet --locked --release --workspace --all-features --examples
if (($#)); then EXAMPLES=("$@"); fi
run_all example "${EXAMPLES[@]}"
