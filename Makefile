# The commands of this project. README explains `make demo` and `make test`; the others are for those who work on it.
# On a machine with only Python, gcc, git, apt and pip every target installs what it needs: Debian packages where one is
# missing (as root, or through sudo), Python packages into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ACCEPTANCE ?= ../shared/acceptance
SOURCES := pyproject.toml $(wildcard ffi/* trio_uring/*.py trio_uring/*/*.py trio_uring/startup/*) README.md
DEBIAN := gcc:gcc libc6-dev:/usr/include/stdlib.h pkg-config:pkg-config liburing-dev:/usr/include/liburing.h strace:strace python3-venv:@venv python3-dev:@headers

.PHONY: demo test lint docs acceptance cancellation versions suites pythons liburings filesystems containers wheel release faults programs fuzz sanitizers valgrind soak kernels bench figures clean packages

demo: $(VENV)/installed
	@$(BIN)/python docs/demo/demo.py

# What tests/applications drives the servers with, and a server that it is a client of. Without what the browser recommends, which
# is half a desktop.
test pythons: DEBIAN += curl:curl wrk:wrk redis-server:redis-server chromium:chromium
test pythons: APT := --no-install-recommends

# As many tests at once as there are processors. TEST="-n 0 -k fifo" or the like in place of all of them.
TEST ?= -n auto --dist worksteal

test: $(VENV)/installed lint
	$(BIN)/pytest $(TEST)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/docs/public_types.py

# The documentation, into build/docs. A warning is an error.
docs: $(VENV)/installed
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs
	@echo "build/docs/index.html"

# Trio's, AnyIO's and pytest-trio's own suites on the ring, at the default sizes and at the smallest.
acceptance: packages
	PYTHON=$(PYTHON) tests/acceptance.sh $(ACCEPTANCE)

# Trio 0.31 to 0.35, each in an environment of its own.
versions: $(VENV)/installed
	$(BIN)/python tests/entry/trio_versions.py

# The test suites of other projects (Starlette, httpx, Hypercorn…), each held to its result on epoll.
suites: $(VENV)/installed
	$(BIN)/python tests/applications/suites.py

# The project's own tests on every CPython from 3.10 to 3.15: those at hand, and of the others those in Debian's archive, in a chroot.
pythons: DEBIAN += mmdebstrap:mmdebstrap
pythons: packages
	tests/pythons.sh

# The slow proof of the cancellation suite (docs/cancellation.md): each operation raced with each cause 10,000 times, on the
# ring and on epoll. CANCELLATION="--cancellation-runs=1000 -n 2" makes it shorter.
CANCELLATION ?= --cancellation-runs=10000

cancellation: $(VENV)/installed
	for backend in uring epoll; do \
	  $(BIN)/pytest -v -p trio_uring.cancellation --trio-io-backend=$$backend $(CANCELLATION) \
	  || exit; done

# The shim built with liburing 2.3, 2.9 and the newest of Debian's archive, with the ring's tests on each.
liburings: $(VENV)/installed
	$(BIN)/python tests/liburings.py

# The tests that work on files, on an overlay, tmpfs, XFS and Btrfs, mounted for that.
filesystems: DEBIAN += xfsprogs:mkfs.xfs btrfs-progs:mkfs.btrfs
filesystems: $(VENV)/installed
	PYTHON=$(BIN)/python tests/filesystems.sh

# A run under the system call filters of Docker, Podman and systemd themselves (docs/containers.md).
containers: DEBIAN += libseccomp2:/usr/lib/x86_64-linux-gnu/libseccomp.so.2
containers: $(VENV)/installed
	$(BIN)/python tests/containers.py

# A wheel, checked, and tried in an empty environment on a machine view without liburing.
wheel: packages
	PYTHON=$(PYTHON) tests/wheel.sh

# What is uploaded, into dist/: wheels for x86-64 and 64-bit ARM, glibc and musl, built twice and compared, audited, tried, with a
# bill of materials.
release: DEBIAN += gcc-aarch64-linux-gnu:aarch64-linux-gnu-gcc libc6-dev-arm64-cross:/usr/aarch64-linux-gnu/include/stdlib.h qemu-user-static:qemu-aarch64-static
release: packages
	$(PYTHON) tests/release.py

# Every call of the shim fails, in every way in which it may (docs/faults.md), under nine small programs and under all 766 pairs of
# operation and cause of the cancellation suite, at each moment: every fault that hits one call, and of those that hit several every
# tenth under the pairs, 800,000 in all; 67 minutes on two processors. STRIDE=97 tries every 97th of all these. `make test` tries
# a sample: each operation once, with a few faults. Files are in memory: on a disk, making directories takes as long as all the
# rest. And io_uring is forbidden to the whole machine for a moment.
STRIDE ?= 1

faults: $(VENV)/installed
	TRIO_URING_TEST_SYSCTL=1 $(BIN)/pytest -q tests/environment/test_refusals.py -k sysctl
	TMPDIR=/dev/shm TRIO_URING_FAULT_SUITE_STRIDE=$(STRIDE) TRIO_URING_FAULT_PAIRS=10000 TRIO_URING_FAULT_STRIDE=1 TRIO_URING_FAULT_SECONDS=7200 TRIO_URING_TEST_SECONDS=7200 $(BIN)/pytest -q -n 4 tests/faults/test_sweep.py

# Random programs of file calls, on the builtin and on the ring (F48): a minute and a half on one processor.
PROGRAMS ?= 20000

programs: $(VENV)/installed
	$(BIN)/python tests/files/file_programs.py $(PROGRAMS)

# The ring layer under a coverage-guided fuzzer, from tests/faults/corpus on; `make test` replays that.
FUZZ_SECONDS ?= 1200

fuzz: $(VENV)/installed
	FUZZ_SECONDS=$(FUZZ_SECONDS) PYTHON=$(BIN)/python tests/fuzz.sh

# The shim under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitizers: $(VENV)/installed
	PYTHON=$(BIN)/python tests/sanitizers.sh

# The operations of the bare ring under memcheck.
valgrind: DEBIAN += valgrind:valgrind
valgrind: $(VENV)/installed
	PYTHON=$(BIN)/python tests/valgrind.sh

# A minute at full load with everything that can go wrong at once.
soak: $(VENV)/installed
	cd / && $(CURDIR)/$(BIN)/python $(CURDIR)/tests/faults/soak.py 60

# Debian's kernels 6.1, 6.12, 7.2 and the newest one in its archive, in qemu, with the tests inside. ARCH=arm64, after `make release`:
# those for 64-bit ARM, an hour each.
kernels: DEBIAN += qemu-system-x86:qemu-system-x86_64 qemu-system-arm:qemu-system-aarch64
kernels: $(VENV)/installed
	PYTHON=$(BIN)/python tests/kernels.sh

bench: DEBIAN += fio:fio wrk:wrk nghttp2-client:h2load

bench: $(VENV)/installed
	@$(BIN)/pip install -q uvloop aiofiles aiofile py-asyncfiles trustme "hypercorn[trio]>=0.17" "starlette>=0.40"
	$(BIN)/python -m benchmarks $(BENCH)

# The tables of README and docs/, and the plots, out of benchmarks/results/ (`make bench BENCH="--keep NAME"`).
figures: $(VENV)/installed
	@$(BIN)/pip install -q matplotlib
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m benchmarks.plots

# What the commands here write is shown where one fails. Last comes the shim, for what runs in the checkout and so imports the
# package beside it: python -m trio_uring, python -m benchmarks.
$(VENV)/installed: $(SOURCES) | packages
	@echo "$(VENV): building trio-uring, and installing it with what its demonstration and its tests need"
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; ( set -x; \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/pip install -q -U pip && \
	  $(BIN)/pip install -q --force-reinstall --no-deps . && \
	  $(BIN)/pip install -q ".[test,applications,lint]" && \
	  cp --remove-destination $(VENV)/lib/python*/site-packages/trio_uring/_ffi.abi3.so trio_uring/; \
	) >"$$log" 2>&1 || { cat "$$log" >&2; exit 1; }
	@touch $@

packages:
	@missing=""; for pair in $(DEBIAN); do package=$${pair%%:*}; sign=$${pair#*:}; \
	  case $$sign in \
	    @venv) $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing $$package";; \
	    @headers) $(PYTHON) -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null \
	      || missing="$$missing $$package";; \
	    /*) [ -e $$sign ] || missing="$$missing $$package";; \
	    *) command -v $$sign >/dev/null || missing="$$missing $$package";; \
	  esac; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian's$$missing"; \
	  sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	  { $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $(APT) $$missing; \
	  } >"$$log" 2>&1 || { cat "$$log" >&2; exit 1; }; \
	fi

clean:
	rm -rf $(VENV) build dist *.egg-info
