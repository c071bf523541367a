"""``python -m itk_nir.cli``."""

import sys

from itk_nir.cli import main

sys.exit(main())
