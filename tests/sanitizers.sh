#!/bin/bash
# The shim under AddressSanitizer and UndefinedBehaviorSanitizer, and tests on it: those given, or all that the shim runs in.
# What Python and Trio allocate goes through malloc as well, so that a write of the kernel's, or of the shim's, beside or after
# its memory is seen as soon as anybody touches it. Leaks are not looked for here: the interpreter never frees all; the soak
# test looks at memory.
#
# Left out: tests/entry, tests/environment and most of tests/applications, whose programs are started with an environment of their
# own and so run on the installed shim; and what counts memory or system calls, of which the sanitizers have their own.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(dirname "$(realpath -s "${PYTHON:-.venv/bin/python}")")
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(tests/ring tests/manager tests/sockets tests/files tests/cancellation tests/faults
  tests/applications/test_anyio_on_the_ring.py)
variant=$("$bin/python" tests/faults/shim_variants.py --sanitize | tail -1)
log=build/variants/sanitizers.log
rm -f "$log".*
trap 'cat "$log".* 2>/dev/null || true' EXIT # pytest hides what a process writes that dies
# The simulated ring hands addresses to the C library as the kernel would get them, bad ones of the fuzzer's among them.
echo interceptor_via_lib:libffi >"$PWD/build/variants/suppressed"
export ASAN_OPTIONS=suppressions=$PWD/build/variants/suppressed:detect_leaks=0:allocator_may_return_null=1:handle_segv=0:log_path=$PWD/$log UBSAN_OPTIONS=print_stacktrace=1:log_path=$PWD/$log
export LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)"
export PYTHONMALLOC=malloc PYTHONPATH=$variant TRIO_URING_SANITIZED=1
"$bin/python" -c 'import os; os.chdir("/"); from trio_uring._ring import ring as _ring; assert "variants" in _ring.__file__, _ring.__file__'
"$bin/pytest" -q -p no:cacheprovider --deselect tests/manager/test_accounting.py::test_strace_agrees \
  --deselect tests/sockets/test_promises.py::test_idle_connections_hold_no_receive_memory "${tests[@]}"
