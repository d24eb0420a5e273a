#!/usr/bin/env bash
# In a user and mount namespace: lets the kernel start programs of a machine by qemu, then runs one.
# native.sh QEMU MAGIC MASK PROGRAM...
set -euo pipefail
qemu="/usr/bin/qemu-$1-static" magic="$2" mask="$3"
shift 3
if mount -t binfmt_misc none /proc/sys/fs/binfmt_misc 2>/dev/null &&
    printf '%s' ":board:M::$magic:$mask:$qemu:F" >/proc/sys/fs/binfmt_misc/register; then
    exec "$@"
fi
echo "the kernel cannot start programs by qemu: tests that start themselves again will fail" >&2
exec "$qemu" "$@"
