# shellcheck shell=bash
# Sourced by the scripts beside it: runs named checks one after the other, and installs packages.

export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"

passed=0
failed=() skipped=()

# Runs a command under a name, in a shell of its own. One that exits with 77 counts as skipped.
attempt() {
    local name="$1" start=$SECONDS code result
    shift
    echo "== $name"
    # Not in a condition: there, bash would not stop a function where it first fails.
    set +e
    (set -e; "$@") </dev/null
    code=$?
    set -e
    case $code in
    0) result=passed passed=$((passed + 1)) ;;
    77) result=SKIPPED skipped+=("$name") ;;
    *) result=FAILED failed+=("$name") ;;
    esac
    echo "== $name: $result, $((SECONDS - start)) s"
}

# The last line counts what was attempted. Fails if one failed.
summary() {
    if ((${#failed[@]})); then echo "failed: ${failed[*]}"; fi
    if ((${#skipped[@]})); then echo "skipped: ${skipped[*]}"; fi
    echo "$SECONDS s"
    echo "$passed passed, ${#failed[@]} failed, ${#skipped[@]} skipped"
    ((${#failed[@]} == 0))
}

# Runs the functions `PREFIX_NAME` for the given names one after the other, also after one has failed.
run_all() {
    local prefix="$1" name
    shift
    for name in "$@"; do
        if ! declare -F "${prefix}_$name" >/dev/null; then
            echo "there is no $prefix named $name" >&2
            return 2
        fi
        attempt "$name" "${prefix}_$name"
    done
    summary
}

# Prints a command, then runs it, for 20 minutes at most.
show() {
    # timeout ends the command with all its processes, except at a terminal. There, the command stays
    # in the process group of the terminal, so that Ctrl-C reaches it.
    local group=()
    if [ -t 1 ]; then group=(--foreground); fi
    echo "+ $*"
    timeout "${group[@]}" --kill-after=10 1200 "$@"
}

# Installs Debian's packages, `name=1.2*` for a version. Prints the reason if it cannot, and fails.
install() {
    local log
    if ! command -v apt-get >/dev/null; then
        echo "no apt-get here to install $*"
        return 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "not root, cannot install $*"
        return 1
    fi
    log="$(mktemp)"
    export DEBIAN_FRONTEND=noninteractive
    # Once in a run. A file says so, because the scripts of a run are processes of their own.
    if [ ! -e "${LARDER_CI_DIR:-/nowhere}/apt-updated" ]; then
        apt-get update -qq >"$log" 2>&1 || sed 's/^/apt-get update: /' "$log"
        if [ -n "${LARDER_CI_DIR:-}" ]; then touch "$LARDER_CI_DIR/apt-updated"; fi
    fi
    if ! apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1; then
        tail -n 5 "$log"
        rm "$log"
        return 1
    fi
    rm "$log"
}

# Exits with 77 if network namespaces cannot be made here.
need_namespaces() {
    if [ "$(id -u)" != 0 ]; then
        echo "SKIPPED: not root"
        exit 77
    fi
    if ! command -v ip >/dev/null && ! install iproute2; then
        echo "SKIPPED: no ip"
        exit 77
    fi
    local probe="ldrprobe$$"
    if ! ip netns add "$probe"; then
        echo "SKIPPED: no network namespaces"
        exit 77
    fi
    ip netns del "$probe"
}
