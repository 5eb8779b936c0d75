"""Converts OpenAI guided-diffusion checkpoints (ADM, `.pt`) to diffusers' `UNet2DModel` and `DDPMScheduler`.

The network is that of Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021). diffusers
has all its layers under other names, so conversion renames weights; only the joint query, key and value of the
attention is split in three.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from ddfm.errors import InputError
from ddfm.io.files import quoted
from ddfm.prior.checks import LAYERS, LEVELS, check_archive, read_config

OPENAI_256: dict[str, Any] = {
    "image_size": 256,
    "num_channels": 256,
    "num_res_blocks": 2,
    "channel_mult": "",
    "learn_sigma": True,
    "class_cond": False,
    "attention_resolutions": "32,16,8",
    "num_heads": 4,
    "num_head_channels": 64,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": True,
    "dropout": 0.0,
    "resblock_updown": True,
    "use_new_attention_order": False,
}
"""`create_model` arguments of the published 256x256_diffusion_uncond.pt."""

# The defaults of `create_model`; None: the argument is required.
_DEFAULTS: dict[str, Any] = {
    "image_size": None,
    "num_channels": None,
    "num_res_blocks": None,
    "channel_mult": "",
    "learn_sigma": False,
    "class_cond": False,
    "attention_resolutions": "16",
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "dropout": 0.0,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
_DEFAULT_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
# Other flags often kept in the same file. These have no effect here ("rescaling" 1000 steps to 1000 changes nothing)
_NO_EFFECT = (
    "use_checkpoint",
    "use_fp16",
    "timestep_respacing",
    "use_kl",
    "rescale_timesteps",
    "rescale_learned_sigmas",
)
# and these must agree with the scheduler below.
_PROCESS = {"diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False}

# Layer names inside one block, guided-diffusion -> diffusers.
_RES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}  # qkv has no single counterpart
_EDGES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def unet_config(create_model_args: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `UNet2DModel` for guided-diffusion's `create_model` arguments.

    Args:
        create_model_args: as in guided-diffusion's `script_util.create_model`, with the same defaults.
            `channel_mult` is "" (by image size), "1,2,2" or a list; `attention_resolutions` likewise.

    Raises:
        InputError: one is missing, unknown or malformed, or specifies something that `UNet2DModel` cannot express.
    """
    args = _checked(create_model_args)
    size, width = args["image_size"], args["num_channels"]
    if args["class_cond"]:
        raise InputError("class_cond=True cannot be used: the prior must be an unconditional network.")
    if args["channel_mult"] == "" and size not in _DEFAULT_MULT:
        raise InputError(f"image_size={size} has no default channel_mult: give channel_mult.")
    mult = _DEFAULT_MULT[size] if args["channel_mult"] == "" else _numbers(args, "channel_mult")
    if mult[0] != 1:
        # The time step embedding has num_channels dimensions in guided-diffusion, the first width in UNet2DModel.
        raise InputError(f"channel_mult={args['channel_mult']!r} cannot be converted: the first factor must be 1.")
    channels = tuple(int(factor * width) for factor in mult)
    if any(c < 32 or c % 32 for c in channels):
        raise InputError(f"Levels of {channels} channels cannot be converted: each must be a multiple of 32.")

    strides = {size // r if r >= 1 else 0 for r in map(int, _numbers(args, "attention_resolutions"))}
    attends = [2**level in strides for level in range(len(channels))]
    resnet = args["resblock_updown"]
    down = ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" if resnet else "DownBlock2D" for a in attends]
    up = ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" if resnet else "UpBlock2D" for a in reversed(attends)]
    return {
        "sample_size": size,
        "in_channels": 3,
        "out_channels": 6 if args["learn_sigma"] else 3,
        "block_out_channels": channels,
        "layers_per_block": args["num_res_blocks"],
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "attention_head_dim": _head_dim(
            args, {c for c, a in zip(channels, attends, strict=True) if a} | {channels[-1]}
        ),
        "resnet_time_scale_shift": "scale_shift" if args["use_scale_shift_norm"] else "default",
        "dropout": float(args["dropout"]),
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,  # without it the mid block's attention has no norm
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def convert_state_dict(state: dict[str, torch.Tensor], args: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a guided-diffusion network, converted for `UNet2DModel(**unet_config(args))`.

    Args:
        state: guided-diffusion's state dict, any floating dtype, any device ("meta" costs no memory).
        args: the network's `create_model` arguments.

    Returns:
        The state dict, float32; tensors that need no change of type or shape share memory with `state`.

    Raises:
        InputError: a key is missing, left over, of the wrong shape or not a dense floating-point tensor; names it.
    """
    config = unet_config(args)
    wanted = {name: tuple(tensor.shape) for name, tensor in _meta_unet(config).state_dict().items()}
    head_dim = config["attention_head_dim"]
    rest = dict(state)
    converted: dict[str, torch.Tensor] = {}

    def take(key: str, shape: tuple[int, ...]) -> torch.Tensor:
        if key not in rest:
            raise InputError(f"The weights do not fit the create_model arguments: {key} is missing.")
        value = rest.pop(key)
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
        if not (dense and value.is_floating_point()):
            raise InputError(f"{key} is not a tensor of floating-point weights.")
        if tuple(value.shape) != shape:
            raise InputError(
                f"The weights do not fit the create_model arguments: {key} has shape {tuple(value.shape)}, not {shape}."
            )
        return value.float()

    for old, new in _EDGES.items():
        for kind in (".weight", ".bias"):
            converted[new + kind] = take(old + kind, wanted[new + kind])
    for old, new, layers in _blocks(config):
        for kind in (".weight", ".bias"):
            for old_layer, new_layer in layers.items():
                name = f"{new}.{new_layer}{kind}"
                if name not in wanted:  # a block that keeps its width has no skip_connection
                    continue
                # Attention projections are convolutions of width 1 in guided-diffusion, linear layers in diffusers.
                conv1d = old_layer == "proj_out" and kind == ".weight"
                value = take(f"{old}.{old_layer}{kind}", wanted[name] + (1,) * conv1d)
                converted[name] = value.reshape(wanted[name])
            if layers is _ATTENTION:
                shape = wanted[f"{new}.to_q{kind}"]
                joint = take(f"{old}.qkv{kind}", (3 * shape[0], *shape[1:]) + (1,) * (kind == ".weight"))
                if args.get("use_new_attention_order", False):
                    parts = joint.reshape(3, *shape).unbind(0)  # all of q, then all of k, then all of v
                else:
                    parts = joint.reshape(-1, 3, head_dim, *shape[1:]).unbind(1)  # q, k, v head by head
                for to, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                    converted[f"{new}.{to}{kind}"] = part.reshape(shape).contiguous()
    if rest:
        raise InputError(f"The weights do not fit the create_model arguments: {next(iter(rest))} is left over.")
    return converted


def load_guided_diffusion(path: str | Path) -> tuple[UNet2DModel, DDPMScheduler]:
    """Reads a guided-diffusion checkpoint; code in the file is never run.

    Args:
        path: the `.pt`. Its `create_model` arguments are read from a `.json` with the same stem in the same folder;
            without one they are those of 256x256_diffusion_uncond (`OPENAI_256`).

    Returns:
        unet: float32, on the CPU, in eval mode; (B, 3, H, W) in [-1, 1] and t in 0..999 -> eps (B, 3, H, W),
            followed by 3 channels of learned variance if the network has them. Weights may be mapped from the
            file, so it must not be overwritten while they are in use.
        scheduler: the diffusion process it was trained for (1000 linear steps).

    Raises:
        InputError: the file is missing, damaged, not a checkpoint, contains a pickle payload, or does not fit.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    state, args = _read_state(path), _read_args(beside)
    try:
        config = unet_config(args)
        weights = convert_state_dict(state, args)
    except InputError as error:
        raise InputError(
            f"{quoted(path)} (create_model arguments in {quoted(beside.name)}, if any): {error}"
        ) from error
    unet = _meta_unet(config)
    unet.load_state_dict(weights, assign=True)
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="epsilon",
        variance_type="learned_range" if config["out_channels"] == 6 else "fixed_large",
        clip_sample=True,
    )
    return unet.eval(), scheduler


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """`given` with the defaults of `create_model`, without flags that have no effect, all values checked."""
    args = {**_DEFAULTS, **{key: value for key, value in given.items() if key not in _NO_EFFECT}}
    for key, value in _PROCESS.items():
        if args.pop(key, value) != value:
            raise InputError(f"{key}={given[key]!r} cannot be converted: it must be {value!r}.")
    for key, value in args.items():
        if key not in _DEFAULTS:
            raise InputError(f"{key} is not a create_model argument that can be converted.")
        default = _DEFAULTS[key]
        if key in ("channel_mult", "attention_resolutions"):
            right = isinstance(value, str | list | tuple)
        elif key == "dropout":
            right = isinstance(value, int | float)
        elif isinstance(default, bool):
            right = isinstance(value, bool)
        else:
            most = LAYERS if key == "num_res_blocks" else 2**16
            right = type(value) is int and (1 <= value <= most or value == default)
        if not right:
            raise InputError(f"The create_model argument {key} is {value!r}, which is missing or of the wrong type.")
    return args


def _numbers(args: dict[str, Any], key: str) -> tuple[float, ...]:
    """The list of numbers in `args[key]`: "1,2,2" or [1, 2, 2]."""
    value = args[key]
    try:
        numbers = tuple(float(part) for part in (value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        numbers = ()
    if not 0 < len(numbers) <= LEVELS or not all(math.isfinite(x) and 0 <= x <= 1024 for x in numbers):
        value = str(value)[:80]
        raise InputError(f"The create_model argument {key}={value!r} is not a list of numbers such as '32,16,8'.")
    return numbers


def _head_dim(args: dict[str, Any], widths: set[int]) -> int:
    """Channels per attention head, for which `UNet2DModel` has a single value.

    `widths` are the channels of the blocks with attention.
    """
    if args["num_head_channels"] != -1:
        dims = {args["num_head_channels"]}
    else:
        heads = {args["num_heads"]}
        if args["num_heads_upsample"] != -1:
            heads.add(args["num_heads_upsample"])
        dims = {max(width // n, 1) for width in widths for n in heads}
    if len(dims) > 1:
        raise InputError(
            f"num_heads={args['num_heads']} cannot be converted: attention would have heads of "
            f"{' and '.join(map(str, sorted(dims)))} channels, but only one size is supported."
        )
    dim = int(dims.pop())
    if any(width % dim for width in widths):
        raise InputError(f"Attention of {max(widths)} channels cannot be divided into heads of {dim} channels.")
    return dim


def _blocks(config: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(guided-diffusion block, diffusers block, its layer names), in network order."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    resnet = config["downsample_type"] == "resnet"
    k = 1  # input_blocks.0 is the first convolution
    for i, kind in enumerate(config["down_block_types"]):
        for j in range(layers):
            yield f"input_blocks.{k}.0", f"down_blocks.{i}.resnets.{j}", _RES
            if kind == "AttnDownBlock2D":
                yield f"input_blocks.{k}.1", f"down_blocks.{i}.attentions.{j}", _ATTENTION
            k += 1
        if i < levels - 1:
            yield f"input_blocks.{k}.0", f"down_blocks.{i}.downsamplers.0", _RES if resnet else {"op": "conv"}
            k += 1
    yield "middle_block.0", "mid_block.resnets.0", _RES
    yield "middle_block.1", "mid_block.attentions.0", _ATTENTION
    yield "middle_block.2", "mid_block.resnets.1", _RES
    k = 0
    for i, kind in enumerate(config["up_block_types"]):
        for j in range(layers + 1):
            yield f"output_blocks.{k}.0", f"up_blocks.{i}.resnets.{j}", _RES
            if kind == "AttnUpBlock2D":
                yield f"output_blocks.{k}.1", f"up_blocks.{i}.attentions.{j}", _ATTENTION
            if j == layers and i < levels - 1:  # the upsampler is the last layer of the level's last block
                last = 2 if kind == "AttnUpBlock2D" else 1
                yield (
                    f"output_blocks.{k}.{last}",
                    f"up_blocks.{i}.upsamplers.0",
                    _RES if resnet else {"conv": "conv"},
                )
            k += 1


def _meta_unet(config: dict[str, Any]) -> UNet2DModel:
    """The network on the meta device, without memory for its weights."""
    with torch.device("meta"):
        unet: UNet2DModel = UNet2DModel(**config)
        return unet


def _read_args(path: Path) -> dict[str, Any]:
    """The create_model arguments in `path`, or the published network's if there is no such file."""
    if not os.path.lexists(path):
        return OPENAI_256
    try:
        return read_config(path)
    except InputError as error:
        raise InputError(f"{quoted(path)} should hold create_model arguments: {error}") from error


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in `path`, memory-mapped where its format allows."""
    mapped = check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise InputError(f"{quoted(path)} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged or malicious file can fail anywhere in the reader
        raise InputError(
            f"{quoted(path)} is not a complete checkpoint of plain weights, so it was not loaded."
        ) from error
    if not isinstance(state, dict) or not state:
        raise InputError(f"{quoted(path)} is not a guided-diffusion checkpoint: it does not contain named weights.")
    return state
