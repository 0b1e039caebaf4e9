#!/bin/bash
# tests/wheel.sh: builds a wheel, checks that it needs no liburing at run time, and runs a program from it in an empty
# environment. The check is auditwheel's (which knows what every manylinux system has) and the dynamic loader's.
set -eu
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/build" && "$scratch/build/bin/pip" install -q -U pip auditwheel
"$scratch/build/bin/pip" wheel -q --no-deps -w "$scratch/dist" .
wheel=$(ls "$scratch"/dist/*.whl)
case $wheel in *-cp310-abi3-*) ;; *) echo "not an abi3 wheel: $wheel" >&2; exit 1 ;; esac
"$scratch/build/bin/auditwheel" show "$wheel" | tee "$scratch/audit"
if grep -q liburing "$scratch/audit"; then echo "the wheel needs liburing" >&2; exit 1; fi
grep -q 'manylinux' "$scratch/audit"

"$python" -m venv "$scratch/empty"
"$scratch/empty/bin/pip" install -q "$wheel"
shim=$(find "$scratch/empty" -name '_ffi*.so')
if ldd "$shim" | grep -q liburing; then echo "the shim is linked against liburing.so" >&2; exit 1; fi
cat >"$scratch/program.py" <<'PY'
import trio

async def main():
    left, right = trio.socket.socketpair()
    await left.send(b"ring")
    assert await right.recv(4) == b"ring"
    print(trio.lowlevel.current_statistics().io_statistics.backend)

trio.run(main)
PY
cd "$scratch"
[ "$(TRIO_IO_BACKEND=uring "$scratch/empty/bin/python" program.py)" = uring ]
[ "$("$scratch/empty/bin/python" program.py)" = epoll ]
[ "$("$scratch/empty/bin/python" -m trio_uring run program.py)" = uring ]
"$scratch/empty/bin/python" -m trio_uring doctor >/dev/null
echo "wheel: ok ($(basename "$wheel"))"
