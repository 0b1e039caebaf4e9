#!/bin/bash
# tests/acceptance.sh DIR: Trio's, AnyIO's and pytest-trio's own suites on the ring, unedited, each held to its recorded
# epoll baseline, at the default sizes and at the smallest. DIR holds run_<suite>.sh. SUITES and SIZES narrow it down.
set -u
dir=$1 failed=0
[ -x "$dir/run_trio.sh" ] || { echo "no acceptance suites in $dir (set ACCEPTANCE)" >&2; exit 2; }
export TRIO_IO_BACKEND=uring ACCEPT_EXPECT=uring PROJECT_DIR=$PWD
for size in ${SIZES:-default sq_entries=2,cq_entries=4}; do
    if [ "$size" = default ]; then unset TRIO_URING_OPTIONS; else export TRIO_URING_OPTIONS=$size; fi
    for suite in ${SUITES:-trio anyio pytest_trio}; do
        echo "== $suite, $size"
        "$dir/run_$suite.sh" || failed=1
    done
done
exit $failed
