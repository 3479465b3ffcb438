"""Which model --model, --adapter and the configuration mean, and adapters that are another model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shared.config import ModelConfig
from shared.errors import ConfigError, ModelError
from tests.small_models import tiny_model
from train_client.evaluate.load import load_model, pick_device, who_is_asked

CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    tiny_model("llama", lora=True).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_command_line_wins_over_the_configuration(base: Path, adapter: Path) -> None:
    config = ModelConfig(path="from/config")
    assert who_is_asked(config, None, None).base.path == "from/config"
    assert who_is_asked(config, str(base), None).base.path == str(base)
    who = who_is_asked(config, str(base), adapter)
    assert (who.base.path, who.adapter, who.tokenizer) == (str(base), adapter, str(base))
    with pytest.raises(ConfigError, match="no model is named"):
        who_is_asked(ModelConfig(), None, None)


def test_an_adapters_folder_given_as_the_model_is_put_on_its_base(base: Path, adapter: Path) -> None:
    who = who_is_asked(ModelConfig(path=str(base)), str(adapter), None)
    assert (who.base.path, who.adapter) == (str(base), adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "its/base"}))
    assert who_is_asked(ModelConfig(), str(adapter), None).base.path == "its/base"
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="doesn't say what it was trained on"):
        who_is_asked(ModelConfig(), str(adapter), None)


def test_a_model_that_was_trained_whole_keeps_the_configured_tokenizer(base: Path) -> None:
    who = who_is_asked(ModelConfig(path="from/config"), None, base)
    assert (who.base.path, who.adapter, who.tokenizer) == (str(base), None, "from/config")


def test_folders_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        who_is_asked(ModelConfig(path="a/b"), None, tmp_path / "none")
    with pytest.raises(ModelError, match=r"neither adapter_config\.json nor config\.json"):
        who_is_asked(ModelConfig(path="a/b"), None, tmp_path)


def test_an_adapter_changes_what_the_model_says(base: Path, adapter: Path) -> None:
    plain = load_model(who_is_asked(ModelConfig(path=str(base)), None, None), CPU)
    adapted = load_model(who_is_asked(ModelConfig(path=str(base)), None, adapter), CPU)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert not torch.allclose(plain(input_ids=ids).logits, adapted(input_ids=ids).logits)
        with adapted.disable_adapter():
            assert torch.equal(plain(input_ids=ids).logits, adapted(input_ids=ids).logits)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 64}, {"num_hidden_layers": 2}, {"num_hidden_layers": 4}],
    ids=["wider", "shallower", "deeper"],
)
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, adapter: Path, changes: dict[str, int]) -> None:
    tiny_model("llama", **changes).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="give the model that it was trained on"):
        load_model(who_is_asked(ModelConfig(path=str(tmp_path / "other")), None, adapter), CPU)


def test_an_adapter_on_another_architecture_is_refused(tmp_path: Path, adapter: Path) -> None:
    tiny_model("gpt_neox").save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="give the model that it was trained on"):
        load_model(who_is_asked(ModelConfig(path=str(tmp_path / "other")), None, adapter), CPU)


def test_weights_that_change_under_one_path_are_other_settings(base: Path, adapter: Path) -> None:
    def settings() -> dict[str, object]:
        return who_is_asked(ModelConfig(path=str(base)), None, adapter).settings()

    before = settings()
    assert settings() == before
    other = tiny_model("llama", lora=True)
    for parameter in other.parameters():
        parameter.data += 0.01
    other.save_pretrained(adapter)
    assert {key for key, value in settings().items() if value != before[key]} == {"adapter_weights"}


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(ConfigError, match="no CUDA device"):
        pick_device("cuda")
