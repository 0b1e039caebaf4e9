#!/bin/bash
# tests/wheel.sh: what a build without liburing, pkg-config or a compiler says. Then a wheel is built, checked to need no
# liburing at run time, and a program runs from it in an empty environment. The check is auditwheel's (which knows what every manylinux system has) and the dynamic loader's.
set -eu
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/build" && "$scratch/build/bin/pip" install -q -U pip auditwheel

# refused SENTENCE NAME=VALUE: with that in the environment the build fails, and says what to install.
refused() {
    if env "$2" "$scratch/build/bin/pip" wheel --no-deps -w "$scratch/none" . >"$scratch/log" 2>&1; then
        echo "built with $2" >&2; exit 1
    fi
    grep -q "trio-uring cannot be built: $1.*install" "$scratch/log" || { cat "$scratch/log" >&2; exit 1; }
}
refused "liburing's headers are not installed" PKG_CONFIG_LIBDIR=/nowhere
refused "pkg-config, which finds liburing, is not installed" PATH=/nowhere
refused "the C compiler .* is not installed" CC=no-such-compiler

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
