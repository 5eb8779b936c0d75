import copy
import json
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from ddfm.errors import InputError
from ddfm.prior.convert import OPENAI_256, convert_state_dict, load_guided_diffusion, unet_config

DATA = Path(__file__).parents[1] / "data"
TINY = json.loads((DATA / "tiny_adm.json").read_text())


# -- An independent account of guided-diffusion's network: its names, its shapes, and what it computes --


def adm_blocks(a):
    """[(section, [(key, kind, channels in, channels out), ...]), ...] in forward order."""
    mult = {"": (1, 1, 2, 2, 4, 4)}.get(a["channel_mult"]) or [int(m) for m in a["channel_mult"].split(",")]
    strides = [a["image_size"] // int(r) for r in a["attention_resolutions"].split(",")]
    down, up = ("down", "up") if a["resblock_updown"] else ("op", "conv")
    width, n = a["num_channels"], a["num_res_blocks"]
    ch, stride, kept, sections = width, 1, [width], [("in", [("input_blocks.0.0", "conv3", 3, width)])]
    for level, m in enumerate(mult):
        for _ in range(n):
            key = f"input_blocks.{len(kept)}"
            block = [(f"{key}.0", "res", ch, m * width)]
            ch = m * width
            if stride in strides:
                block.append((f"{key}.1", "attn", ch, ch))
            sections.append(("in", block))
            kept.append(ch)
        if level < len(mult) - 1:
            sections.append(("in", [(f"input_blocks.{len(kept)}.0", down, ch, ch)]))
            kept.append(ch)
            stride *= 2
    mid = [
        ("middle_block.0", "res", ch, ch),
        ("middle_block.1", "attn", ch, ch),
        ("middle_block.2", "res", ch, ch),
    ]
    sections.append(("mid", mid))
    total = len(kept)
    for level in reversed(range(len(mult))):
        for j in range(n + 1):
            key = f"output_blocks.{total - len(kept)}"
            block = [(f"{key}.0", "res", ch + kept.pop(), mult[level] * width)]
            ch = mult[level] * width
            if stride in strides:
                block.append((f"{key}.1", "attn", ch, ch))
            if level and j == n:
                block.append((f"{key}.{len(block)}", up, ch, ch))
                stride //= 2
            sections.append(("out", block))
    return sections


def adm_shapes(a):
    width = a["num_channels"]
    shapes = {}

    def layer(key, *shape):
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = shape, shape[:1]

    layer("time_embed.0", 4 * width, width)
    layer("time_embed.2", 4 * width, 4 * width)
    for _, block in adm_blocks(a):
        for key, kind, i, o in block:
            if kind in ("res", "up", "down"):
                layer(f"{key}.in_layers.0", i)
                layer(f"{key}.in_layers.2", o, i, 3, 3)
                layer(f"{key}.emb_layers.1", (2 if a["use_scale_shift_norm"] else 1) * o, 4 * width)
                layer(f"{key}.out_layers.0", o)
                layer(f"{key}.out_layers.3", o, o, 3, 3)
                if i != o:
                    layer(f"{key}.skip_connection", o, i, 1, 1)
            elif kind == "attn":
                layer(f"{key}.norm", i)
                layer(f"{key}.qkv", 3 * i, i, 1)
                layer(f"{key}.proj_out", i, i, 1)
            else:
                layer(key if kind == "conv3" else f"{key}.{kind}", o, i, 3, 3)
    layer("out.0", width)
    layer("out.2", 6 if a["learn_sigma"] else 3, width, 3, 3)
    return shapes


def adm_forward(s, a, x, t):
    """What guided-diffusion computes from its own state dict `s`, written with bare functions."""

    def p(key):
        return s[f"{key}.weight"], s[f"{key}.bias"]

    def norm(h, key):
        return F.group_norm(h, 32, *p(key), eps=1e-5)

    def res(h, key, kind):
        y = F.silu(norm(h, f"{key}.in_layers.0"))
        if kind == "down":
            y, h = F.avg_pool2d(y, 2), F.avg_pool2d(h, 2)
        if kind == "up":
            y, h = (z.repeat_interleave(2, -1).repeat_interleave(2, -2) for z in (y, h))
        y = F.conv2d(y, *p(f"{key}.in_layers.2"), padding=1)
        e = F.linear(F.silu(emb), *p(f"{key}.emb_layers.1"))[:, :, None, None]
        if a["use_scale_shift_norm"]:
            scale, shift = e.chunk(2, 1)
            y = norm(y, f"{key}.out_layers.0") * (1 + scale) + shift
        else:
            y = norm(y + e, f"{key}.out_layers.0")
        y = F.conv2d(F.silu(y), *p(f"{key}.out_layers.3"), padding=1)
        return y + (F.conv2d(h, *p(f"{key}.skip_connection")) if f"{key}.skip_connection.weight" in s else h)

    def attn(h, key):
        b, c, height, width = h.shape
        heads = a["num_heads"] if a["num_head_channels"] == -1 else c // a["num_head_channels"]
        qkv = F.conv1d(norm(h, f"{key}.norm").reshape(b, c, -1), *p(f"{key}.qkv"))
        if a["use_new_attention_order"]:
            q, k, v = qkv.reshape(b, 3, heads, c // heads, -1).unbind(1)
        else:
            q, k, v = qkv.reshape(b, heads, 3, c // heads, -1).unbind(2)
        weight = torch.softmax(q.transpose(-1, -2) @ k / math.sqrt(c // heads), -1)
        y = (v @ weight.transpose(-1, -2)).reshape(b, c, -1)
        return h + F.conv1d(y, *p(f"{key}.proj_out")).reshape(b, c, height, width)

    half = a["num_channels"] // 2
    angle = t[:, None] * torch.exp(-math.log(10000) / half * torch.arange(half))
    emb = torch.cat([angle.cos(), angle.sin()], 1).to(x.dtype)
    emb = F.linear(F.silu(F.linear(emb, *p("time_embed.0"))), *p("time_embed.2"))
    h, kept = x, []
    for section, block in adm_blocks(a):
        if section == "out":
            h = torch.cat([h, kept.pop()], 1)
        for key, kind, _, _ in block:
            if kind in ("res", "up", "down"):
                h = res(h, key, kind)
            elif kind == "attn":
                h = attn(h, key)
            elif kind == "conv3":
                h = F.conv2d(h, *p(key), padding=1)
            elif kind == "op":
                h = F.conv2d(h, *p(f"{key}.op"), stride=2, padding=1)
            else:
                h = h.repeat_interleave(2, -1).repeat_interleave(2, -2)
                h = F.conv2d(h, *p(f"{key}.conv"), padding=1)
        if section == "in":
            kept.append(h)
    return F.conv2d(F.silu(norm(h, "out.0")), *p("out.2"), padding=1)


def random_state(a, seed=0):
    g = torch.Generator().manual_seed(seed)
    scale = {1: 0.5, 2: 0.1, 3: 0.1, 4: 0.05}
    return {key: torch.randn(shape, generator=g) * scale[len(shape)] for key, shape in adm_shapes(a).items()}


# -- Exactness --


def test_reference_network():
    ref = np.load(DATA / "unet.npz")
    unet, scheduler = load_guided_diffusion(DATA / "tiny_adm.pt")
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert not unet.training
    with torch.no_grad():
        out = unet(torch.from_numpy(ref["unet_x"]), torch.from_numpy(ref["unet_t"])).sample.numpy()
    assert out.shape == ref["unet_out"].shape == (2, 6, 64, 96)
    assert np.abs(out - ref["unet_out"]).max() < 1e-5
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert torch.allclose(scheduler.alphas_cumprod.double(), torch.cumprod(1 - beta, 0), rtol=1e-4)
    assert scheduler.config.prediction_type == "epsilon"
    assert scheduler.config.variance_type == "learned_range"


def test_published_network_converts_with_every_key_used_once():
    shapes = adm_shapes(OPENAI_256)
    assert len(shapes) == 566
    assert sum(map(math.prod, shapes.values())) == 552_814_086
    state = {key: torch.empty(shape, device="meta", dtype=torch.float16) for key, shape in shapes.items()}
    converted = convert_state_dict(state, OPENAI_256)
    with torch.device("meta"):
        target = UNet2DModel(**unet_config(OPENAI_256)).state_dict()
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in target.items()}
    assert {v.dtype for v in converted.values()} == {torch.float32}
    assert sum(v.numel() for v in converted.values()) == 552_814_086
    assert set(state) == set(shapes), "the caller's dict must be left as it was"


VARIANTS = {
    "convolutional sampling": {"resblock_updown": False, "attention_resolutions": "64,32"},
    "shift only": {"use_scale_shift_norm": False},
    "new attention order": {"use_new_attention_order": True},
    "count of heads": {"num_head_channels": -1, "num_heads": 2, "attention_resolutions": "32,16"},
    "no learned variance": {"learn_sigma": False, "num_res_blocks": 2, "channel_mult": "1,3"},
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS.keys())
def test_variants_compute_what_guided_diffusion_computes(change):
    a = TINY | change
    state = random_state(a)
    unet = UNet2DModel(**unet_config(a)).eval()
    unet.load_state_dict(convert_state_dict(state, a))
    x = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 977])
    with torch.no_grad():
        got, want = unet(x, t).sample, adm_forward(state, a, x, t)
    assert got.shape == want.shape == (2, 6 if a["learn_sigma"] else 3, 32, 48)
    assert want.std() > 0.1
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_the_reference_above_is_guided_diffusions():
    """`adm_forward` is only worth comparing with if it gives the released network's own output."""
    ref = np.load(DATA / "unet.npz")
    state = torch.load(DATA / "tiny_adm.pt", weights_only=True)
    assert {k: tuple(v.shape) for k, v in state.items()} == adm_shapes(TINY)
    state = {k: v.float() for k, v in state.items()}
    out = adm_forward(state, TINY, torch.from_numpy(ref["unet_x"]), torch.from_numpy(ref["unet_t"]))
    assert np.abs(out.numpy() - ref["unet_out"]).max() < 1e-5


# -- What does not fit --


@pytest.fixture(scope="module")
def tiny_state():
    return torch.load(DATA / "tiny_adm.pt", weights_only=True)


def test_missing_key_is_named(tiny_state):
    state = dict(tiny_state)
    del state["middle_block.1.qkv.bias"]
    with pytest.raises(InputError, match=r"middle_block\.1\.qkv\.bias is missing"):
        convert_state_dict(state, TINY)


def test_left_over_key_is_named(tiny_state):
    with pytest.raises(InputError, match=r"label_emb\.weight is left over"):
        convert_state_dict(tiny_state | {"label_emb.weight": torch.zeros(1000, 128)}, TINY)


@pytest.mark.parametrize("key", ["input_blocks.3.1.qkv.weight", "middle_block.1.proj_out.weight", "out.2.bias"])
def test_wrong_shape_is_named(tiny_state, key):
    transposed = tiny_state[key].t() if tiny_state[key].ndim == 2 else tiny_state[key][..., None]
    with pytest.raises(InputError, match=f"{key} has shape"):
        convert_state_dict(tiny_state | {key: transposed}, TINY)


@pytest.mark.parametrize("value", [torch.zeros(6, dtype=torch.int64), torch.zeros(6).to_sparse(), "text", None])
def test_what_is_no_weight_is_named(tiny_state, value):
    with pytest.raises(InputError, match=r"out\.2\.bias is not a tensor"):
        convert_state_dict(tiny_state | {"out.2.bias": value}, TINY)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_cond": True}, "class_cond"),
        ({"image_size": 96, "channel_mult": ""}, "channel_mult"),
        ({"channel_mult": "2,2"}, "first factor"),
        ({"channel_mult": "1,x"}, "channel_mult"),
        ({"attention_resolutions": ""}, "attention_resolutions"),
        ({"attention_resolutions": 16}, "attention_resolutions"),
        ({"num_channels": 48}, "multiple of 32"),
        ({"num_channels": "32"}, "num_channels"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
        ({"num_res_blocks": True}, "num_res_blocks"),
        ({"image_size": None}, "image_size"),
        ({"num_head_channels": 24}, "24 channels"),
        ({"num_head_channels": -1, "num_heads": 4, "num_heads_upsample": 2}, "num_heads"),
        ({"num_head_channels": -1, "num_heads": 4, "attention_resolutions": "64"}, "num_heads"),
        ({"learn_sigma": "yes"}, "learn_sigma"),
        ({"noise_schedule": "cosine"}, "noise_schedule"),
        ({"predict_xstart": True}, "predict_xstart"),
        ({"diffusion_steps": 4000}, "diffusion_steps"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_arguments_that_cannot_be_expressed(change, words):
    with pytest.raises(InputError, match=words) as caught:
        unet_config(TINY | change)
    assert "\n" not in str(caught.value)


def test_process_arguments_that_agree_are_accepted():
    extra = {"diffusion_steps": 1000, "noise_schedule": "linear", "rescale_timesteps": True, "use_fp16": True}
    assert unet_config(TINY | extra) == unet_config(TINY)
    assert unet_config(TINY | {"channel_mult": [1, 2, 2], "attention_resolutions": [32, 16]}) == unet_config(TINY)
    given = copy.deepcopy(TINY)
    unet_config(given)
    assert given == TINY


# -- Files --


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def bad_files(folder):
    whole = (DATA / "tiny_adm.pt").read_bytes()
    (folder / "empty.pt").touch()
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "image.pt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    (folder / "pickle.pt").write_bytes(pickle.dumps({"out.2.bias": Payload(str(folder / "ran1"))}))
    torch.save({"out.2.bias": Payload(str(folder / "ran2"))}, folder / "payload.pt")
    torch.save({"x": Payload(str(folder / "ran3"))}, folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.save([torch.zeros(3)], folder / "list.pt")
    torch.save({}, folder / "nothing.pt")
    torch.save({"epoch": 3, "model": {}}, folder / "other.pt")
    with zipfile.ZipFile(folder / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    (folder / "folder.pt").mkdir()
    (folder / "two\nlines.pt").touch()
    return [*folder.glob("*.pt"), folder / "missing.pt"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bad_files_give_one_sentence_and_run_nothing(tmp_path):
    paths = bad_files(tmp_path)
    assert len(paths) == 13
    for path in paths:
        with pytest.raises(InputError) as caught:
            load_guided_diffusion(path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")
    assert not list(tmp_path.glob("ran*"))


def test_old_file_format_loads(tmp_path, tiny_state):
    torch.save(tiny_state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "old.json").write_text(json.dumps(TINY))
    old = load_guided_diffusion(tmp_path / "old.pt")[0].state_dict()
    new = load_guided_diffusion(DATA / "tiny_adm.pt")[0].state_dict()
    assert all(torch.equal(old[k], new[k]) for k in new)


def test_without_json_the_published_network_is_assumed(tmp_path):
    (tmp_path / "alone.pt").write_bytes((DATA / "tiny_adm.pt").read_bytes())
    with pytest.raises(InputError, match=r"time_embed\.0\.weight has shape \(128, 32\), not \(1024, 256\)"):
        load_guided_diffusion(tmp_path / "alone.pt")


@pytest.mark.parametrize("text", ["{", "[1]", "", "\xff"])
def test_bad_json_is_named(tmp_path, text):
    (tmp_path / "net.pt").write_bytes((DATA / "tiny_adm.pt").read_bytes())
    (tmp_path / "net.json").write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match=r"net\.json should hold"):
        load_guided_diffusion(tmp_path / "net.pt")


def test_a_converted_network_saves_and_loads(tmp_path):
    unet, _ = load_guided_diffusion(DATA / "tiny_adm.pt")
    unet.save_pretrained(tmp_path)
    again = UNet2DModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[k], v) for k, v in unet.state_dict().items())
