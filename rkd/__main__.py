"""``python -m rkd`` is ``rkd``."""

import sys

from rkd.cli import main

code = main()
# Where an interrupt hits code that runs from a string (dataclasses, named tuples), CPython keeps a mark that turns the
# exit of ``python -m`` into one by SIGINT, whatever the code; running another string clears it.
exec("")
sys.exit(code)
