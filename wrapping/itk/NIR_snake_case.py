# Read by `import itk`: the functions of the module NIR.
snake_case_functions = ("nir_registration_method",)
