"""The tests of coremltools that milopt fails, and why: their documentation, and what `make peer-tests` allows."""

from __future__ import annotations

from tests.peers.known import Known
from tests.peers.running import OPS

__all__ = ["KNOWN_FAILURES"]

_FLOATS_ONLY = (
    "A neural network computes everything in float32, so that the quotient of integers keeps its fraction. milopt runs "
    "the MIL program that the network was converted from, where real_div of int32 is int32."
)
_RANK_3 = (
    "The expected numbers are those of a neural network, which normalizes over axis -3. MIL documents x as (n, C, *D) "
    "and the size as that of the neighbouring channels, axis 1; on inputs of rank 3 they differ."
)
_UPSIDE_DOWN = (
    "A box from 2 to 1, upside down, in coordinates that the documentation restricts to [0, 1]. The expected numbers "
    "are those of the whole image, which no formula of the documentation gives; here what lies outside is padded."
)
_VARIADIC = (
    "The output of `fill` has a rank that is known only when the program runs. coremltools writes such a type, but its "
    "reader, through which milopt reads packages, refuses it."
)
_TIMED = "The test allows 10 ms of wall-clock time, and fails on a busy machine. Nothing is predicted in it."

KNOWN_FAILURES: tuple[Known, ...] = (
    Known(f"{OPS}/*::TestElementwiseBinary::test_real_div_int_builder_to_backend[*neuralnetwork*", _FLOATS_ONLY),
    Known(f"{OPS}/*::TestNormalizationLocalResponseNorm::test_builder_to_backend_smoke[*neuralnetwork*", _RANK_3),
    Known(f"{OPS}/iOS15/*::TestCropResize::test_builder_to_backend_smoke[*", _UPSIDE_DOWN),
    Known(f"{OPS}/iOS14/*::TestFill::test_builder_to_backend_symbolic[*mlprogram*", _VARIADIC),
    Known(f"{OPS}/iOS14/*::TestSliceByIndex::test_efficient_type_inference", _TIMED),
)
