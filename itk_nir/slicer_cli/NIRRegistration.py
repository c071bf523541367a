#!/usr/bin/env python-real
"""3D Slicer's command line module "NIR Registration": finds NIRRegistration.xml beside it; the work is in itk_nir."""

import sys

if __name__ == "__main__":
    try:
        from itk_nir.cli.slicer import main
    except ImportError as error:
        sys.exit(f"itk-nir: {error}; in Slicer's Python console: slicer.util.pip_install('itk-nir')")
    sys.exit(main())
