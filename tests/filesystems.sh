#!/bin/bash
# tests/filesystems.sh [PYTEST ARGUMENTS]: the rooms that work on files, once more on other file systems than that of this machine's
# temporary directory: an overlay, tmpfs, and XFS and Btrfs in an image each, on a loop device. Everything is mounted in a mount
# namespace of its own and is gone with it, as root or through sudo.
#
#   [PYTHON=.venv/bin/python] [FILESYSTEMS="overlay tmpfs xfs btrfs"] tests/filesystems.sh [PYTEST ARGUMENTS]
#
# Left out on an overlay and on tmpfs are the tests of which way is taken on a disk's file system, since there it is
# another; and on an overlay those that lay one upon it, which the kernel refuses.
#
# Which of them cannot be had here (no right to mount, no loop device, not in this kernel) is said; it fails where a test fails, and
# where none of them could be had.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$PWD
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
work=$tree/build/filesystems
if [ -z "${FILESYSTEMS_INSIDE:-}" ]; then
  root=""
  [ "$(id -u)" = 0 ] || root="sudo -E"
  $root unshare --mount --propagation private true || { echo "no file system can be mounted here"; exit 2; }
  exec $root env FILESYSTEMS_INSIDE=1 PYTHON="$python" unshare --mount --propagation private "$0" "$@"
fi
mkdir -p "$work"

# What is mounted in the folder $2.
make_one() {
  case $1 in
    overlay)
      rm -rf "$work"/overlay-{lower,upper,work}
      mkdir -p "$work"/overlay-{lower,upper,work}
      mount -t overlay -o "lowerdir=$work/overlay-lower,upperdir=$work/overlay-upper,workdir=$work/overlay-work" overlay "$2"
      ;;
    tmpfs) mount -t tmpfs tmpfs "$2" ;;
    *)
      rm -f "$work/$1.image"
      truncate -s 2G "$work/$1.image"
      "mkfs.$1" -q "$work/$1.image"
      mount -o loop "$work/$1.image" "$2"
      ;;
  esac
}

rooms=tests/files
disk=(test_positional.py::test_in_as_few_entries_as_the_ring_allows test_elsewhere.py::test_where_files_are
  test_whole_files.py::test_on_the_spot_is_what_is_at_hand_and_of_this_machine)
left_out() {
  local each
  case $1 in
    overlay) set -- "${disk[@]}" test_at_hand.py::test_{on_other_file_systems,what_is_in_memory_is_read_on_the_spot} \
      test_elsewhere.py::test_{where_mounts_are,f53_an_overlay_over_what_is_elsewhere_is_elsewhere,f54_the_loops_thread_copies_nothing_up} \
      test_whole_files.py::test_file_systems_that_know_no_rwf_nowait "test_open_files.py::test_what_is_at_hand_is_opened_without_an_entry[r+]" \
      "test_open_files.py::test_what_is_at_hand_is_opened_without_an_entry[r+b]" ;;
    tmpfs) set -- "${disk[@]}" test_borrowed.py::test_what_is_cached_takes_no_thread_and_what_is_not_does ;;
    # Neither copies up what it can share, and XFS keeps no link's end in the cache of names.
    xfs) set -- test_elsewhere.py::test_f54_the_loops_thread_copies_nothing_up "${disk[2]}" ;;
    btrfs) set -- test_elsewhere.py::test_f54_the_loops_thread_copies_nothing_up ;;
  esac
  for each in "$@"; do echo "--deselect=$rooms/$each"; done
}

failed=0 ran="" none=""
for kind in ${FILESYSTEMS:-overlay tmpfs xfs btrfs}; do
  on=$work/$kind
  mkdir -p "$on"
  if ! (make_one "$kind" "$on") >"$work/$kind.log" 2>&1; then
    none+=" $kind ($(tail -1 "$work/$kind.log"))"
    continue
  fi
  echo "== $kind: $(findmnt -n -o FSTYPE,OPTIONS -T "$on")"
  mapfile -t without < <(left_out "$kind")
  [ ${#without[@]} = 0 ] || printf '   %s\n' "left out:" "${without[@]#--deselect=$rooms/}"
  mkdir "$on/tmp"
  (cd "$tree" && TMPDIR=$on/tmp "$python" -m pytest -q -p no:cacheprovider --basetemp="$on/tmp/pytest" $rooms "${without[@]}" "$@") \
    || { failed=1; echo "$kind: failed"; }
  ran+=" $kind"
  umount -l "$on"
done
rm -rf "$work"/*.image "$work"/overlay-*
[ -z "$none" ] || echo "not to be had here:$none"
[ -n "$ran" ] || exit 2
echo "tried:$ran"
exit $failed
