import os

os.environ["HF_HUB_OFFLINE"] = "1"

import random
from types import MethodType

import numpy as np
import pytest
import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoModel

from selector_server.scoring import v_projection
from selector_server.scoring.split import Split
from shared.errors import ModelError
from tests.small_models import ARCHITECTURES, FUSED, tiny_config, tiny_model, v_rows, with_lora

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def logits_of(split, weight=None, *, where=None):
    with split.quiet():
        logits = split.tail.logits(split.tail.hidden(split.trunk(IDS, where=where), weight))
    return logits.view(*IDS.shape, -1) if where is None else logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_trunk_and_tail_make_the_models_logits_bit_for_bit(kind, tied):
    model = tiny_model(kind, tie_word_embeddings=tied).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # large logits, so that a forgotten soft-cap shows
        expected = model(input_ids=IDS).logits
    assert torch.equal(logits_of(Split(model)), expected)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_with_lora_the_perturbed_parameter_is_the_last_b_matrix(kind):
    model = with_lora(tiny_model(kind)).eval()
    split = Split(model)
    module = FUSED[kind][0] if kind in FUSED else "v_proj"
    parent = "gpt_neox.layers.2.attention" if kind == "gpt_neox" else "model.layers.2.self_attn"
    assert split.name == f"base_model.model.{parent}.{module}.lora_B.default.weight"
    parameter = dict(model.named_parameters())[split.name]
    assert split.shape == tuple(split.tail.weight.shape) == tuple(parameter[v_rows(model)].shape)
    assert kind in FUSED or split.tail.weight.data_ptr() == parameter.data_ptr()
    with torch.no_grad():
        assert torch.equal(logits_of(split), model(input_ids=IDS).logits)


def test_in_full_fine_tuning_the_perturbed_parameter_is_the_v_projection():
    split = Split(tiny_model("llama"))
    assert (split.name, split.shape) == ("model.layers.2.self_attn.v_proj.weight", (16, 32))


def test_given_weight_takes_the_place_of_the_perturbed_one_for_one_call():
    model = tiny_model("llama").eval()
    split, other = Split(model), torch.randn(16, 32)
    plain = logits_of(split)
    changed = logits_of(split, other)
    assert torch.equal(logits_of(split), plain)
    with torch.no_grad():
        model.get_parameter(split.name).copy_(other)
        assert torch.equal(changed, model(input_ids=IDS).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tail_of_a_half_precision_model_is_the_float32_model_from_there_on(dtype):
    model = tiny_model("llama").to(dtype).eval()
    split = Split(model)
    with split.quiet():
        (call,) = (penultimate := split.trunk(IDS)).calls
        found = split.tail.logits(split.tail.hidden(penultimate))
        assert found.dtype == torch.float32
        model.float()
        hidden = model.model.layers[-1](*call.args, **call.kwargs)
        assert torch.equal(found, model.lm_head(model.model.norm(hidden)).view_as(found))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_refresh_takes_changed_weights_into_the_tail(dtype):
    model = tiny_model("llama").to(dtype)
    split = Split(model)
    before = logits_of(split)
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.add_(0.5)
        model.model.norm.weight.mul_(2.0)
    split.refresh()
    assert torch.equal(logits_of(split), logits_of(Split(model)))
    assert not torch.allclose(logits_of(split), before, rtol=0.1)


def state_of(model):
    """Everything a trainer could notice."""
    rng = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    modules = {
        name: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._parameters), len(m._buffers))
        for name, m in model.named_modules()
    }
    tensors = {n: (id(p), p.requires_grad, p.grad, p.detach().clone()) for n, p in model.named_parameters()}
    return rng, modules, tensors


def assert_unchanged(before, after):
    assert torch.equal(before[0][0], after[0][0])
    assert before[0][1:] == after[0][1:]
    assert before[1] == after[1]
    assert before[2].keys() == after[2].keys()
    for name, (*left, weight) in before[2].items():
        *right, now = after[2][name]
        assert all(a is b or a == b for a, b in zip(left, right, strict=True)), name
        assert torch.equal(weight, now), name


