#!/bin/bash
# The ring layer under a coverage-guided fuzzer (tests/faults/fuzz_ring.py), its shim compiled with faults, AddressSanitizer,
# UndefinedBehaviorSanitizer and coverage: for so many seconds, from the inputs in tests/faults/corpus on. Afterwards these are
# as few and as short as cover the same; what broke a promise is in build/fuzz/found-*.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
variant=$("$python" tests/faults/shim_variants.py --faults --sanitize --coverage | tail -1)
mkdir -p build
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)"
export PYTHONMALLOC=malloc PYTHONPATH=$variant
"$python" -X faulthandler tests/faults/fuzz_ring.py fuzz tests/faults/corpus build/fuzz "${FUZZ_SECONDS:-1200}"
