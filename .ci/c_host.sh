#!/usr/bin/env bash
# Links larder into a C program that leaves SIGPIPE at its default. Clients hang up while the program writes.
# It must not end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

if ! command -v python3 >/dev/null && ! install python3; then
    echo "SKIPPED: no python3"
    exit 77
fi
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
show cargo build --locked --release -p c-host
cc -o "$dir/host" examples/c_host/main.c "$CARGO_TARGET_DIR/release/libc_host.a" -lpthread -ldl -lm
python3 - "$dir/host" <<'END'
import signal, socket, struct, subprocess, sys

host = subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL))
address, port = host.stdout.readline().strip().rsplit(":", 1)

def ask(key, close):
    client = socket.create_connection((address, int(port)))
    client.sendall(f"GET /_groupcache/bytes/{key} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    if close:
        # Resets the connection. After that, a write of the server raises SIGPIPE unless it is suppressed.
        client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    else:
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")

for key in (10, 5000, 1000000) * 20:
    ask(key, True)
    # Sends several requests, and reads no response.
    client = socket.create_connection((address, int(port)))
    client.sendall(f"GET /_groupcache/bytes/{key} HTTP/1.1\r\nHost: h\r\n\r\n".encode() * 8)
    client.close()
# The value does not fit into memory.
with socket.create_connection((address, int(port))) as client:
    client.sendall(b"GET /_groupcache/bytes/999999999999999 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert client.recv(100).startswith(b"HTTP/1.1 5")
ask(1000000, False)
assert host.poll() is None, f"the host ended: {host.returncode}"
host.stdin.close()
assert host.wait(20) == 0
print("120 clients hung up; the C program lives")
END
