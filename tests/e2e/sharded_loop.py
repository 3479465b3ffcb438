"""The loops of `loop.py` with the model or its optimizer in shards: Accelerate with ZeRO or FSDP2, or native DeepSpeed.

Run by `Trainer(config, "--fault.key=value", script=...)`; writes what it was given and what it learnt to train.output.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, set_seed
from loop import FixedSource, parse
from safetensors.torch import save_file

from train_client import SubbatchPlugin
from train_client.train import make_model
from train_client.whole import save_pretrained, whole


def settings(kind: str, clip: float) -> dict[str, Any]:
    """A DeepSpeed configuration; ZeRO-3 shards small parameters too, unless they are to be kept whole."""
    stage, _, option = kind.removeprefix("native-").removeprefix("zero").partition("-")
    zero: dict[str, Any] = {"stage": int(stage), "overlap_comm": False}
    if option != "kept":
        zero["stage3_param_persistence_threshold"] = 0
    zero["stage3_gather_16bit_weights_on_model_save"] = True  # for this loop's own comparison with what PEFT saves
    if option == "offload":
        zero["offload_optimizer"] = {"device": "cpu"}
    precision = {option: {"enabled": True}} if option in ("bf16", "fp16") else {}
    return precision | {
        "zero_optimization": zero,
        "gradient_clipping": clip,
        "train_micro_batch_size_per_gpu": "auto" if kind.startswith("zero") else 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def main() -> None:
    sharding = [a for a in sys.argv if a.startswith("--sharding.")]
    kind, clip = (next(a.split("=")[1] for a in sharding if a.startswith(f"--sharding.{k}=")) for k in ("kind", "clip"))
    is_partly_frozen = "--sharding.frozen=1" in sharding
    sys.argv = [a for a in sys.argv if a not in sharding]
    fault, config = parse()
    torch.set_num_threads(1)
    output = config.train.output
    output.mkdir(parents=True, exist_ok=True)
    state = PartialState(cpu=True)  # or Accelerate would look for DeepSpeed's accelerator
    set_seed(config.run.seed)
    model = make_model(config, torch.device("cpu"))
    if is_partly_frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("layers.1." in name)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=config.train.learning_rate)
    optimizer = torch.optim.SGD(trained, lr=1.0) if fault.sgd else adam

    accelerator: Any = None
    if kind.startswith("native"):
        import deepspeed

        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings(kind, float(clip)))
        prepared, subbatch = engine, SubbatchPlugin.for_engine(engine, config)
    elif kind.startswith("zero"):
        plugin = DeepSpeedPlugin(hf_ds_config=settings(kind, float(clip)))
        accelerator = Accelerator(deepspeed_plugin=plugin)
        subbatch = SubbatchPlugin(accelerator, model, config)
        prepared, optimizer = accelerator.prepare(model, optimizer)
    else:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        precision = kind.partition("-")[2] or "no"
        state.distributed_type = DistributedType.MULTI_GPU  # Accelerate shards by FSDP on those alone, PyTorch anywhere
        accelerator = Accelerator(fsdp_plugin=plugin, mixed_precision=precision)
        prepared, optimizer = accelerator.prepare(model, optimizer)
        subbatch = SubbatchPlugin(accelerator, prepared, config)
    if fault.fixed:
        subbatch._source = subbatch._loader._source = FixedSource(fault.fixed)
    if fault.resume and accelerator:
        accelerator.load_state(fault.resume)
    elif fault.resume:
        _, client_state = prepared.load_checkpoint(fault.resume)
        subbatch.load_state_dict(client_state["subbatch"])

    kinds = {"zero": DistributedType.DEEPSPEED, "fsdp": DistributedType.FSDP}
    assert accelerator is None or accelerator.distributed_type == kinds[kind[:4]]
    with (output / f"loop-rank{state.process_index}.jsonl").open("a") as log:
        for batch in subbatch:
            if accelerator:
                with accelerator.accumulate(prepared):
                    accelerator.backward(subbatch.loss(prepared, batch))
                    if accelerator.sync_gradients and float(clip):
                        accelerator.clip_grad_norm_(prepared.parameters(), float(clip))
                    optimizer.step()
                    optimizer.zero_grad()
            else:
                prepared.backward(subbatch.loss(prepared, batch))
                prepared.step()
            if not batch.is_last:
                continue
            report = subbatch.last_step
            assert report is not None
            index = report.selection.index.tolist()
            log.write(json.dumps({"step": batch.step, "index": index, "rows": report.rows, "loss": report.loss}) + "\n")
            log.flush()
            if subbatch.cursor == fault.save_at:
                if accelerator:
                    accelerator.save_state(str(output / "saved"))
                    # What PEFT saves, gathered by the framework's own means, base and all.
                    everything = accelerator.get_state_dict(prepared)
                    if accelerator.is_main_process and config.train.lora:
                        accelerator.unwrap_model(prepared).save_pretrained(output / "peft", state_dict=everything)
                else:
                    client_state = {"subbatch": subbatch.state_dict()}
                    prepared.save_checkpoint(str(output / "saved"), client_state=client_state)
                state.wait_for_everyone()
                (output / "saved-whole").touch()
    bare = subbatch._model
    names = {name: p for name, p in bare.named_parameters() if p.requires_grad}
    if kind.startswith(("zero", "native")) and kind.endswith(("bf16", "fp16")):  # what the optimizer has updated
        from deepspeed.utils import safe_get_full_fp32_param

        tensors = [safe_get_full_fp32_param(parameter) for parameter in names.values()]
    else:
        with whole(list(names.values())) as tensors:
            tensors = [tensor.clone() for tensor in tensors]
    if state.is_main_process:
        weights = {name: t.contiguous() for name, t in zip(names, tensors, strict=True)}
        save_file(weights, output / "weights.safetensors")
    save_pretrained(bare, output / "model", is_first=state.is_main_process)
    state.wait_for_everyone()
    os._exit(0)


if __name__ == "__main__":
    main()
