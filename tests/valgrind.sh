#!/bin/bash
# Tests of the ring, its batches, the operations above it and positional reads and writes under valgrind's memcheck: reads of memory
# that was never written, and writes outside of it. valgrind knows io_uring's system calls; what the kernel writes through a
# ring it cannot see, so memory that only the kernel fills counts as unwritten. The mappings of the queues are no such memory, and
# what tests read is compared by Python, whose errors are not counted: only those with the shim in their stack are. Tests with
# signals or deadlines, and races over thousands of rounds, are not for valgrind, which delivers signals late and is some
# forty times slower; nor are those in which another thread is to do something while one sleeps in the kernel, since valgrind
# lets none run during io_uring_enter(2), nor those that set a limit of descriptors, of which valgrind keeps some.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(dirname "$(realpath -s "${PYTHON:-.venv/bin/python}")")
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(tests/ring/test_{operations,batch,conformance}.py tests/manager/test_operations.py
  tests/files/test_positional.py -k "not simulated and not epoll and not cancel_in_one_batch and not from_zero_to_late and \
not signal and not interrupt and not thread and not slow_reader and not from_outside and not without_descriptors and \
not cannot_be_made")
variant=$("$bin/python" tests/faults/shim_variants.py | tail -1)
log=build/variants/valgrind.log
# A bytes object of one byte is looked up by what only the kernel has written.
cat >build/variants/valgrind.supp <<END
{
  one-byte
  Memcheck:Value8
  ...
  fun:PyBytes_FromStringAndSize
  ...
  fun:tu_wait
}
END
PYTHONMALLOC=malloc PYTHONPATH=$variant TRIO_URING_TEST_SECONDS=1200 valgrind --tool=memcheck --error-limit=no --num-callers=30 --suppressions=build/variants/valgrind.supp \
  --log-file="$log" -q \
  "$bin/python" "$bin/pytest" -q -p no:cacheprovider -p no:xdist -p no:faulthandler "${tests[@]}"
# Errors are paragraphs of the log.
if awk 'BEGIN { RS = "==[0-9]+== \n" } /_ffi\.abi3\.so/ { print; found = 1 } END { exit !found }' "$log"; then
  echo "valgrind found errors in the shim"
  exit 1
fi
echo "valgrind found no error in the shim"
