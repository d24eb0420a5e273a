#!/usr/bin/env bash
# Builds larder for other machines, and runs its tests there by qemu-user. Debian 12, as root:
#
#   .ci/boards.sh list                      the targets, and what is done for each
#   .ci/boards.sh setup TARGET...           installs compilers, qemu, and the target's standard library
#   .ci/boards.sh build TARGET...           the library with each set of features, and two examples
#   .ci/boards.sh test TARGET... [-- ...]   the test suites; what follows -- goes to the test programs
#   .ci/boards.sh cargo TARGET ARGS...      any cargo command
#   .ci/boards.sh run TARGET PROGRAM...     a program of that machine
#   .ci/boards.sh later TARGET              the unit tests of a machine of 32 bits in the year 2040
#   .ci/boards.sh mixed TARGET...           a cluster of this machine and others: one load of each colour
#   .ci/boards.sh static                    the static example answers in an empty root directory
#   .ci/boards.sh footprint                 builds the static node that `cargo bench --bench footprint` measures
#   .ci/boards.sh turn                      builds all targets, and tests one: each run the next one
#   .ci/boards.sh all                       everything
#
# A failure for one target does not keep the others from running; the last line counts the failures. BOARDS is
# the directory for all files that this makes, by default target/boards. A target whose packages cannot be had
# is skipped.
#
# Rust is Debian's 1.85, the oldest that Cargo.toml allows. Debian has the standard library of some
# machines. It is unpacked in BOARDS, because apt does not install that of a foreign machine. For the others
# cargo builds it from Debian's sources.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

BOARDS="${BOARDS:-$PWD/target/boards}"

# The work | target | Debian's architecture of its ready standard library | its gcc | qemu
# `native` is a machine whose programs this one runs, with the C library of the cross compiler.
TARGETS="
test   aarch64-unknown-linux-gnu       arm64   aarch64-linux-gnu     aarch64
test   armv7-unknown-linux-gnueabihf   armhf   arm-linux-gnueabihf   arm
test   s390x-unknown-linux-gnu         s390x   s390x-linux-gnu       s390x
build  i686-unknown-linux-gnu          i386    i686-linux-gnu        native
static x86_64-unknown-linux-musl       -       musl                  -
size   x86_64-unknown-linux-gnu        -       x86_64-linux-gnu      -
check  armv5te-unknown-linux-gnueabi   -       arm-linux-gnueabi     arm
"

# The version of all packages of Rust, which must be the same.
MSRV="$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)"

# The address space of a program in qemu, which keeps a byte for each page that the program maps.
MAX_ADDRESS_SPACE=$((16 << 30))

# Sets KIND, TARGET, ARCH, GCC and QEMU.
target() {
    read -r KIND TARGET ARCH GCC QEMU < <(awk -v target="$1" '$2 == target' <<<"$TARGETS") && [ -n "$TARGET" ] || {
        echo "there is no target $1; see .ci/boards.sh list" >&2
        exit 2
    }
}

emulated() { [ "$QEMU" != - ] && [ "$QEMU" != native ]; }

targets() { awk -v kinds="$*" 'NF && index(" " kinds " ", " " $1 " ") {print $2}' <<<"$TARGETS"; }

setup() {
    local packages=("rustc-web=$MSRV*" "libstd-rust-web-dev=$MSRV*" gcc libc6-dev curl) cross="$GCC"
    if emulated; then packages+=(qemu-user-static); fi
    if [ "$ARCH" = - ]; then packages+=("rust-web-src=$MSRV*"); fi
    case "$GCC" in
    musl) packages+=(musl-tools) ;;
    arm-linux-gnueabi) packages+=("gcc-$GCC" libc6-dev-armel-cross) ;;
    *) packages+=("gcc-$GCC" "libc6-dev-$ARCH-cross") ;;
    esac
    if ! dpkg-query -W "${packages[@]%%=*}" >/dev/null 2>&1 && ! install "${packages[@]}"; then
        echo "SKIPPED: $TARGET needs ${packages[*]}"
        exit 77
    fi
    mkdir -p "$BOARDS"
    if [ "$ARCH" != - ] && [ ! -d "$BOARDS/sysroot/usr/lib/rustlib/$TARGET" ]; then foreign_std; fi
    if [ "$GCC" = musl ]; then unwind_for_musl; fi
}

