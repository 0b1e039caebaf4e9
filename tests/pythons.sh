#!/bin/bash
# tests/pythons.sh [PYTEST ARGUMENTS]: the project's own tests on every CPython from 3.10 to 3.14 that is at hand.
set -u
failed=0 ran=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for version in 3.10 3.11 3.12 3.13 3.14; do
    python=$(command -v "python$version") && "$python" -c 'import venv' 2>/dev/null || { echo "== $version: not here"; continue; }
    echo "== $("$python" --version)"
    ran=$((ran + 1))
    "$python" -m venv "$scratch/$version" && "$scratch/$version/bin/pip" install -q -U pip &&
        "$scratch/$version/bin/pip" install -q ".[test,applications]" && "$scratch/$version/bin/pytest" -q "$@" || failed=1
done
[ "$ran" -gt 0 ] || { echo "no CPython from 3.10 to 3.14 here" >&2; exit 2; }
exit $failed
