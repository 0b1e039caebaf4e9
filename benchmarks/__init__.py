"""The benchmark harness: `python -m benchmarks`.

    python -m benchmarks                        every workload, five rounds (about a quarter of an hour)
    python -m benchmarks --quick                most of them with short windows, in four minutes: a look, not a figure to quote
    python -m benchmarks --only echo_stream_1k  one workload; `--only echo_stream_1k/50,latency` single cases
    python -m benchmarks --contenders trio-epoll,trio-uring,trio-uring-nospec
    python -m benchmarks --list                 workloads, cases, targets, contenders, what is available
    python -m benchmarks --check                exit status 1 unless every target was measured and met

The table goes to standard output, progress to standard error, every raw figure to a JSON file (`--json PATH`,
else under build/benchmarks/).

How it measures. Each case of a workload is played in rounds. In each round every contender is measured
once, in an order that moves by one from round to round, so a disturbance of the machine falls on all of
them alike. Each measurement has a server process of its own, pinned to one core, and the load generator
(load.c, compiled on demand into a cache directory) on another. A workload that performs its requests itself, such as those with
files, has both cores, since threads and the kernel's workers would. Figures cover the measured window only,
after a warm-up:

    CPU µs     user + system time of the server process, all of its threads, per request: the steady figure
    requests/s, p50, p99
    of X       ratio to contender X in the same round; the table shows the median of these ratios
    calls      system calls of the server per request, from a separate run under `strace -c -f`
    threads    threads beside the main one at the end of the window; the kernel's own workers are none
    busy       share of the window in which the server had its core; well below 1 under full load means that
               the load generator, or somebody else on the machine, set the pace

A figure is the median of the rounds; behind it is how far below and above it the smallest and the largest
round are (17.2 -2+5%). Rounds in which the server had to wait for its core (somebody else ran there) are
named under the table.

How to add to it. A contender is one entry in contenders.py. A workload is one file in workloads/ with
`WORKLOAD`, a `Workload`, and `async def main(stage)` in plain Trio: it runs unchanged on every Trio
backend, because the contender chooses the backend and the workload does not know it. A workload with a
`Load` is a server, and tells its port with `stage.serving(port)`; one without performs its requests itself,
once for each turn of `for _ in stage.laps()`.
"""
