#!/bin/bash
# tests/pythons.sh [PYTEST ARGUMENTS]: the project's own tests on every CPython from 3.10 to 3.15: those that are at hand, and of the
# others those that Debian's archive has, installed in a chroot under build/pythons (as root, or through sudo) and not on this
# machine. And on the free-threaded 3.14t and 3.15t where they are at hand; Debian has none.
#
#   [PYTHONS="3.14 3.15"] [PYTHONS_FROM=here|debian] [PYTHONS_SHORT=1] tests/pythons.sh [PYTEST ARGUMENTS]
#
# The short form, which CI runs on the newest, is the tests of what the interpreter itself decides: how the shim is built and bound,
# the start-up hook, imports, attaching, encodings; and the ring's.
#
# Each runs in a copy of the tree, built there: with the liburing and the compiler of this machine on the Pythons here, with the newest
# of Debian's in the chroot. It fails where none of the versions that were asked for could be had.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$PWD
work=$tree/build/pythons${PYTHONS_SHORT:+-short}
mkdir -p "$work"
root=""
[ "$(id -u)" = 0 ] || root="sudo -E"
# What the tests start and what the build needs; the interpreters come on top.
tools=ca-certificates,gcc,libc6-dev,pkg-config,liburing-dev,strace
if [ -z "${PYTHONS_SHORT:-}" ]; then
  tools+=,procps,iproute2,curl,wrk,redis-server,chromium
else
  set -- -n auto tests/environment/test_build.py tests/entry/test_{startup_hook,lazy_imports,io_backend_keyword}.py tests/applications/test_attach.py \
    tests/files/test_{encodings,workers}.py tests/ring/test_{conformance,operations}.py tests/manager/test_operations.py "$@"
fi

copy_to() {
  mkdir -p "$1"
  tar c --exclude ./build --exclude ./.venv --exclude ./.git --exclude "*.so" --exclude "__pycache__" -C "$tree" . | tar x -C "$1"
}

# What is done on each Python, in its copy of the tree: $1 is the interpreter, the rest pytest's.
job='
set -e
python=$1; shift
"$python" -m venv .venv
.venv/bin/pip install -q -U pip
.venv/bin/pip install -q --no-deps .
.venv/bin/pip install -q ".[test,applications]"
cp .venv/lib/python*/site-packages/trio_uring/_ffi.*so trio_uring/
if .venv/bin/python -c "import sysconfig, sys; sys.exit(not sysconfig.get_config_var(\"Py_GIL_DISABLED\"))"; then
  .venv/bin/python -W error -c "import sys, trio_uring, trio_uring._ffi; assert not sys._is_gil_enabled(), \"the import has switched the lock on\""
fi
exec .venv/bin/pytest -q "$@"'

chroot_ready() {
  local archive options=() line
  archive=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' "Created-By: Packages" | sed -n 's,/debian/ main$,/debian,p' | sort -u | head -1)
  [ -n "$archive" ] || { echo "apt has no archive of Debian in its sources; add one and try again" >&2; return 1; }
  # How this machine reaches it.
  while read -r line; do options+=("--aptopt=${line%;}"); done < <(apt-config dump --no-empty Acquire | grep -E "Proxy|Check-Valid-Until")
  [ ! -e "$work/sid.packages" ] || [ "$(cat "$work/sid.packages")" = "$1" ] || $root rm -rf "$work/sid" "$work/sid.packages"
  if [ ! -e "$work/sid.packages" ]; then
    $root rm -rf "$work/sid"
    echo "installing in a chroot: $1"
    $root mmdebstrap --quiet --mode=root --variant=minbase "${options[@]}" --include="$1" sid "$work/sid" \
      "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive sid main" >"$work/mmdebstrap.log" 2>&1 \
      || { tail -5 "$work/mmdebstrap.log" >&2; return 1; }
    echo "$1" >"$work/sid.packages"
  fi
  # The network, and whom pip trusts, as here.
  $root cp -L /etc/resolv.conf /etc/hosts "$work/sid/etc/"
  $root rm -rf "$work/sid/etc/ssl/certs" # links whose targets would be this machine's
  $root cp -rL /etc/ssl/certs "$work/sid/etc/ssl/"
  [ ! -e /etc/pip.conf ] || $root cp -L /etc/pip.conf "$work/sid/etc/"
}

# An interpreter of that version with which a venv can be made and an extension built: one on the path, or one of pyenv's, whose
# commands on the path refuse those that are not chosen.
at_hand() {
  local python
  for python in $(command -v "python$1") "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"python$1"; do
    if "$python" -c 'import ensurepip, os, sysconfig, venv; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  return 1
}

in_debian() {
  case " 3.13 3.14 3.15 " in *" $1 "*) return 0 ;; esac
  return 1
}

failed=0 ran="" none=""
packages=$tools
versions=${PYTHONS:-3.10 3.11 3.12 3.13 3.14 3.15 3.14t 3.15t}
for version in 3.13 3.14 3.15; do
  if [ -z "${PYTHONS_SHORT:-}" ] || [[ " $versions " == *" $version "* ]]; then
    packages+=,python$version-venv,python$version-dev
  fi
done
for version in $versions; do
  if [ "${PYTHONS_FROM:-here}" = here ] && python=$(at_hand "$version"); then
    echo "== $("$python" -VV | head -1), $python"
    rm -rf "$work/tree-$version"
    copy_to "$work/tree-$version"
    (cd "$work/tree-$version" && sh -c "$job" job "$python" "$@") || { failed=1; echo "$version: failed"; }
  elif in_debian "$version"; then
    chroot_ready "$packages" || exit 2
    $root rm -rf "$work/sid/root/tree"
    copy_to "$work/copy" && $root mv "$work/copy" "$work/sid/root/tree"
    echo "== $($root chroot "$work/sid" "python$version" -VV), of Debian, in a chroot"
    # Its root becomes the root of a mount namespace: with chroot(2) alone "/" would be no mount, and user namespaces forbidden.
    $root unshare --mount --propagation private sh -ec '
      mount --bind "$0" "$0" # its /tmp lies on this disk
      mount -t proc proc "$0/proc"; mount --rbind /sys "$0/sys"; mount --rbind /dev "$0/dev"
      cd "$0"; mkdir -p .before; pivot_root . .before; umount -l .before
      exec env HOME=/root TMPDIR=/tmp PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c '\''cd /root/tree; job=$1; shift; exec sh -c "$job" job "$@"'\'' in "$@"' \
      "$work/sid" "$job" "python$version" "$@" || { failed=1; echo "$version: failed"; }
  else
    none+=" $version"
    continue
  fi
  ran+=" $version"
done
[ -z "$none" ] || echo "neither at hand nor in Debian's archive:$none"
[ -n "$ran" ] || exit 2
echo "tried:$ran"
exit $failed
