"""The published design, preset ``paper``: coordinate networks trained on sampled points [1]_.

It stands on `itk_nir.engine`, and nothing imports it but by its name: the presets and `itk_nir.register` load
`itk_nir.paper.registration` where it is asked for. That module has what every deformable engine
has: ``Settings``, ``optimise``, ``describe`` and ``restore``.

References
----------
.. [1] Sun, Han, Kong, Hua, Wu, Xie, "Medical Image Registration via Neural Fields", MedIA 97 (2024) 103249.
"""
