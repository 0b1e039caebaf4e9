#!/bin/bash
# Other kernels for real: boots Debian 12's 6.1 and Debian 13's 6.12, 7.2, and the newest in Debian's archive, experimental among
# it, in qemu, in software (no /dev/kvm needed), with this Python and the tests inside, and says what differs from the kernel of
# this machine. Where the kernel can restrict io_uring for a whole task (7.2), a program runs so restricted (F56); one speaks over
# sockets with kernel TLS (F55), and one closes sockets beside 30,000 that wait (F45), which few machines let a process have.
#
#   PYTHON=.venv/bin/python [KERNELS="6.1. 6.12. 7.2. newest"] [ARCH=arm64] tests/kernels.sh [TEST...]
#
# With ARCH=arm64 Debian's kernels for 64-bit ARM, Debian 12's Python for it, and the wheel that `make release` has built for it in
# dist/; only the rooms that ask the kernel most, since emulating that processor takes four times as long.
#
# Needs what `make kernels` installs: qemu-system-x86 and qemu-system-arm. Downloads come from Debian's archive through apt, whose
# signatures it checks; nothing is installed from them. Everything is kept in build/kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$PWD
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
tests=("$@")
# What asks the kernel most; the rooms above start hundreds of interpreters, and tests/faults needs a compiler. Left out are the
# simulated ring and epoll, which ask it nothing new; the long race of accepts at the smallest sizes, minutes in an emulated
# machine, since the default sizes run it too; O_DIRECT, which the only file system there, ramfs, has not; strace, which
# counts what the shim does, on any kernel; and how often batches enter the kernel, which is told for reads that complete in the
# call: those of 7.2 from a tmpfs do not all.
[ ${#tests[@]} -gt 0 ] || tests=(tests/ring/test_{conformance,operations,batch,no_syscall,spin}.py tests/manager
  tests/sockets/test_promises.py tests/files/test_{positional,pipes,splice,processes}.py
  -k "not simulated and not epoll and not direct_io and not strace and not as_few_entries and not without_time_to_wait and not (test_f9_accept and sq2cq4)")
arch=${ARCH:-amd64}
if [ "$arch" = arm64 ] && [ $# = 0 ]; then
  # Ctrl-C at every line, which takes half of the time, asks the kernel nothing that the rest does not.
  tests=(tests/ring/test_{conformance,operations,batch,no_syscall,spin}.py tests/manager -k "${tests[-1]} and not ctrl_c_at_every_line")
fi
case $arch in
  amd64) machine=(qemu-system-x86_64 -cpu max) console=ttyS0 ;;
  arm64) machine=(qemu-system-aarch64 -M virt -cpu "max,pauth-impdef=on") console=ttyAMA0 ;;
  *) echo "ARCH is amd64 or arm64, not $arch" >&2; exit 2 ;;
esac
work=$tree/build/kernels
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
cd "$work"

key="[arch=$arch signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
# Where this machine gets Debian from.
archive=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' "Created-By: Packages" | sed -n 's,/debian/ main$,/debian,p' | sort -u | head -1)
[ -n "$archive" ] || { echo "apt has no archive of Debian in its sources; add one and try again" >&2; exit 2; }
printf "deb $key $archive %s main\n" bookworm trixie sid experimental >sources.list
apt() {
  "apt-$1" -q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/zero -o APT::Sandbox::User=root \
    -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 \
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" "${@:2}"
}
apt get update >apt.log

# The archive's newest image whose name begins so. Newer ones keep the kernel itself, and its modules, in packages of their own.
boot() {
  local release
  release=$(apt cache search --names-only "^linux-image-${1//./\\.}[0-9.+a-z-]*-cloud-$arch\$" | cut -d' ' -f1 | sort -V | tail -1)
  release=${release#linux-image-}
  if [ ! -e "vmlinuz-$release" ]; then
    apt get download "linux-image-$release:$arch" >>apt.log 2>&1
    for part in binary modules; do apt get download "linux-$part-$release:$arch" >>apt.log 2>&1 || true; done
    for package in linux-{image,binary,modules}-"$release"_*.deb; do
      [ ! -e "$package" ] || dpkg-deb -x "$package" "tree-$release"
    done
    find "tree-$release" -name "vmlinuz*" -exec cp {} "vmlinuz-$release" \;
  fi
  echo "$release"
}

root=/
if [ "$arch" = arm64 ]; then
  root=$work/arm64
  wheel=$(ls "$tree"/dist/*-manylinux*aarch64.whl) || { echo "no wheel for 64-bit ARM in dist/: make release" >&2; exit 2; }
  "$python" "$tree/tests/debian.py" system "$root" bookworm arm64 python3.11 strace dash coreutils netbase
  "$python" -m pip install -q --target "$root/usr/local/lib/python3.11/dist-packages" --python-version 3.11 --only-binary :all: \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 "$wheel[test]"
fi
"$python" "$tree/tests/kernels_init.py" pack image "$tree" "$root" "${tests[@]}"
(cd / && "$python" "$tree/tests/kernels_init.py" probe) >probe.here
status=0
for wanted in ${KERNELS:-6.1. 6.12. 7.2. newest}; do
  release=$(boot "${wanted#newest}")
  echo "=== $release"
  # The console is a serial line; the kernel says nothing on it but what it dies of, and nothing of a machine that stood still.
  cp image "image-$release"
  "$python" "$tree/tests/kernels_init.py" modules "image-$release" "tree-$release" ghash-generic gcm tls
  timeout "${KERNELS_SECONDS:-3600}" "${machine[@]}" -accel tcg,thread=multi -smp "$(nproc)" -m 3072 -no-reboot -display none \
    -monitor none -serial stdio -kernel "vmlinuz-$release" -initrd "image-$release" -append "console=$console quiet panic=-1 no_timer_check nosoftlockup rcupdate.rcu_cpu_stall_suppress=1" \
    </dev/null | sed -u 's/\r//' | tee "log-$release" || true
  grep -o 'trio-uring-probe .*' "log-$release" >probe.there
  (cd / && "$python" "$tree/tests/kernels_init.py" compare "$work/probe.here" "$work/probe.there") || status=1
  grep -q 'io_uring works' "log-$release" || { echo "$release: the doctor does not say that io_uring works"; status=1; }
  grep -E "^trio-uring-restricted " "log-$release" || true
  ! grep -q "^trio-uring-restricted differs" "log-$release" || status=1
  grep -E "^trio-uring-(ktls|closes|program) " "log-$release" || true
  [ "$(grep -c "^trio-uring-program .*: exit status 0" "log-$release")" = 2 ] || status=1
  grep -E '^(FAILED|ERROR) |^=+ .*(passed|failed|error).* in ' "log-$release" || true
  grep -qE '^=+ [0-9]+ passed[^f]* in ' "log-$release" || status=1
done
exit $status
