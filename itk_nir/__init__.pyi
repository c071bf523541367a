from itk_nir.applying import apply as apply
from itk_nir.checking import Check as Check
from itk_nir.checking import check as check
from itk_nir.engine.coordinate_networks import FieldConfig as FieldConfig
from itk_nir.engine.progress import Progress as Progress
from itk_nir.errors import InputError as InputError
from itk_nir.errors import ItkNirError as ItkNirError
from itk_nir.errors import OptionError as OptionError
from itk_nir.errors import RegistrationCancelled as RegistrationCancelled
from itk_nir.errors import SelfCheckWarning as SelfCheckWarning
from itk_nir.errors import VerdictWarning as VerdictWarning
from itk_nir.findings import Finding as Finding
from itk_nir.geometry import Geometry as Geometry
from itk_nir.loading import load_transform as load_transform
from itk_nir.many import PairResult as PairResult
from itk_nir.many import register_many as register_many
from itk_nir.neural_field import NeuralField as NeuralField
from itk_nir.neural_field import load_field as load_field
from itk_nir.registration import register as register
from itk_nir.repeating import repeat as repeat
from itk_nir.report import Report as Report
from itk_nir.result import RegistrationResult as RegistrationResult
from itk_nir.settings import Settings as Settings
from itk_nir.settings import make_settings as make_settings

__all__ = [
    "Check",
    "FieldConfig",
    "Finding",
    "Geometry",
    "InputError",
    "ItkNirError",
    "NeuralField",
    "OptionError",
    "PairResult",
    "Progress",
    "RegistrationCancelled",
    "RegistrationResult",
    "Report",
    "SelfCheckWarning",
    "Settings",
    "VerdictWarning",
    "apply",
    "check",
    "load_field",
    "load_transform",
    "make_settings",
    "register",
    "register_many",
    "repeat",
]

__version__: str