# Unpacks Debian's standard library of another machine. apt gets lists of its own for it.
foreign_std() {
    local apt="$BOARDS/apt/$ARCH" version
    version="$(dpkg-query -W -f '${Version}' libstd-rust-web-dev)"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$BOARDS/sysroot"
    local options=(-qq -o "APT::Architecture=$ARCH" -o "APT::Architectures::=$ARCH" -o APT::Sandbox::User=root
        -o Acquire::Languages=none -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache")
    # Not all archives have lists of all machines.
    apt-get "${options[@]}" update >"$apt/log" 2>&1 || true
    (cd "$apt" && apt-get "${options[@]}" download "libstd-rust-web-dev:$ARCH=$version")
    dpkg -x "$apt"/libstd-rust-web-dev_*.deb "$BOARDS/sysroot"
    [ -d "$BOARDS/sysroot/usr/lib/rustlib/$TARGET" ]
}

# The standard library for musl links libunwind. gcc's unwinder takes its place, with the one function of
# glibc that musl lacks. A smaller function takes the place of one of musl's.
unwind_for_musl() {
    local lib="$BOARDS/lib/$TARGET" name
    mkdir -p "$lib"
    for name in find_object set_name; do
        musl-gcc -Os -fPIC -c -o "$lib/$name.o" ".ci/boards/$name.c"
    done
    echo "GROUP ( $(gcc -print-file-name=libgcc_eh.a) $lib/find_object.o $lib/set_name.o )" >"$lib/libunwind.a"
}

# cargo for the target. The first argument is its command.
cross() {
    local name="${TARGET//-/_}" linker="$GCC-gcc" command="$1" flags more=() runner=()
    local upper="${name^^}"
    shift
    if [ "$ARCH" = - ]; then
        export RUSTC_BOOTSTRAP=1
        more=(-Zbuild-std=std,panic_abort,test)
        flags=""
        if [ "$GCC" = musl ]; then
            flags="-L native=$BOARDS/lib/$TARGET -C link-self-contained=no -C target-feature=+crt-static"
            flags+=" -C relocation-model=static"
        fi
    else
        flags="--sysroot $BOARDS/sysroot/usr"
    fi
    if [ "$QEMU" = native ]; then
        flags+=" -C link-arg=-Wl,--dynamic-linker=/usr/$GCC/lib/ld-linux.so.2,-rpath,/usr/$GCC/lib"
    elif emulated; then
        runner=("CARGO_TARGET_${upper}_RUNNER=prlimit --as=$MAX_ADDRESS_SPACE qemu-$QEMU-static")
    fi
    env -u RUSTFLAGS -u RUSTUP_TOOLCHAIN RUSTC=/usr/bin/rustc CARGO_TARGET_DIR="$BOARDS/target" \
        "CARGO_TARGET_${upper}_LINKER=$linker" "CC_$name=$linker" "QEMU_LD_PREFIX=/usr/$GCC" \
        "CARGO_TARGET_${upper}_RUSTFLAGS=$flags ${RUSTFLAGS:-}" "${runner[@]}" \
        cargo "$command" --locked --target "$TARGET" "${more[@]}" "$@"
}

build() {
    local features
    setup
    for features in "" http ureq,tiny_http,json; do
        echo "+ $TARGET: cargo check --lib --no-default-features --features '$features'"
        cross check --quiet -p larder --lib --no-default-features --features "$features"
    done
    # A check is enough where no program is linked.
    if [ "$KIND" = check ]; then return; fi
    echo "+ $TARGET: cargo build --release --example color --bin cluster"
    cross build --quiet --release -p larder-examples -p cluster --example color --bin cluster
}

# Builds tests. Debug information and optimizations would cost most of the time.
test_programs() {
    export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_LTO=off
    cross test --release --no-run -p larder --all-features "$@" 2>&1 | tee "$BOARDS/programs.$TARGET"
}

# Runs the suites, except the documentation tests, which rustdoc runs only on its own machine, and those of
# interoperability, which need Go's nodes. Debug builds are slow in qemu, hence --release.
suites() {
    local program failing=0
    setup
    # These tests measure memory by the system's count, which includes the emulator's own.
    if emulated; then
        set -- "$@" --skip half_bodies_cost --skip floods_of_heads_cost --skip ambiguous_requests \
            --skip resident_memory
    fi
    test_programs --lib --tests
    while read -r program; do
        case "$program" in */interop-*) continue ;; esac
        echo "+ $TARGET: ${program##*/} $*"
        as_native "$(realpath "$program")" "$@" </dev/null || failing=1
    done < <(sed -n 's/.*Executable.*(\(.*\))$/\1/p' "$BOARDS/programs.$TARGET")
    return "$failing"
}

