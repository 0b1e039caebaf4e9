"""The tables of figures in README and docs/: `python -m benchmarks.tables` writes them anew, out of the results that are kept.

A table stands between `<!-- figures: NAME -->` and `<!-- end of figures -->`. Nobody writes into it by hand: a test compares it
with what is kept. Each row names its workload, which `make bench BENCH="--only NAME"` measures.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders import CONTENDERS
from benchmarks.kept import Kept, last
from benchmarks.model import CANDIDATE, METRICS, REFERENCE, Spread

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "docs/benchmarks.md",
    "docs/files.md",
    "docs/applications.md",
    "docs/asymmetric.md",
    "docs/pool.md",
    "docs/howto/vectors.md",
)
BLOCK = re.compile(r"(<!-- figures: (?P<name>[a-z_]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
TITLES = {contender.name: contender.title for contender in CONTENDERS}


class Row(NamedTuple):
    """A row: what it is to a reader, the case, and which figure of it."""

    title: str
    case: str
    metric: str = "cpu_us"
    to: str = REFERENCE


_ECHO = (
    Row("echo 1 KiB, 50 connections", "echo_stream_1k/50"),
    Row("echo 1 KiB, 500 connections", "echo_stream_1k/500"),
)
_FILES = (
    Row("open, read, close a file of 4 KiB", "open_trio"),
    Row("`Path.read_bytes`, 4 KiB", "open_path"),
    Row("`read_at` 4 KiB, one task", "read_4k/1", to="trio-threads"),
)

TABLES: Mapping[str, tuple[Row, ...]] = {
    "readme": (
        *_ECHO,
        Row("one connection, median time", "latency", "p50_us"),
        Row("connect, echo, close; 50 clients", "churn/50"),
        Row("UDP echo, one client", "udp_echo/1"),
        Row("echo 1 KiB over TLS", "tls_echo"),
        Row("Hypercorn, JSON", "hypercorn_json"),
        *_FILES,
        Row("a thousand small files, `read_files`", "whole_files/read_files"),
        Row("a wake-up from a thread and back", "wake_thread"),
    ),
    "sockets": (
        *_ECHO,
        Row("the same with `trio.socket`", "echo_socket_1k/50"),
        Row("echo 100 KiB", "echo_100k"),
        Row("one connection, median time", "latency", "p50_us"),
        Row("one connection, CPU", "latency"),
        Row("connect, echo, close; 1 client", "churn/1"),
        Row("connect, echo, close; 50 clients", "churn/50"),
        Row("UDP echo, 1 client", "udp_echo/1"),
        Row("UDP echo, 50 clients", "udp_echo/50"),
        Row("queries like DNS's, 50 clients", "dns"),
        Row("echo 1 KiB over TLS", "tls_echo"),
        Row("each receive under a deadline, 1 pair", "timeouts/1"),
        Row("each receive under a deadline, 50 pairs", "timeouts/50"),
        Row("small exchanges beside 16 bulk streams, 99th percentile", "mixed/16", "p99_us"),
    ),
    "loop": (
        Row("a wake-up from a thread and back", "wake_thread"),
        Row("the same, median time", "wake_thread", "p50_us"),
        Row("a wake-up of a loop that does not sleep", "wake_running"),
        Row("an idle tick", "idle_tick"),
        Row("a receive begun and cancelled, beside 1", "cancels/1"),
        Row("the same, beside 10,000", "cancels/10000"),
        Row("a socket closed under its receive, beside 1", "closes/1"),
        Row("the same, beside 10,000", "closes/10000"),
        Row("a thousand receives begun, and cancelled at once", "cancel_storm"),
    ),
    "files": (
        *_FILES,
        Row("`read_at` 4 KiB, 32 tasks", "read_4k/32", to="trio-threads"),
        Row("`anyio.open_file`, read, close, 4 KiB", "open_anyio"),
        Row("one of 1,000 files of 4 KiB, `read_files`", "whole_files/read_files"),
        Row("the same, `Path.read_bytes` from 32 tasks", "whole_files/read_bytes"),
        Row("an entry, `anyio.Path.iterdir` and `is_dir`", "listing/is_dir"),
        Row("an entry, `anyio.Path.rglob`", "listing/rglob"),
        Row("one of 1,024 reads of 4 KiB, page cache", "read_many_cached"),
        Row("one of 1,024 reads of 4 KiB, O_DIRECT", "read_many_direct"),
        Row("a line of text, `async for`", "text_lines"),
        Row("sequential read, 4 KiB", "sequential_read/4k"),
        Row("sequential read, 64 KiB", "sequential_read/64k"),
        Row("sequential read, 1 MiB", "sequential_read/1m"),
        Row("sequential write, 4 KiB", "sequential_write/4k"),
        Row("sequential write, 64 KiB", "sequential_write/64k"),
        Row("sequential write, 1 MiB", "sequential_write/1m"),
    ),
    "waiting": tuple(
        Row(title, f"direct_reads/{label}")
        for title, label in (
            ("O_DIRECT, one task", "direct_1"),
            ("O_DIRECT, 32 tasks", "direct_32"),
            ("dropped from the page cache, one task", "cold_1"),
            ("the same, 32 tasks", "cold_32"),
        )
    ),
    "paths": tuple(
        Row(title, f"paths/{label}")
        for title, label in (
            ("`stat`", "stat"),
            ("`exists` of what is not there", "missing"),
            ("`rename`", "rename"),
            ("`touch` of a new file, and `unlink`", "touch"),
            ("`symlink_to`, and `unlink`", "symlink"),
            ("`mkdir`, and `rmdir`", "mkdir"),
            ("`write_bytes`, 4 KiB over an old file", "write"),
        )
    ),
    "pool": (
        Row(
            "lists of 64 cached blocks, `readinto_many` into buffers used again", "pool_cached/into", "rate", "c-floor"
        ),
        Row("the same, CPU of a block", "pool_cached/into", to="c-floor"),
        Row("lists of 64 cached blocks, `read_many`, new bytes", "pool_cached/bytes", "rate", "c-floor"),
        Row("the same, CPU of a block", "pool_cached/bytes", to="c-floor"),
        Row("O_DIRECT, 32 in flight in each", "pool_direct", "rate", "fio"),
        Row("the same, CPU of a block", "pool_direct", to="fio"),
        Row("a ring acquired and released", "pool_acquire"),
    ),
    "vectors": (
        Row("records a second, cold cache", "nearest/cold", "rate", "trio-threads"),
        Row("records a second, warm cache", "nearest/warm", "rate", "trio-threads"),
        Row("CPU of a record, cold cache", "nearest/cold", to="trio-threads"),
        Row("CPU of a record, warm cache", "nearest/warm", to="trio-threads"),
    ),
    "web": (
        Row("Hypercorn, JSON", "hypercorn_json"),
        Row("Hypercorn, JSON over HTTP/2", "hypercorn_h2"),
        Row("`StaticFiles`, 1 KiB", "static_files/1k"),
        Row("`StaticFiles`, 1 MiB", "static_files/1m"),
        Row("1 KiB from memory, no file", "static_files/no_file"),
        Row("a file of 1 KiB, in place", "static_files/in_place"),
    ),
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _range(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def _line(row: Row, kept: Kept, named: bool) -> str:
    def figure(contender: str) -> str:
        spread = kept.spread(contender, row.metric)
        return "" if spread is None else _number(spread.median)

    others = [
        (s.median, TITLES[name])
        for name in kept.case["rounds"]
        if (s := kept.spread(name, row.metric)) is not None and name not in (row.to, CANDIDATE)
    ]
    cells = (
        row.title,
        f"`{row.case}`",
        "" if row.metric == "cpu_us" else METRICS[row.metric].heading,
        f"{TITLES[row.to]} {figure(row.to)}" if named else figure(row.to),
        figure(CANDIDATE),
        _range(kept.ratio(CANDIDATE, row.metric, row.to)),
        ", ".join(f"{title} {_number(median)}" for median, title in sorted(others)),
    )
    return f"| {' | '.join(cells)} |"


def table(rows: tuple[Row, ...], kept: Mapping[str, Kept]) -> str:
    """The table, in Markdown. KeyError with the name of a case that is not kept."""
    others = {row.to for row in rows}
    named = not others <= {REFERENCE, "trio-threads"}  # each row says to whom its ratio is
    first = TITLES[rows[0].to] if len(others) == 1 else "beside" if named else "epoll, or threads"
    lines = [
        f"| CPU µs, or as said | workload | | {first} | trio-uring | ratio | others |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(row, kept[row.case], named) for row in rows)]) + "\n"


ASYMMETRIC = ("asymmetric/50", "asymmetric/500")
WAYS = {
    "uring": "trio-uring",
    "group": "trio-uring in a group",
    **{n: TITLES[n] for n in ("uvloop-protocol", "uvloop-streams")},
}


def asymmetric(kept: Mapping[str, Kept]) -> str:
    """The table of `python -m benchmarks.asymmetric`, which has figures of its own."""
    heading = (
        "workload",
        "",
        "loop, µs",
        "of trio-uring's",
        "poller, µs",
        "system calls",
        "echoes/s",
        "p50, ms",
        "p99, ms",
    )
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for name in ASYMMETRIC:
        case = kept[name]
        for way, title in WAYS.items():
            figures = {m: f["median"] for m, f in case.case["contenders"][way]["figures"].items()}
            cells = (
                f"`{name}`",
                title,
                _number(figures["loop_us"]),
                "" if way == "uring" else _range(case.ratio(way, "loop_us", "uring")),
                _number(figures["kernel_us"]) if way == "group" else "",
                f"{figures['calls']:.3f}",
                _number(figures["rate"]),
                _number(figures["p50_us"] / 1e3),
                _number(figures["p99_us"] / 1e3),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def written(text: str, kept: Mapping[str, Kept]) -> str:
    """A page with its tables as they have to be."""

    def made(found: re.Match[str]) -> str:
        name = found["name"]
        rows = asymmetric(kept) if name == "asymmetric" else table(TABLES[name], kept)
        return f"{found[1]}\n{rows}\n{found[3]}"

    return BLOCK.sub(made, text)


def main() -> None:
    kept = last()
    for name in PAGES:
        page = ROOT / name
        page.write_text(written(page.read_text(), kept))
    print(f"{len(kept)} cases kept; written: {', '.join(PAGES)}", file=sys.stderr)


if __name__ == "__main__":
    main()
