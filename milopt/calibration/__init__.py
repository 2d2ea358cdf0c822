"""What a model's layers are fed with, for compression that spares what matters.

``calibrate`` and ``calibrate_text`` are in :mod:`milopt.calibration.calibrating`, their result, which passes read, in
:mod:`milopt.calibration.statistics`.
"""

from __future__ import annotations
