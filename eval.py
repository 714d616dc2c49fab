"""Compare reconstruction methods: ``python eval.py --help``. Installed, the same as ``cs-models eval``."""

import sys

from cs_models.cli.interrupts import ending_at_once

with ending_at_once():
    from cs_models.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
