"""What a model is that milopt doesn't read: said in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from coremltools.proto import Model_pb2

from milopt.errors import PackageError

__all__ = ["refuse_kind", "refuse_single_file"]

_PIPELINES = ("pipeline", "pipelineClassifier", "pipelineRegressor")
_MOST = 2**31 - 1  # bytes; protobuf takes no more
_LISTED = 6  # members of a pipeline


def refuse_kind(spec: Any, where: str) -> None:
    """PackageError for a specification that is no ML Program, a pipeline's members told."""
    kind = spec.WhichOneof("Type")
    if kind == "mlProgram":
        return
    told = f"{where} is {_article(_words(kind))}"
    if kind not in _PIPELINES:
        advice = "; convert the source model again, as an mlprogram" if (kind or "").startswith("neural") else ""
        raise PackageError(f"{told}; milopt reads ML Programs only{advice}")
    members: list[str | None] = [each.WhichOneof("Type") for each in _pipeline(spec, kind).models]
    listed = ", ".join(map(_words, members[:_LISTED]))
    more = f" and {len(members) - _LISTED} more" if len(members) > _LISTED else ""
    advice = f": save models[{members.index('mlProgram')}] by itself first" if "mlProgram" in members else ""
    raise PackageError(
        f"{told} of {len(members)} {'model' if len(members) == 1 else 'models'} ({listed}{more}); milopt reads ML "
        f"Programs only, and none inside a pipeline{advice}"
    )


def _pipeline(spec: Any, kind: str) -> Any:
    held = getattr(spec, kind)
    return held if kind == "pipeline" else held.pipeline


def refuse_single_file(path: Path) -> None:
    """PackageError for a ``.mlmodel`` file, which says what it holds."""
    spec = Model_pb2.Model()
    try:
        if path.stat().st_size > _MOST:
            raise PackageError(f"{path} has {path.stat().st_size} bytes; at most {_MOST} are read")
        spec.ParseFromString(path.read_bytes())
    except PackageError:
        raise
    except OSError as error:
        raise PackageError(f"{path} can't be read: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError; its class depends on the implementation in use
        raise PackageError(f"{path} is truncated or no model: {error}") from error
    refuse_kind(spec, str(path))
    raise PackageError(f"{path} is an ML Program in a single file; milopt reads packages (.mlpackage)")


def _words(kind: str | None) -> str:
    """``neuralNetworkClassifier`` as ``neural network classifier``."""
    if kind is None:
        return "model of no type"
    return "ML Program" if kind == "mlProgram" else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()


def _article(words: str) -> str:
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"
