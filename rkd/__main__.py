"""``python -m rkd`` is ``rkd``."""

import sys

from rkd.cli import main

sys.exit(main())
