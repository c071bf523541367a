"""``python -m itk_nir``: the command ``itk-nir``, also where its program is not on the PATH."""

import sys

from itk_nir.cli import main

sys.exit(main())
