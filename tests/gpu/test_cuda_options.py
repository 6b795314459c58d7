"""Options that fit a model to a card, each on a tiny checkpoint of FLUX.1-dev's architecture: it works, repeats, and does what it says."""

import gpu_models
import numpy as np
import pytest
import torch
from conftest import read_requests
from darkroom.engines import open_engine
from PIL import Image
from test_engines import filled, lines

STEPS = 6  # fewer are too far apart for a cache to find anything alike


def option(*needs, same=False, **options):
    """A case: what it needs of the machine; same: not a pixel may differ."""
    name = "-".join(str(value) for value in options.values())
    return pytest.param(options, same, id=name, marks=[pytest.mark.needs(*needs)] if needs else [])


OPTIONS = [
    option("int8", quantization="int8"),
    option("fp8", quantization="fp8"),
    option("card", "nf4", quantization="nf4"),
    option("card", offload="model", same=True),
    option("card", offload="sequential", same=True),
    option("card", "int8", quantization="int8", offload="model"),
    option("card", "fp8", quantization="fp8", offload="model"),
    option("card", "nf4", quantization="nf4", offload="model"),
    option(attention="_native_math"),
    option(attention="_native_flash"),
    option("card", attention="_native_efficient"),
    option("card", attention="_native_cudnn"),
    option("card", "flash", attention="flash"),
    option("hopper", "_flash_3", attention="_flash_3"),
    option("card", "sage", attention="sage"),
    option("card", "xformers", attention="xformers"),
    option("compiler", compile=True),
    option("compiler", "int8", compile=True, quantization="int8"),
    option("compiler", "fp8", compile=True, quantization="fp8"),
    option("compiler", compile=True, cache="taylorseer", cache_interval=3),
    option(cache="first_block", cache_threshold=0.3),
    option(cache="taylorseer", cache_interval=3),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory, device):
    folder = tmp_path_factory.mktemp("model")
    gpu_models.save_flux(folder, gpu_models.TINY, device, "bfloat16")
    return folder


def made(model, folder, name, device, **options):
    """Values 0..1 of two pictures, each made alone: first to last, then last to first, which must be equal."""
    section = {"model": str(model), "device": device, "dtype": "bfloat16", "steps": STEPS, "batch_size": 1}
    engine = open_engine(filled(section | options, name, folder), name)
    items = [{"prompt": f"make it {colour}"} for colour in ("red", "blue")]
    requests = read_requests(lines(*({"items": [item]} for item in items)), engine.section, 0, 1)
    sources = [Image.new("RGB", (64, 64), colour) for colour in ("blue", "red")]
    engine.prepare(requests)

    def run(place):
        return engine.run([requests[place]], (64, 64), [sources[place]] if engine.edits else None)[0]

    first = [run(place) for place in (0, 1)]
    again = [run(place) for place in (1, 0)][::-1]
    assert (np.stack(first) == np.stack(again)).all(), "a picture depends on what was made before"
    return np.stack(first)


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory, device):
    return {name: made(model, tmp_path_factory.mktemp(name), name, device) for name in ("generate", "edit")}


@pytest.mark.parametrize("name", ["generate", "edit"])
@pytest.mark.parametrize(("options", "same"), OPTIONS)
def test_an_option_works_repeats_and_changes_what_it_may(model, plain, tmp_path, device, name, options, same):
    pictures = made(model, tmp_path, name, device, **options)
    assert np.isfinite(pictures).all()
    difference = np.abs(pictures - plain[name])
    assert difference.mean() < 0.1
    assert not same or difference.max() == 0
    assert (made(model, tmp_path, name, device, **options) == pictures).all(), "an engine opened anew makes others"


@pytest.mark.needs("compiler")
def test_compiled_code_is_loaded_by_the_next_engine_and_makes_the_same(model, tmp_path, device, monkeypatch):
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    pictures, counted = [], []
    for _ in range(2):
        torch.compiler.reset()
        counters.clear()
        pictures.append(made(model, tmp_path, "generate", device, compile=True))
        counted.append({name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")})
    assert (pictures[0] == pictures[1]).all()
    assert counted[0]["miss"] > 0 and counted[1]["miss"] == 0 and counted[1]["hit"] > 0


@pytest.mark.needs("card", "fp8")
def test_fp8_multiplies_in_eight_bits_and_a_token_by_itself(model, tmp_path, device):
    section = {"model": str(model), "device": device, "dtype": "bfloat16", "quantization": "fp8"}
    engine = open_engine(filled(section, "generate", tmp_path), "generate")
    engine.prepare(read_requests(lines({"items": [{"prompt": "a"}]}), engine.section, 0, 1))
    layer = engine.pipe.transformer.transformer_blocks[0].attn.to_q
    assert type(layer.weight).__name__ == "Float8Tensor" and layer.weight.act_quant_kwargs is not None
    generator = torch.Generator(device).manual_seed(0)
    values = torch.randn(64, layer.in_features, generator=generator, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        quiet, loud = (layer(torch.cat([values, times * values]))[:64] for times in (1, 1000))
        exact = values.float() @ layer.weight.dequantize().float().T + layer.bias.float()
    assert 0 < (quiet.float() - exact).abs().max() < 0.1 * exact.abs().max()  # 3 bits of a value
    assert (loud == quiet).all(), "a token's values depend on its neighbours"


@pytest.mark.needs("card")
@pytest.mark.parametrize("options", [{"offload": "model"}, {"offload": "sequential"}], ids=lambda one: one["offload"])
def test_offloaded_weights_are_on_the_card_only_while_they_are_used(model, tmp_path, device, options):
    section = {"model": str(model), "device": device, "dtype": "bfloat16", "steps": 2, "batch_size": 1}
    resting = {}
    for offload in ({}, options):
        engine = open_engine(filled(section | offload, "generate", tmp_path), "generate")
        requests = read_requests(lines({"items": [{"prompt": "a"}]}), engine.section, 0, 1)
        engine.prepare(requests)
        engine.run(requests, (64, 64), None)
        engine.pipe.maybe_free_model_hooks()
        torch.cuda.synchronize()
        resting[bool(offload)] = torch.cuda.memory_allocated()
        del engine
        torch.cuda.empty_cache()
    assert resting[True] < resting[False]
