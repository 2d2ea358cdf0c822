"""Predictions as Core ML makes them: the model's description says what is taken and what is given."""

from __future__ import annotations

from milopt.prediction.predictor import Predictor, predict

__all__ = ["Predictor", "predict"]