# Runs a program of the target, and the programs of its kind that it starts. The kernel starts those by
# qemu, in a namespace of its own (Linux 6.7 or newer).
as_native() {
    if ! emulated; then
        "$@"
        return
    fi
    local data machine magic mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff'
    # Word size, byte order, and number of the machine, as in the head of its programs.
    case "$QEMU" in
    aarch64) data='\x02\x01' machine='\xb7\x00' ;;
    arm) data='\x01\x01' machine='\x28\x00' ;;
    s390x) data='\x02\x02' machine='\x00\x16' ;;
    esac
    if [ "$data" = '\x02\x02' ]; then mask+='\xff\xfe\xff\xff'; else mask+='\xfe\xff\xff\xff'; fi
    magic="\\x7fELF$data\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00"
    if [ "$data" = '\x02\x02' ]; then magic+="\\x00\\x02$machine"; else magic+="\\x02\\x00$machine"; fi
    QEMU_LD_PREFIX="/usr/$GCC" prlimit --as="$MAX_ADDRESS_SPACE" unshare --map-root-user --mount -- \
        .ci/boards/native.sh "$QEMU" "$magic" "$mask" "$@"
}

# The unit tests with a wall clock of the year 2040.
later() {
    local clock="$BOARDS/after_2038.$ARCH.so" program
    setup
    "$GCC-gcc" -O2 -shared -fPIC -o "$clock" .ci/boards/after_2038.c
    test_programs --lib
    program="$(sed -n 's/.*Executable.*(\(.*\))$/\1/p' "$BOARDS/programs.$TARGET")"
    if emulated; then
        QEMU_SET_ENV="LD_PRELOAD=$clock" as_native "$(realpath "$program")"
    else
        LD_PRELOAD="$clock" "$(realpath "$program")"
    fi
}

example() { echo "$BOARDS/target/$TARGET/release/examples/$1"; }

