"""`python -m minimoe`: see `minimoe.cli`."""

import sys

from minimoe.cli import main

sys.exit(main())
