#!/usr/bin/env bash
# Runs the systemd example as systemd would: with a socket, a watchdog and SIGTERM.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/lib.sh

if ! command -v python3 >/dev/null && ! install python3; then
    echo "SKIPPED: no python3"
    exit 77
fi
show cargo build --locked --release -p systemd-node
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
echo "of the state directory" >"$dir/file"
if command -v systemd-analyze >/dev/null; then
    # The unit names the path of an installed program, which is not there.
    sed 's:^ExecStart=[^ ]*:ExecStart=/bin/true:' examples/systemd/larder-node.service >"$dir/larder-node.service"
    cp examples/systemd/larder-node.socket "$dir"
    show systemd-analyze verify --man=no "$dir/larder-node.service" "$dir/larder-node.socket"
fi
python3 - "$CARGO_TARGET_DIR/release/systemd-node" "$dir" <<'END'
import atexit, os, signal, socket, subprocess, sys, urllib.request

program, dir = sys.argv[1:]
atexit.register(lambda: service.kill())
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(dir + "/notify")
notify.settimeout(20)
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]

def become_service():
    os.dup2(listener.fileno(), 3)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)

# The shell sets its own process id, which the program keeps.
service = subprocess.Popen(
    ["sh", "-c", 'LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0" "$@"', program, f"http://127.0.0.1:{port}"],
    preexec_fn=become_service, close_fds=False,
    env={**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": dir + "/notify", "WATCHDOG_USEC": "1000000",
         "STATE_DIRECTORY": dir})
listener.close()

def told(what):
    while True:
        text = notify.recv(4096).decode()
        if what in text:
            return
        assert "WATCHDOG=1" in text, text

told("READY=1")
told("WATCHDOG=1")
told("WATCHDOG=1")
url = f"http://127.0.0.1:{port}/_groupcache/files/"
assert b"of the state directory" in urllib.request.urlopen(url + "file").read()
for bad in ("..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "none"):
    try:
        urllib.request.urlopen(url + bad)
        raise SystemExit(bad + " was served")
    except urllib.error.HTTPError as error:
        assert error.code in (404, 503), error.code
# A client in the middle of its request is served before the end.
client = socket.create_connection(("127.0.0.1", port))
client.sendall(b"GET /_groupcache/files/file HTTP/1.1\r\nHost: h\r\n\r\n")
assert client.recv(1000).startswith(b"HTTP/1.1 200")
service.send_signal(signal.SIGTERM)
told("STOPPING=1")
assert service.wait(20) == 0
print("ready, fed, served, stopped")
END