# Nodes of this machine and of the targets share a cache.
mixed() {
    local names=("$@") dir port ports=() urls=() name answer answers i loads
    # Nodes of one version: their messages may differ from those of an older build.
    for name in "$@"; do
        target "$name"
        setup
        cross build --quiet --release -p larder-examples --example color
    done
    cargo build --quiet --locked --release -p larder-examples --example color
    dir="$(mktemp -d)"
    # shellcheck disable=SC2064
    trap "kill \$(jobs -p) 2>/dev/null || true; rm -rf '$dir'" EXIT
    for i in $(seq 0 ${#names[@]}); do
        port=$((20000 + RANDOM % 10000))
        ports+=("$port") urls+=("http://127.0.0.1:$port")
    done
    "$CARGO_TARGET_DIR/release/examples/color" --addr "127.0.0.1:${ports[0]}" \
        --pool "$(pool "${urls[0]}" "${urls[@]}")" 2>"$dir/0" &
    for i in "${!names[@]}"; do
        target "${names[i]}"
        as_native "$(example color)" --addr "127.0.0.1:${ports[i + 1]}" \
            --pool "$(pool "${urls[i + 1]}" "${urls[@]}")" 2>"$dir/$((i + 1))" &
    done
    for port in "${ports[@]}"; do
        curl -sS --retry 50 --retry-connrefused --retry-delay 1 -o /dev/null "http://127.0.0.1:$port/"
    done
    for name in green blue black yellow red; do
        answers="$(for port in "${ports[@]}"; do
            curl -sS --max-time 30 "http://127.0.0.1:$port/color?name=$name"
            echo
        done | grep . | sort | uniq -c)"
        loads="$(grep -h "loads \"$name\"" "$dir"/* | wc -l)"
        echo "$name: $answers, $loads load(s)"
        [[ "$answers" =~ ^\ *${#ports[@]}\ \#[0-9A-F]{6}$ ]] && [ "$loads" = 1 ]
    done
}

# A list of URLs with that of this node first.
pool() {
    local own="$1" url list="$1"
    shift
    for url in "$@"; do [ "$url" = "$own" ] || list+=",$url"; done
    echo "$list"
}

# The static program needs no other file.
static() {
    local root port=$((20000 + RANDOM % 10000))
    target x86_64-unknown-linux-musl
    build
    root="$(mktemp -d)"
    # shellcheck disable=SC2064
    trap "kill \$(jobs -p) 2>/dev/null || true; rm -rf '$root'" EXIT
    cp "$(example color)" "$root/color"
    strip "$root/color"
    chroot "$root" /color --addr "127.0.0.1:$port" --pool "http://127.0.0.1:$port" &
    answer="$(curl -sS --retry 20 --retry-connrefused --retry-delay 1 "http://127.0.0.1:$port/color?name=green")"
    echo "static color, $(stat -c %s "$root/color") bytes, in an empty root: $answer"
    [ "$answer" = '#00FF00' ]
}

# A stripped program shows no names in a stack trace, so std does without the code that finds them.
footprint() {
    local features=optimize_for_size silent
    target x86_64-unknown-linux-musl
    setup
    small_node "$features"
    # Panics without a message. Constants are on the pages of the code, and tables of addresses on those of
    # the data, which spares the gaps between them.
    silent=("$features,panic_immediate_abort" --target-dir "$BOARDS/target/silent" --
        -Clink-arg=-Wl,-z,noseparate-code -Crelro-level=off)
    small_node "${silent[@]}"
    target x86_64-unknown-linux-gnu
    small_node "${silent[@]}"
    stat -c '%n: %s bytes' "$BOARDS"/target/{,silent/}x86_64-unknown-linux-*/small/examples/node
}

# Builds the smallest node. The first argument is the features of its standard library.
small_node() {
    local features="$1"
    shift
    RUSTFLAGS="-C force-unwind-tables=no" cross rustc "-Zbuild-std-features=$features" --profile small \
        -p larder-examples --no-default-features --features http --example node "$@"
}

# Runs a command for each target, also after it has failed for one.
each() {
    local command="$1" name
    shift
    for name in "$@"; do attempt "$command $name" one "$command" "$name"; done
}

# Runs a command for one target.
one() {
    target "$2"
    "$1" "${OPTIONS[@]}"
}

# shellcheck disable=SC2046 # several targets
builds() {
    each build $(targets test build check)
    attempt static static
    attempt mixed mixed $(targets test)
}

# The number of days since 1970 chooses the target that is tested, unless BOARDS_TURN is given.
turn() {
    local names
    mapfile -t names < <(targets test)
    builds
    each suites "${names[${BOARDS_TURN:-$(($(date +%s) / 86400))} % ${#names[@]}]}"
}

# shellcheck disable=SC2046 # several targets
all() {
    builds
    each later $(targets build)
    attempt footprint footprint
    each suites $(targets test)
}

OPTIONS=()
command="${1:-help}"
shift || true
case "$command" in
list) awk 'NF {print $1, $2}' <<<"$TARGETS" ;;
setup) for name in "$@"; do target "$name" && setup; done ;;
build | later)
    each "$command" "$@"
    summary
    ;;
test)
    names=()
    while (($#)) && [ "$1" != -- ]; do names+=("$1") && shift; done
    shift || true
    OPTIONS=("$@")
    each suites "${names[@]}"
    summary
    ;;
cargo) target "$1" && shift && cross "$@" ;;
run) target "$1" && shift && as_native "$@" ;;
turn | all)
    "$command"
    summary
    ((passed)) || exit 77
    ;;
mixed | static | footprint) "$command" "$@" ;;
*) sed -n '2,/^set/s/^# \?//p' "$0" && exit 2 ;;
esac
