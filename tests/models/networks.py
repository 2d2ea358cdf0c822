"""Published networks written again in torch, after their authors' descriptions, on weights given by name.

Each takes and gives what its package does. None knows MIL: what they share with the interpreter is torch's kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Weights", "clip_text", "crepe", "dtln_mask", "dtln_time", "silero", "silero_encoder", "u2netp"]

Weights: TypeAlias = Mapping[str, Tensor]

# torchcrepe's epsilon of batch norms, in fp16
CREPE_EPSILON = float(torch.tensor(0.0010000000474974513).half())


def crepe(w: Weights, frames: Tensor) -> Tensor:
    """CREPE (Kim et al. 2018) as in torchcrepe: six times conv, relu, batch norm, max pool; then a linear layer."""
    x = frames[:, None, :, None]
    for layer in range(1, 7):
        name, stride, pad = f"model_conv{layer}", 4 if layer == 1 else 1, (254, 254) if layer == 1 else (31, 32)
        x = F.conv2d(F.pad(x, (0, 0, *pad)), w[f"{name}_weight"], w[f"{name}_bias"], (stride, 1))
        mean, variance, gamma, beta = (
            w[f"{name}_BN_{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.max_pool2d(F.batch_norm(F.relu(x), mean, variance, gamma, beta, eps=CREPE_EPSILON), (2, 1))
    x = x.permute(0, 2, 1, 3).flatten(1)
    return F.linear(x, w["model_classifier_weight"], w["model_classifier_bias"]).sigmoid()


def silero_encoder(w: Weights, x: Tensor, prefix: str) -> Tensor:
    """Four convolutions, each followed by a relu that the packages limit to 1e4."""
    for layer, stride in ((0, 1), (2, 2), (4, 2), (6, 1)):
        name = f"{prefix}layers_{layer}"
        x = F.conv1d(x, w[f"{name}_weight"], w[f"{name}_bias"], stride, padding=1).clamp(0, 1e4)
    return x


def silero(w: Weights, audio: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Silero VAD: a spectrum by convolution, the encoder, one step of an LSTM, a probability."""
    x = F.conv1d(F.pad(audio, (0, 64), "reflect")[:, None], w["stft_forward_basis"], stride=128)
    real, imaginary = x.chunk(2, 1)
    # the smallest number of fp16 keeps the square root's slope finite
    x = silero_encoder(w, (real.square() + imaginary.square() + 2**-24).sqrt(), "encoder_")
    lstm = torch.nn.LSTMCell(128, 128).double()
    lstm.load_state_dict(
        {
            "weight_ih": _torch_gates(w["concat_1"]),
            "weight_hh": _torch_gates(w["concat_2"]),
            "bias_ih": _torch_gates(w["concat_0"]),
            "bias_hh": torch.zeros(512),
        }
    )
    with torch.no_grad():
        hidden, cell = lstm(x[..., 0], (hidden, cell))
    x = F.conv1d(F.relu(hidden)[..., None], w["decoder_final_conv_weight"], w["decoder_final_conv_bias"])
    return x.sigmoid(), hidden, cell


def _torch_gates(mil: Tensor) -> Tensor:
    """MIL's gates are input, forget, output, cell; torch's are input, forget, cell, output."""
    i, f, o, g = mil.chunk(4)
    return torch.cat([i, f, g, o])


def _normalized(w: Weights, x: Tensor, name: str, epsilon: float) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return x * w[f"{name}_mul_ReadVariableOp"] + w[f"{name}_add_1_ReadVariableOp"]


def _lstms(w: Weights, x: Tensor, states: Tensor, layers: tuple[tuple[str, int], ...]) -> tuple[Tensor, Tensor]:
    """Two LSTM layers; TensorFlow's gates are in torch's order, and it has one bias."""
    after: list[Tensor] = []
    for index, (prefix, first) in enumerate(layers):
        kernel, recurrent, bias = (w[f"{prefix}{first + each}"] for each in range(3))
        lstm = torch.nn.LSTM(kernel.shape[0], 128, batch_first=True).double()
        given = {"weight_ih_l0": kernel.T, "weight_hh_l0": recurrent.T, "bias_ih_l0": bias, "bias_hh_l0": 0 * bias}
        lstm.load_state_dict(given)
        h, c = (states[None, :, index, :, each].contiguous() for each in range(2))
        with torch.no_grad():
            x, (h, c) = lstm(x, (h, c))
        after.append(torch.stack([h[0], c[0]], -1))
    return x, torch.stack(after, 1)