def training_model():
    """LoRA in training with checkpointing, dropout, and one submodule that its owner keeps in eval mode."""
    model = with_lora(tiny_model("phi", resid_pdrop=0.3, embd_pdrop=0.3))
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    model.get_base_model().model.layers[0].eval()
    return model


def test_model_in_training_is_left_as_it_was_and_trains_on():
    model = training_model()
    before = state_of(model)
    split = Split(model)
    split.refresh()
    first, second = logits_of(split), logits_of(split)
    assert torch.equal(first, second)  # no dropout
    assert not first.requires_grad
    assert_unchanged(before, state_of(model))
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert model.get_parameter(split.name).grad.abs().sum() > 0


def test_what_a_model_caches_while_it_is_scored_can_be_trained_with():
    model, cache = tiny_model("llama").train(), {}

    def scale(_, __, output):
        return output * cache.setdefault("scale", torch.ones(output.shape[-1]))

    model.model.layers[0].register_forward_hook(scale)
    logits_of(Split(model))
    model(input_ids=IDS, labels=IDS).loss.backward()


@pytest.mark.parametrize("where", ["layers.0.mlp", "layers.1"])
def test_error_in_the_middle_leaves_the_model_as_it_was(where):
    model = training_model()
    split = Split(model)

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = model.get_base_model().model.get_submodule(where).register_forward_hook(fail)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        logits_of(split)
    assert_unchanged(before, state_of(model))
    handle.remove()
    assert torch.isfinite(logits_of(split)).all()


def test_autocast_neither_around_nor_inside_the_model_lowers_the_precision():
    model = tiny_model("llama")
    expected = logits_of(Split(model))
    # What accelerator.prepare does to a model.
    model.forward = MethodType(torch.autocast("cpu", torch.bfloat16)(model.forward.__func__), model)
    model.forward = MethodType(convert_outputs_to_fp32(model.forward.__func__), model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits_of(Split(model)), expected)


def test_float32_products_are_exact_even_where_the_trainer_allows_less():
    split = Split(tiny_model("llama"))
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        torch.set_float32_matmul_precision("medium")
        lowered = [backend.fp32_precision for backend in backends]
        with split.quiet():
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == lowered == ["tf32", "bf16"]
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_running_where_it_matters_alone_changes_nothing_there(kind):
    model = tiny_model(kind, lora=True)
    split, where = Split(model), torch.tensor([2, 3, 5, 6, 10])
    torch.manual_seed(1)
    for weight in (None, torch.randn(split.shape)):
        everywhere = logits_of(split, weight).flatten(0, 1)[where]
        torch.testing.assert_close(logits_of(split, weight, where=where), everywhere, rtol=1e-4, atol=1e-5)
    with split.quiet():
        batch = split.trunk(IDS, where=where)
        first = split.tail.hidden(batch, weight)
        split.tail.hidden(batch)
        assert torch.equal(split.tail.hidden(batch, weight), first)  # what was kept is what is made anew


def modules_run(split, module):
    """How many positions each call of a module of the tail sees, in two perturbed passes at three positions."""
    seen = []
    layer = split.tail.layers[-1]
    layer.get_submodule(module).register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:-1].numel()))
    with split.quiet():
        batch = split.trunk(IDS, where=torch.tensor([2, 3, 10]))
        for _ in range(2):
            split.tail.hidden(batch, torch.randn(split.shape))
    return seen


@pytest.mark.parametrize(
    ("kind", "module", "calls"),
    [
        ("phi", "mlp.fc1", [3]),  # beside attention: once for all perturbations
        ("llama", "mlp.up_proj", [3, 3]),  # after attention: for each perturbation
        ("gpt_neox", "mlp.dense_h_to_4h", [3]),
    ],
)
def test_mlp_runs_at_the_wanted_positions_and_for_each_perturbation_only_after_attention(kind, module, calls):
    assert modules_run(Split(tiny_model(kind)), module) == calls


