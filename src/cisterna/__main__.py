"""`python -m cisterna`, for launchers such as torchrun."""

import sys

from cisterna.cli import main

sys.exit(main())
