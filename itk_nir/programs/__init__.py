"""Programs of other packages by their own names, each a thin front of one Python function.

``itk-nir antsRegistration ...`` runs one, and so do the files that ``itk-nir install-programs FOLDER`` writes. A
function takes the words behind the name of the program, and gives back the exit status; what cannot be done is an
`itk_nir.errors.ItkNirError`, of which `itk_nir.cli` makes one line and exit status 1.
"""

from __future__ import annotations

#: Name of the program -> the module and the function that are it. They are imported when the program is run.
PROGRAMS: dict[str, str] = {
    "antsRegistration": "itk_nir.programs.ants_registration:main",
    "antsRegistrationSyN.sh": "itk_nir.programs.ants_registration_syn:main",
    "antsRegistrationSyNQuick.sh": "itk_nir.programs.ants_registration_syn:quick",
    "antsApplyTransforms": "itk_nir.programs.ants_apply_transforms:main",
    "antsApplyTransformsToPoints": "itk_nir.programs.ants_apply_transforms_to_points:main",
    "CompositeTransformUtil": "itk_nir.programs.composite_transform_util:main",
    "elastix": "itk_nir.programs.elastix:main",
    "transformix": "itk_nir.programs.transformix:main",
}
