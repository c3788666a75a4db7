"""``python -m outmail`` is the command ``outmail``."""

import sys

from outmail.cli import main

sys.exit(main())
