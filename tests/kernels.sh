#!/bin/bash
# Other kernels for real: boots Debian 12's 6.1 kernel and the newest one in Debian's archive in qemu, in software (no
# /dev/kvm needed), with this Python and the tests inside, and says what differs from the kernel of this machine.
#
#   PYTHON=.venv/bin/python tests/kernels.sh [TEST...]
#
# Needs what `make kernels` installs: qemu-system-x86. Downloads come from Debian's archive through apt, whose signatures
# it checks; nothing is installed from them. Everything is kept in build/kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$PWD
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(tests/ring/test_conformance.py tests/ring/test_operations.py tests/manager/test_operations.py
  tests/manager/test_readiness.py tests/manager/test_closing.py tests/manager/test_wakeups.py tests/sockets/test_promises.py)
work=$tree/build/kernels
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
cd "$work"

key="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
# Where this machine gets Debian from.
archive=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' "Created-By: Packages" | sed -n 's,/debian/ main$,/debian,p' | sort -u | head -1)
[ -n "$archive" ] || { echo "apt has no archive of Debian in its sources; add one and try again" >&2; exit 2; }
printf "deb $key $archive %s main\n" bookworm sid >sources.list
apt() {
  "apt-$1" -q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/zero -o APT::Sandbox::User=root \
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" "${@:2}"
}
apt get update >apt.log

# The archive's newest image whose name begins so. Newer ones keep the kernel itself in a package of its own.
boot() {
  local release
  release=$(apt cache search --names-only "^linux-image-$1[0-9.+a-z-]*-cloud-amd64\$" | cut -d' ' -f1 | sort -V | tail -1)
  release=${release#linux-image-}
  if [ ! -e "vmlinuz-$release" ]; then
    apt get download "linux-image-$release" >>apt.log 2>&1
    apt get download "linux-binary-$release" >>apt.log 2>&1 || true
    for package in linux-image-"$release"_*.deb linux-binary-"$release"_*.deb; do
      [ ! -e "$package" ] || dpkg-deb -x "$package" "tree-$release"
    done
    find "tree-$release" -name "vmlinuz*" -exec cp {} "vmlinuz-$release" \;
  fi
  echo "$release"
}

"$python" "$tree/tests/kernels_init.py" pack image "$tree" "${tests[@]}"
(cd / && "$python" "$tree/tests/kernels_init.py" probe) >probe.here
status=0
for wanted in 6.1. ""; do
  release=$(boot "$wanted")
  echo "=== $release"
  # The console is a serial line; the kernel says nothing on it but what it dies of.
  timeout "${KERNELS_SECONDS:-1800}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -no-reboot -display none \
    -monitor none -serial stdio -kernel "vmlinuz-$release" -initrd image -append "console=ttyS0 quiet panic=-1" \
    </dev/null | sed -u 's/\r//' | tee "log-$release" || true
  grep -o 'trio-uring-probe .*' "log-$release" >probe.there
  "$python" "$tree/tests/kernels_init.py" compare probe.here probe.there
  grep -E '^(FAILED|ERROR) |^=+ .*(passed|failed|error).* in ' "log-$release" || true
  grep -qE '^=+ [0-9]+ passed[^f]* in ' "log-$release" || status=1
done
exit $status
