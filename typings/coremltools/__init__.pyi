from enum import IntEnum
from typing import Any

from coremltools.models import MLModel as MLModel

__version__: str

class target(IntEnum):
    iOS13 = 4
    iOS14 = 5
    iOS15 = 6
    iOS16 = 7
    iOS17 = 8
    iOS18 = 9
    iOS26 = 10

def __getattr__(name: str) -> Any: ...
