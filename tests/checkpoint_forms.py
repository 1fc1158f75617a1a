"""The forms in which training leaves a checkpoint: what tests open, and what docs/checkpoints.md lists."""
from __future__ import annotations

import argparse
import collections
import datetime
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


class Form(NamedTuple):
    """`save` writes weights, and others as their moving average, to a path below the folder, and returns that path."""

    group: str
    what: str
    save: Callable[[pathlib.Path, State, State], pathlib.Path]
    ema: bool = False


def saved(name: str, content: Callable[[State, State], object], **options: object):
    def save(folder, state, average):
        torch.save(content(state, average), folder / name, **options)
        return folder / name
    return save


def prefixed(prefix: str):
    return lambda state, _: {"model": {prefix + name: tensor for name, tensor in state.items()}}


def under(*keys: str):
    """Nested under these keys."""
    def content(state, _):
        for key in reversed(keys):
            state = {key: state}
        return state | {"epoch": 3}
    return content


def lightning(prefix: str, **extra):
    return lambda state, _: {"state_dict": {prefix + n: t for n, t in state.items()}, "epoch": 3, "global_step": 9,
                             "pytorch-lightning_version": "2.6.0", "hyper_parameters": {"lr": 1e-3}} | extra


def beside_backbone(state, _):
    """A module with a backbone and a head, and a loss with weights of its own."""
    names = {n: n if n.startswith(("head.", "score_predictor.")) else f"backbone.{n}" for n in state}
    return {"state_dict": {f"model.{names[n]}": t for n, t in state.items()} | {"criterion.weight": torch.ones(10)}}


def tensors(name: str, prefix: str = ""):
    def save(folder, state, _):
        save_file({prefix + n: t.contiguous() for n, t in state.items()}, folder / name, metadata={"format": "pt"})
        return folder / name
    return save


def sharded(folder, state, _):
    names = sorted(state)
    files = {name: f"model-{1 + (i >= len(names) // 2):05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: state[n].contiguous() for n in names if files[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def averaged(state, average):
    """`torch.optim.swa_utils.AveragedModel.state_dict()`."""
    return {"n_averaged": torch.tensor(3)} | {f"module.{n}": t for n, t in state.items()}


def with_average(key: str, prefix: str = ""):
    return lambda state, average: {"model": state, key: {prefix + n: t for n, t in average.items()}, "epoch": 3}


def lightning_average(state, average):
    """PyTorch Lightning's WeightAveraging keeps the average under "state_dict"."""
    return {"state_dict": {f"model.{n}": t for n, t in average.items()}, "averaging_state": {"n_averaged": 3},
            "current_model_state": {f"model.{n}": t for n, t in state.items()}}


def lit_ema(state, average):
    """LitEma keeps the average as buffers of the module, and a buffer's name has no dots."""
    return lightning("model.")(state, average) | {"state_dict": {
        **{f"model.{n}": t for n, t in state.items()}, "criterion.weight": torch.ones(10),
        **{f"model_ema.{n.replace('.', '')}": t for n, t in average.items()},
        "model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}}


PLAIN = {"best_acc1": np.float64(81.2), "when": datetime.datetime(2026, 1, 2), "losses": np.arange(3.0),
         "seen": collections.defaultdict(list, a=[1]),
         "args": argparse.Namespace(output_dir=pathlib.PosixPath("out"), opt=np.str_("adamw"))}

FILES, WRAPPERS, AVERAGES, CONTENT = "Files", "Wrappers", "Moving averages (`--weights ema`)", "Content"
FORMS = [
    *(Form(FILES, f"`{name}`, a bare state dict", saved(name, lambda state, _: state))
      for name in ("m.pth", "m.pt", "m.ckpt", "m.bin", "m.pth.tar", "m.weights", "m")),
    Form(FILES, "`m.pth` in PyTorch's format before 1.6", saved("m.pth", lambda state, _: state,
                                                               _use_new_zipfile_serialization=False)),
    Form(FILES, "`m.safetensors`", tensors("m.safetensors")),
    Form(FILES, "`model.safetensors.index.json` and its shards", sharded),
    *(Form(WRAPPERS, f"`{{'{key}': state}}`", saved("m.pth", under(key)))
      for key in ("model", "state_dict", "model_state_dict", "net", "weights")),
    Form(WRAPPERS, "`{'checkpoint': {'model': state}}`", saved("m.pth", under("checkpoint", "model"))),
    *(Form(WRAPPERS, f"names with `{prefix}`", saved("m.pth", prefixed(prefix)))
      for prefix in ("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "backbone.", "net.",
                     "encoder.", "student.", "module.base_model.model.")),
    Form(WRAPPERS, "names with `module.` in safetensors", tensors("m.safetensors", "module.")),
    Form(WRAPPERS, "Lightning, names with `model.`", saved("m.ckpt", lightning("model."))),
    Form(WRAPPERS, "Lightning and `torch.compile`", saved("m.ckpt", lightning("model._orig_mod."))),
    Form(WRAPPERS, "`backbone.` and head apart, a loss with weights beside them", saved("m.ckpt", beside_backbone)),
    Form(WRAPPERS, "`torch.optim.swa_utils.AveragedModel`", saved("m.pth", averaged)),
    *(Form(AVERAGES, f"under `{key}`", saved("m.pth", with_average(key)), ema=True)
      for key in ("model_ema", "state_dict_ema", "ema", "ema_state_dict", "ema_model", "model_ema_state_dict",
                  "modelEma", "teacher")),
    Form(AVERAGES, "under `state_dict_ema`, names with `module.`",
         saved("m.pth", with_average("state_dict_ema", "module.")), ema=True),
    Form(AVERAGES, "a callback of Lightning", saved("m.ckpt", lambda state, average: lightning(
        "model.", callbacks={"EMACallback": {"ema_state_dict": average}})(state, average)), ema=True),
    Form(AVERAGES, "Lightning's WeightAveraging", saved("m.ckpt", lightning_average), ema=True),
    Form(AVERAGES, "LitEma, names like `model_ema.blocks0norm1weight`", saved("m.ckpt", lit_ema), ema=True),
    Form(AVERAGES, "names with `ema_model.` beside `online_model.`", saved("m.pt", lambda state, average: {
        "step": torch.tensor(1), **{f"online_model.{n}": t for n, t in state.items()},
        **{f"ema_model.{n}": t for n, t in average.items()}}), ema=True),
    Form(CONTENT, "NumPy numbers and arrays, paths, dates and namespaces beside the weights",
         saved("m.pth", lambda state, _: {"model": state} | PLAIN)),
]


def forms_table() -> str:
    """The forms as a Markdown table, one row per group."""
    groups: dict[str, list[str]] = {}
    for form in FORMS:
        groups.setdefault(form.group, []).append(form.what)
    rows = [f"| {group} | {'<br>'.join(forms)} |" for group, forms in groups.items()]
    return "\n".join(["| | what is opened |", "|---|---|", *rows])