def test_module_with_zero_weights_that_will_be_trained_is_not_taken_for_one_that_does_not_matter():
    model = tiny_model("llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj", "self_attn.v_proj"):
            model.model.layers[-1].get_submodule(name).weight.zero_()
    split, where = Split(model), torch.tensor([2, 3, 10])
    with torch.no_grad():
        for parameter in model.model.layers[-1].parameters():
            parameter.normal_(std=0.3)
    split.refresh()
    everywhere = logits_of(split).flatten(0, 1)[where]
    torch.testing.assert_close(logits_of(split, where=where), everywhere, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_layers", [2, 3])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_tail_of_several_layers_makes_the_models_logits(kind, num_layers):
    # Gemma's layers attend in turn to everything and to a window of two, with masks of their own.
    model = tiny_model(kind, **({"sliding_window": 2} if kind.startswith("gemma") else {})).eval()
    split = Split(model, num_layers=num_layers, perturb=False)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(split), model(input_ids=IDS).logits, rtol=1e-5, atol=1e-6)
    assert (split.name, split.shape) == ("", ())


def test_more_layers_than_there_are_are_refused():
    with pytest.raises(ModelError, match="num_blocks 4 is more than the 3 layers it has"):
        Split(tiny_model("llama"), num_layers=4)


def test_model_without_a_v_projection_we_know_is_refused_and_its_modules_named():
    with pytest.raises(ModelError, match=r"^gpt2: .*no V projections .*looked for v_proj.*c_attn.*use a model"):
        Split(tiny_model("gpt2"))


def test_fused_projection_with_v_elsewhere_is_refused(monkeypatch):
    monkeypatch.setitem(v_projection._FUSED, "query_key_value", v_projection._FUSED["qkv_proj"])
    with pytest.raises(ModelError, match=r"rows 48 to 63 of attention.query_key_value attention still varies by"):
        Split(tiny_model("gpt_neox"))


def test_lora_that_leaves_the_v_projection_out_is_refused():
    model = with_lora(tiny_model("llama"), target_modules=["q_proj", "o_proj"])
    with pytest.raises(ModelError, match=r"doesn't train self_attn.v_proj .*o_proj.*add 'v_proj' to target_modules"):
        Split(model)


def test_lora_that_leaves_the_last_layer_out_is_refused():
    model = with_lora(tiny_model("llama"), layers_to_transform=[0, 1])
    with pytest.raises(ModelError, match="leave layers_to_transform unset"):
        Split(model)


def test_merged_adapter_is_refused_since_its_b_matrix_has_no_effect():
    model = with_lora(tiny_model("llama"))
    model.merge_adapter()
    with pytest.raises(ModelError, match=r"merged \['default'\].*keep exactly one active, unmerged and enabled"):
        Split(model)


def test_adapter_that_is_not_lora_is_refused():
    model = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match="use LoRA"):
        Split(model)


@pytest.mark.parametrize("wrap", [lambda _: AutoModel.from_config(tiny_config("llama")), torch.nn.Sequential])
def test_anything_but_a_causal_language_model_is_refused(wrap):
    with pytest.raises(ModelError, match="isn't a Hugging Face causal language model"):
        Split(wrap(tiny_model("llama")))


def test_architecture_that_does_something_else_after_its_head_is_refused_with_the_difference():
    model = tiny_model("granite", logits_scaling=8.0)
    model.config.logits_scaling = 8.0
    split_of = type(model).forward

    class Sharper(type(model)):
        def forward(self, **inputs):
            output = split_of(self, **inputs)
            output.logits = output.logits**3
            return output

    model.__class__ = Sharper
    with pytest.raises(ModelError, match=r"granite: .* are off by \d.* from the model's, which reach \d"):
        Split(model)
