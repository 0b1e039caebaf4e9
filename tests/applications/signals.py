"""Prints the name of each signal that comes, and ends with SIGTERM. It knows nothing of trio-uring."""

import signal

import trio
from served import facts


async def main() -> None:
    with trio.open_signal_receiver(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM) as receiver:
        print(facts()["backend"], flush=True)
        async for number in receiver:
            print(signal.Signals(number).name, flush=True)
            if number == signal.SIGTERM:
                return


trio.run(main)
