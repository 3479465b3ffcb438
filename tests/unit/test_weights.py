"""Trainable tensors as bytes, and the model as both sides see it, on a small random Phi."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PhiConfig, PhiForCausalLM

from shared.config import ModelConfig
from shared.errors import ModelError, WeightsError
from shared.model import (
    adapter_to_json,
    add_adapter,
    base_fingerprint,
    base_parameters,
    load_base_model,
    trainable_tensors,
)
from shared.records import TensorSpec
from shared.weights import (
    CHUNK_BYTES,
    chunks,
    content_hash,
    decode_weights,
    empty_payload,
    encode_weights,
    tensor_specs,
)


def a_phi(seed: int = 0) -> PhiForCausalLM:
    torch.manual_seed(seed)
    config = PhiConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return PhiForCausalLM(config).eval()


def a_lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | changes)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(10).reshape(1, 10)).logits


# ---- tensors as bytes


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(-(2**15), 2**15, (40, 5), generator=generator, dtype=torch.int32).to(torch.int16)
    half = bits.view(torch.bfloat16)
    return {
        "layer.B": torch.randn(7, 3, generator=generator),
        "layer.A": torch.where(half.isfinite(), half, torch.tensor(-0.0, dtype=torch.bfloat16)),
        "double": torch.tensor([5e-324, -0.0, 1 / 3], dtype=torch.float64),
        "half": torch.tensor([[6e-8, 65504.0]], dtype=torch.float16),
        "scalar": torch.tensor(1e-45),
        "turned": torch.randn(4, 6, generator=generator).t(),
    }


def bits_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_tensors_arrive_to_the_last_bit_in_the_order_the_run_was_opened_with() -> None:
    sent = some_tensors()
    got = decode_weights(encode_weights(sent), tensor_specs(sent))
    assert list(got) == list(sent)
    for name, tensor in sent.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape)
        assert bits_of(got[name]) == bits_of(tensor)


def test_tensors_are_where_the_payload_arrived() -> None:
    sent = some_tensors()
    payload = bytearray(encode_weights(sent))
    got = decode_weights(payload, tensor_specs(sent))
    first = torch.frombuffer(payload, dtype=torch.uint8).data_ptr()
    for tensor in got.values():
        assert first < tensor.data_ptr() < first + len(payload)
        assert tensor.data_ptr() % tensor.itemsize == 0


def test_a_payload_that_another_program_laid_out_differently_is_read_all_the_same() -> None:
    sent = some_tensors()
    payload = safetensors.torch.save({name: t.contiguous() for name, t in sent.items()}, metadata={"format": "pt"})
    assert payload != encode_weights(sent)
    for given in (payload, bytearray(payload)):
        got = decode_weights(given, tensor_specs(sent))
        assert list(got) == list(sent)
        assert all(bits_of(got[name]) == bits_of(tensor) for name, tensor in sent.items())


def test_equal_tensors_make_equal_bytes_whatever_their_order() -> None:
    forwards = some_tensors()
    backwards = {name: forwards[name].clone() for name in reversed(forwards)}
    assert encode_weights(forwards) == encode_weights(backwards)


@pytest.mark.parametrize("left_out", [(), ("double", "half"), tuple(some_tensors())])
def test_payloads_are_byte_for_byte_what_the_safetensors_library_writes(left_out: tuple[str, ...]) -> None:
    tensors = {name: tensor for name, tensor in some_tensors().items() if name not in left_out}
    tensors['naïve "név"\\'] = torch.ones(3, 0, 2)
    assert encode_weights(tensors) == saved_by_library(tensors)


def test_a_payload_that_is_filled_again_holds_nothing_of_what_it_held_before() -> None:
    first, second = some_tensors(), {name: -2 * tensor for name, tensor in some_tensors().items()}
    payload, places = empty_payload(tensor_specs(first))
    for tensors in (first, second):
        for name, place in places.items():
            place.copy_(tensors[name])
        assert payload.numpy().tobytes() == encode_weights(tensors)


def test_weights_of_a_dtype_that_cannot_be_sent_are_refused_by_name() -> None:
    with pytest.raises(WeightsError, match="weights c are complex64, only float64"):
        encode_weights({"c": torch.ones(2, dtype=torch.complex64)})


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17])
def test_chunks_put_together_are_the_payload(size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    pieces = list(chunks(payload))
    assert b"".join(pieces) == payload
    assert all(0 < len(piece) <= CHUNK_BYTES for piece in pieces)
    assert len(pieces) == -(-size // CHUNK_BYTES)


def test_the_content_hash_is_sha_256() -> None:
    assert content_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def saved_by_library(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


def refusal(tensors: dict[str, Tensor] | bytes, specs: tuple[TensorSpec, ...] | None = None) -> str:
    payload = tensors if isinstance(tensors, bytes) else saved_by_library(tensors)
    with pytest.raises(WeightsError) as caught:
        decode_weights(payload, tensor_specs(some_tensors()) if specs is None else specs)
    return str(caught.value)


def test_weights_without_one_of_the_names_are_refused() -> None:
    tensors = some_tensors()
    del tensors["layer.A"]
    assert "1 missing ['layer.A'], 0 unknown" in refusal(tensors)


def test_weights_with_a_name_too_many_are_refused() -> None:
    assert "0 missing [], 1 unknown ['other']" in refusal(some_tensors() | {"other": torch.ones(1)})


def test_no_weights_at_all_are_refused() -> None:
    assert "6 missing" in refusal({})
    refusal(b"")


@pytest.mark.parametrize("shape", [(7, 4), (3, 7), (21,), (7, 3, 1)])
def test_weights_of_another_shape_are_refused_with_both(shape: tuple[int, ...]) -> None:
    message = refusal(some_tensors() | {"layer.B": torch.zeros(shape)})
    assert "layer.B" in message
    assert str(shape) in message
    assert "(7, 3)" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32])
def test_weights_of_another_dtype_are_refused_with_both(dtype: torch.dtype) -> None:
    message = refusal(some_tensors() | {"layer.B": torch.zeros(7, 3, dtype=dtype)})
    assert str(dtype).removeprefix("torch.") in message
    assert "float32" in message


@pytest.mark.parametrize("name", ["layer.A", "layer.B", "double", "half", "scalar"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(name: str, value: float) -> None:
    tensors = some_tensors()
    tensors[name].view(-1)[-1] = value
    assert f"{name} hold values that aren't finite" in refusal(tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype: torch.dtype, value: float) -> None:
    tensor = torch.linspace(-1, 1, 1000).to(dtype)
    specs = tensor_specs({"a": tensor})
    decode_weights(encode_weights({"a": tensor}), specs)
    for at in (*range(0, 1000, 7), 999):
        spoilt = tensor.clone()
        spoilt[at] = value
        refusal(encode_weights({"a": spoilt}), specs)


def test_weights_cut_off_anywhere_are_refused() -> None:
    payload = encode_weights(some_tensors())
    for end in range(len(payload)):
        refusal(payload[:end])
    refusal(payload + b"\0")


def test_a_damaged_header_raises_nothing_but_a_weights_error() -> None:
    sent = some_tensors()
    payload, specs = encode_weights(sent), tensor_specs(sent)
    (length,) = struct.unpack("<Q", payload[:8])
    for position in range(8 + length):
        for byte in (0, ord(" "), ord("9"), ord('"'), ord("}"), 0xFF, payload[position] ^ 1):
            damaged = bytearray(payload)
            damaged[position] = byte
            try:
                got = decode_weights(bytes(damaged), specs)
            except WeightsError:
                continue
            # Spaces are padding, and two tensors of one size may change places; nothing else gets through.
            assert tensor_specs(got) == specs


class Bomb:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("the payload ran code",))


def test_a_pickle_is_refused_and_runs_nothing() -> None:
    saved = io.BytesIO()
    torch.save({"layer.A": Bomb()}, saved)
    for payload in (pickle.dumps(Bomb()), saved.getvalue(), struct.pack("<Q", 2**62) + b"{}"):
        assert "not a safetensors payload" in refusal(payload)


# ---- naming what is trained


def test_names_do_not_depend_on_what_the_adapter_is_called() -> None:
    models = [get_peft_model(a_phi(), a_lora(), adapter_name=name) for name in ("default", "math", "layers", "lora_A")]
    specs = [tensor_specs(trainable_tensors(model)) for model in models]
    assert all(spec == specs[0] for spec in specs)
    # 2 layers × 2 modules × (A, B), by hand.
    width, rank = 32, 4
    assert {spec.name: spec.shape for spec in specs[0]} == {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{half}.weight": shape
        for layer in range(2)
        for module in ("q_proj", "v_proj")
        for half, shape in (("A", (rank, width)), ("B", (width, rank)))
    }


def test_only_the_active_adapter_is_trained_and_named() -> None:
    model = get_peft_model(a_phi(), a_lora(), adapter_name="first")
    model.add_adapter("second", a_lora(r=8))
    model.set_adapter("second")
    assert {spec.shape for spec in tensor_specs(trainable_tensors(model))} == {(8, 32), (32, 8)}


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}])
def test_the_named_tensors_are_the_models_own(changes: dict[str, Any]) -> None:
    model = get_peft_model(a_phi(), a_lora(**changes), adapter_name="math").eval()
    before = logits(model)
    tensors = trainable_tensors(model)
    assert list(tensors) == sorted(tensors)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {t.data_ptr() for t in tensors.values()} == {p.data_ptr() for p in trained}
    for tensor in tensors.values():
        assert not tensor.requires_grad
        tensor.add_(0.5)
    assert not torch.equal(logits(model), before)


def test_full_fine_tuning_names_what_requires_a_gradient() -> None:
    model = a_phi()
    assert trainable_tensors(model).keys() == dict(model.named_parameters()).keys()
    model.requires_grad_(False)
    model.lm_head.bias.requires_grad_(True)
    (tensor,) = trainable_tensors(model).values()
    assert tensor.data_ptr() == model.lm_head.bias.data_ptr()


def test_a_model_of_which_nothing_is_trained_is_refused() -> None:
    with pytest.raises(ModelError, match="no trainable parameter"):
        trainable_tensors(a_phi().requires_grad_(False))


def test_a_tensor_that_is_trained_beside_the_adapter_is_refused() -> None:
    model = get_peft_model(a_phi(), a_lora())
    model.get_base_model().model.embed_tokens.weight.requires_grad_(True)
    with pytest.raises(ModelError, match="train only what the PEFT config names"):
        trainable_tensors(model)


# ---- the frozen base


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_dora": True},
        {"target_modules": "all-linear"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"bias": "lora_only"},
    ],
)
def test_an_adapter_leaves_the_base_its_names_its_values_and_its_fingerprint(changes: dict[str, Any]) -> None:
    bare, wrapped = a_phi(), get_peft_model(a_phi(), a_lora(**changes), adapter_name="math")
    theirs = base_parameters(wrapped)
    assert theirs.keys() == dict(bare.named_parameters()).keys()
    for name, parameter in bare.named_parameters():
        assert torch.equal(parameter, theirs[name])
    assert base_fingerprint(wrapped) == base_fingerprint(bare)


def test_training_the_adapter_leaves_the_fingerprint() -> None:
    model = get_peft_model(a_phi(), a_lora(modules_to_save=["lm_head"]))
    before = base_fingerprint(model)
    for tensor in trainable_tensors(model).values():
        tensor.add_(1.0)
    assert base_fingerprint(model) == before


def test_the_fingerprint_changes_with_any_parameter_by_a_single_element() -> None:
    model = a_phi()
    before = base_fingerprint(model)
    seen = {before["float32"]}
    for parameter in model.parameters():
        value = parameter.data.view(-1)[-1].clone()
        parameter.data.view(-1)[-1] = torch.nextafter(value, torch.tensor(torch.inf))
        changed = base_fingerprint(model)["float32"]
        assert changed not in seen
        seen.add(changed)
        parameter.data.view(-1)[-1] = value
    assert base_fingerprint(model) == before


def test_the_fingerprint_changes_when_two_parameters_change_places() -> None:
    model = a_phi()
    before = base_fingerprint(model)
    attention = model.model.layers[0].self_attn
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj
    assert base_fingerprint(model) != before


def test_the_fingerprint_is_the_same_in_any_layout_and_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_phi()
    before = base_fingerprint(model)
    monkeypatch.setattr("shared.model._HASH_CHUNK_ELEMENTS", 7)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
    assert base_fingerprint(model) == before


def test_loads_of_one_checkpoint_in_two_dtypes_agree_in_the_narrower(tmp_path: Path) -> None:
    a_phi().save_pretrained(tmp_path)
    cpu = torch.device("cpu")
    wide = base_fingerprint(load_base_model(ModelConfig(path=str(tmp_path), dtype="float32"), cpu))
    narrow = base_fingerprint(load_base_model(ModelConfig(path=str(tmp_path), dtype="bfloat16"), cpu))
    assert wide.keys() == {"float32", "bfloat16"}
    assert narrow.keys() == {"bfloat16"}
    assert wide["bfloat16"] == narrow["bfloat16"]
    assert wide == base_fingerprint(a_phi())
    assert wide["bfloat16"] != base_fingerprint(a_phi(seed=1))["bfloat16"]


def test_the_fingerprint_covers_names_shapes_and_bytes_in_the_order_of_names() -> None:
    model = nn.Module()
    model.b = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    model.a = nn.Parameter(torch.tensor([3.0]))
    told = b"a(1,)" + struct.pack("<f", 3.0) + b"b(1, 2)" + struct.pack("<2f", 1.0, 2.0)
    assert base_fingerprint(model)["float32"] == hashlib.sha256(told).hexdigest()


# ---- the adapter, from the trainer to the server

ADAPTERS = [
    {},
    {"use_dora": True},
    {"use_rslora": True, "lora_alpha": 32, "lora_dropout": 0.05},
    {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    {"target_modules": "all-linear", "exclude_modules": ["fc1"]},
    {"modules_to_save": ["lm_head"]},
    {"bias": "all"},
    {"layers_to_transform": [1], "layers_pattern": "layers"},
    {"lora_bias": True},
    {"init_lora_weights": "gaussian"},
]


@pytest.mark.parametrize("changes", ADAPTERS, ids=str)
def test_a_server_that_builds_the_trainers_adapter_and_loads_its_weights_computes_the_same(
    changes: dict[str, Any],
) -> None:
    trainer = get_peft_model(a_phi(), a_lora(**changes), adapter_name="math").eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in trainable_tensors(trainer).values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    server = add_adapter(a_phi(), adapter_to_json(trainer)).eval()
    assert tensor_specs(trainable_tensors(server)) == tensor_specs(trainable_tensors(trainer))
    assert not torch.equal(logits(server), logits(trainer))
    payload = encode_weights(trainable_tensors(trainer))
    mine = trainable_tensors(server)
    for name, tensor in decode_weights(payload, tensor_specs(trainable_tensors(trainer))).items():
        mine[name].copy_(tensor)
    assert torch.equal(logits(server), logits(trainer))


def test_the_adapters_description_is_the_same_for_the_same_adapter() -> None:
    one = get_peft_model(a_phi(), a_lora(target_modules=["v_proj", "q_proj"]), adapter_name="math")
    other = get_peft_model(a_phi(seed=1), a_lora(target_modules={"q_proj", "v_proj"}))
    assert adapter_to_json(one) == adapter_to_json(other)
    assert adapter_to_json(one) != adapter_to_json(get_peft_model(a_phi(), a_lora(r=5)))
    assert adapter_to_json(add_adapter(a_phi(), adapter_to_json(one))) == adapter_to_json(one)


def test_the_adapters_description_lists_its_modules_in_one_order_in_every_process() -> None:
    modules = {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
    settings = json.loads(adapter_to_json(get_peft_model(a_phi(), a_lora(target_modules=modules))))
    assert settings["target_modules"] == ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"]


def test_the_adapters_description_says_nothing_of_where_and_by_which_peft_it_was_made() -> None:
    settings = json.loads(adapter_to_json(get_peft_model(a_phi(), a_lora(base_model_name_or_path="/home/me/phi"))))
    assert not settings.keys() & {"base_model_name_or_path", "revision", "peft_version", "inference_mode"}


def test_a_scheme_that_changes_the_base_at_start_does_not_on_the_server() -> None:
    trainer = get_peft_model(a_phi(), a_lora(init_lora_weights="pissa"))
    server = add_adapter(a_phi(), adapter_to_json(trainer))
    assert base_fingerprint(server) == base_fingerprint(a_phi())


def test_a_bare_model_has_no_adapter_to_describe() -> None:
    assert adapter_to_json(a_phi()) == ""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", '"lora"', '{"r": 0}', '{"r": "x"}', '{"no_such_key": 1}', '{"target_modules": ["none"]}'],
)
def test_an_adapter_that_cannot_be_built_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="adapter"):
        add_adapter(a_phi(), text)


def test_an_adapter_other_than_lora_is_refused() -> None:
    from peft import IA3Config

    config = IA3Config(target_modules=["v_proj", "fc2"], feedforward_modules=["fc2"], task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match="IA3"):
        adapter_to_json(get_peft_model(a_phi(), config))


# ---- loading the base


@pytest.mark.parametrize("path", ["", "/no/such/folder", "/no/such/model.gguf"])
def test_a_base_that_cannot_be_loaded_is_refused_in_one_line_with_its_path(path: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_base_model(ModelConfig(path=path), torch.device("cpu"))
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ModelError, match="can't be loaded as a causal language model"):
        load_base_model(ModelConfig(path=str(tmp_path)), torch.device("cpu"))