def dtln_mask(w: Weights, microphone: Tensor, loudspeaker: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """DTLN-aec's first part (Westhausen and Meyer 2021): a mask from normalized log spectra, through two LSTMs."""
    name, epsilon = "DTLN_AEC_Part1", 1e-7
    features = [
        _normalized(w, (magnitude + epsilon).log(), f"{name}_{kind}_norm", epsilon)
        for kind, magnitude in (("mic", microphone), ("lpb", loudspeaker))
    ]
    layers = tuple((f"Func_{name}_lstm_1_{layer}_PartitionedCall_input__", first) for layer, first in ((0, 3), (1, 14)))
    x, states = _lstms(w, torch.cat(features, -1), states, layers)
    x = x @ w[f"{name}_dense_mask_1_Tensordot_ReadVariableOp"] + w[f"{name}_dense_mask_1_BiasAdd_ReadVariableOp"]
    return x.sigmoid(), states


def dtln_time(w: Weights, frame: Tensor, loudspeaker: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """DTLN-aec's second part: the same on learned features of the samples, with a way back to samples."""
    name, epsilon = "DTLN_AEC_Part2", 2.0**-23
    encoded = [each @ w[f"squeeze_{index}"][..., 0].T for index, each in enumerate((frame, loudspeaker))]
    features = [
        _normalized(w, each, f"{name}_enc_{kind}_norm", epsilon)
        for kind, each in zip(("est", "lpb"), encoded, strict=True)
    ]
    layers = tuple((f"Func_{name}_lstm_2_{layer}_PartitionedCall_input__", first) for layer, first in ((0, 3), (1, 14)))
    x, states = _lstms(w, torch.cat(features, -1), states, layers)
    x = x @ w[f"{name}_dense_mask_2_Tensordot_ReadVariableOp"] + w[f"{name}_dense_mask_2_BiasAdd_ReadVariableOp"]
    # the package holds one weight for the loudspeaker's encoder and the decoder
    return (encoded[0] * x.sigmoid()) @ w["squeeze_1"][..., 0].T, states


def u2netp(w: Weights, picture: Tensor) -> Tensor:
    """U^2-Net's small version (Qin et al. 2020); its convolutions hold their batch norms, and are named as they run."""
    names = sorted((key for key in w if re.match(r"Conv_\d+_weight$", key)), key=lambda key: int(key.split("_")[1]))
    convolutions = iter([(w[key], w[key.replace("weight", "bias")]) for key in names])
    hidden: list[Tensor] = []
    x = picture
    for depth in (7, 6, 5, 4, 0, 0):
        hidden.append(_residual_u(convolutions, x if not hidden else _pooled(hidden[-1]), depth))
    decoded = [hidden[-1]]
    for depth, skip in zip((0, 4, 5, 6, 7), hidden[-2::-1], strict=True):
        x = torch.cat([_resized(decoded[-1], skip), skip], 1)
        decoded.append(_residual_u(convolutions, x, depth))
    # one picture from each level, the finest first, and a mixture of them
    sides = [F.conv2d(each, *next(convolutions), padding=1) for each in reversed(decoded)]
    return F.conv2d(torch.cat([_resized(each, picture) for each in sides], 1), *next(convolutions)).sigmoid()


def _residual_u(convolutions: Iterator[tuple[Tensor, Tensor]], x: Tensor, depth: int) -> Tensor:
    """A U of ``depth`` convolutions down and as many up; with depth 0 one of four that widens its kernel instead."""

    def convolved(x: Tensor, dilation: int = 1) -> Tensor:
        return F.relu(F.conv2d(x, *next(convolutions), padding=dilation, dilation=dilation))

    whole = convolved(x)
    down = [convolved(whole)]
    if depth:
        for _ in range(depth - 2):
            down.append(convolved(_pooled(down[-1])))
        x = convolved(down[-1], 2)
    else:
        for dilation in (2, 4):
            down.append(convolved(down[-1], dilation))
        x = convolved(down[-1], 8)
    for level, skip in zip(range(len(down) - 1, -1, -1), reversed(down), strict=True):
        x = convolved(torch.cat([_resized(x, skip), skip], 1), 1 if depth else 2**level)
    return x + whole


def _pooled(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def clip_text(w: Weights, ids: Tensor) -> Tensor:
    """MobileCLIP's text tower (Vasu et al. 2024): attention between two convolutional blocks, read at the last token.

    The last token has the largest id.
    """
    x = w["text_encoder_embedding_layer_weight"][ids] + w["var_44"]
    mixers = {
        0: ("input_9_weight_0", "input_9_bias_0", "var_94"),
        5: ("input_113_weight_0", "input_113_bias_0", "var_450"),
    }
    for layer in range(6):
        name = f"text_encoder_transformer_{layer}"
        if layer in mixers:
            x = _convolutional(w, x.mT[:, :, None], name, mixers[layer])[:, :, 0].mT
        else:
            x = x + _attention(w, _normed(w, x, f"{name}_pre_norm_mha_0"), f"{name}_pre_norm_mha_1")
            y = F.gelu(_linear(w, _normed(w, x, f"{name}_pre_norm_ffn_0"), f"{name}_pre_norm_ffn_1"))
            x = x + _linear(w, y, f"{name}_pre_norm_ffn_4")
    x = _normed(w, x, "text_encoder_final_layer_norm")
    x = x[torch.arange(len(ids)), ids.argmax(-1)]
    return F.normalize(F.linear(x, w["transpose_1"], w["input_bias_0"]), dim=-1)


def _convolutional(w: Weights, x: Tensor, name: str, others: tuple[str, str, str]) -> Tensor:
    mixer = f"{name}_token_mixer_reparam_conv"
    x = F.conv2d(x, w[f"{mixer}_weight"], w[f"{mixer}_bias"], padding=(0, 5), groups=512)
    y = F.conv2d(x, w[others[0]], w[others[1]], padding=(0, 5), groups=512)
    y = F.gelu(F.conv2d(y, w[f"{name}_convffn_fc1_weight"], w[f"{name}_convffn_fc1_bias"]))
    return x + F.conv2d(y, w[f"{others[2]}_weight_0"], w[f"{others[2]}_bias_0"])


def _attention(w: Weights, x: Tensor, name: str) -> Tensor:
    query, key, value = _linear(w, x, f"{name}_qkv_proj").reshape(*x.shape[:2], 3, 8, 64).permute(2, 0, 3, 1, 4)
    return _linear(w, F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2), f"{name}_out_proj")


def _linear(w: Weights, x: Tensor, name: str) -> Tensor:
    return F.linear(x, w[f"{name}_weight"], w[f"{name}_bias"])


def _normed(w: Weights, x: Tensor, name: str) -> Tensor:
    # fp16's 1e-5
    return F.layer_norm(x, x.shape[-1:], w[f"{name}_weight"], w[f"{name}_bias"], 1.0013580322265625e-05)
