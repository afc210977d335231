"""`python -m minimoe`: see `minimoe.cli`."""

import signal
import sys

from minimoe.cli import main

status = main()
signal.signal(signal.SIGINT, signal.SIG_IGN)  # everything is done: Ctrl-C has nothing left to interrupt
sys.exit(status)
