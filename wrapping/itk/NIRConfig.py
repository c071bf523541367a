# Read by `import itk`: the module NIR and what is in it. Four entries: a class that is no C++ template.
depends = ()
templates = (("NIRRegistrationMethod", "itk::NIRRegistrationMethod", "NIRRegistrationMethod", True),)
factories = ()
