"""The one configuration tree, read from a TOML file, the environment and the command line, in rising precedence.

The same file serves the selector server and the trainers, so that the two can't drift apart. Each component gets its
own branch. Environment variables are named SUBBATCH_BRANCH__KEY, and SUBBATCH_CONFIG names the file where nothing else
does; the command line takes --branch.key VALUE.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from shared.addresses import parse_target
from shared.branch import Branch, Positive
from shared.errors import ConfigError
from shared.limits_config import LimitsConfig
from shared.selection_config import SelectionConfig
from shared.telemetry_config import LogConfig, TraceConfig
from shared.timing import Timing

ENV_PREFIX, ENV_DELIMITER = "SUBBATCH_", "__"
CONFIG_VARIABLE = "SUBBATCH_CONFIG"
# Secrets are no part of the tree, so that no dump of it can show them: shared/tokens.py.
TOKEN_VARIABLE, TOKENS_VARIABLE = "SUBBATCH_TOKEN", "SUBBATCH_TOKENS"

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class ModelConfig(Branch):
    """The frozen base model. `path` is a hub id, a folder, or a .gguf file."""

    # Hub id, folder, or .gguf file; the same on both sides.
    path: str = ""
    # Branch, tag or commit of a hub id.
    revision: str = "main"
    # What weights are loaded as. Scores of the last block are computed in float32, whatever this says.
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # Transformers' implementation of attention.
    attention: Literal["sdpa", "eager"] = "sdpa"
    # Hold the linear modules in 8 or 4 bits (LLM.int8, NF4), with bitsandbytes; `dtype` is what they compute with. For
    # runs with an adapter. Trainers may differ: bases agree where their checkpoints do.
    load_in: Literal["full", "8bit", "4bit"] = "full"


class DataConfig(Branch):
    """Stores that `selector-server prepare` wrote."""

    # What is trained on; on the server, and on each training host unless client.payload is `records`.
    store: Path | None = None
    # Rows for the held-out loss, on the training hosts.
    heldout_store: Path | None = None


class RunConfig(Branch):
    """One fine-tuning job."""

    # What the server knows it by; taken until the run is resumed or started over.
    name: RunName = "run"
    # Of draws, probes, a new adapter's weights and dropout.
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    # Optimizer steps of the whole run; the learning rate's schedule and the server's work end there.
    num_steps: Positive = 1000
    # S: how many versions old the weights behind a selection may be. 0 overlaps nothing and is the paper's algorithm.
    staleness: Annotated[int, Field(ge=0)] = 1
    # K: steps from one push of weights to the next.
    push_every: Positive = 1
    # What weights are cast to where they are pushed; `trained` sends them as they are trained. The server scores with
    # what it is sent, so it decides what is selected.
    push_dtype: Literal["trained", "bfloat16"] = "trained"
    # Steps the server may work ahead of the slowest rank; default staleness + push_every - 1.
    lookahead: int | None = None
    # Start over under a name that the server knows already.
    restart: bool = False

    @model_validator(mode="after")
    def _lookahead_overlaps(self) -> RunConfig:
        if self.lookahead is not None and self.lookahead < self.staleness:
            raise ValueError(
                f"lookahead {self.lookahead} is less than staleness {self.staleness}, which would make the trainers "
                "wait for every selection: raise lookahead or lower staleness"
            )
        return self

    @property
    def pushed_dtype(self) -> str | None:
        """What weights are cast to; None leaves them as they are."""
        return None if self.push_dtype == "trained" else self.push_dtype

    def timing(self, *, scores: bool) -> Timing:
        """The rules of what may overlap, for this run."""
        return Timing(
            num_steps=self.num_steps,
            staleness=self.staleness,
            push_every=self.push_every,
            lookahead=self.staleness + self.push_every - 1 if self.lookahead is None else self.lookahead,
            scores=scores,
        )


class TlsConfig(Branch):
    """PEM files. The server needs certificate and key; `ca` makes either side verify the other."""

    # Authorities whose certificates the other side must show.
    ca: Path | None = None
    # This side's certificate, with any intermediate ones after it.
    certificate: Path | None = None
    # Its private key, unencrypted.
    key: Path | None = None

    @model_validator(mode="after")
    def _pair(self) -> TlsConfig:
        if (self.certificate is None) != (self.key is None):
            raise ValueError(f"certificate {self.certificate} and key {self.key} go together: give both or neither")
        return self


class MetricsConfig(Branch):
    """Where an end's Prometheus metrics are read by HTTP: nowhere unless a port is given; 0 is a free one."""

    # The address to listen on.
    host: str = "127.0.0.1"
    # Its port.
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    # HTTPS with this certificate; with `ca`, whoever scrapes must show a certificate that it signed.
    tls: TlsConfig | None = None
    # Who may scrape, as in server.token_file. Without it, the server's own tokens named `admin` or `metrics`, where it
    # has tokens.
    token_file: Path | None = None
    # Listen on other than loopback addresses although that isn't encrypted, or anybody may scrape.
    insecure: bool = False


class ServerConfig(Branch):
    """Where and how the selector server runs."""

    # The address to listen on; `0.0.0.0` or `[::]` for all of this machine's.
    host: str = "127.0.0.1"
    # Its port; 0 takes a free one, which the `ready` line tells.
    port: Annotated[int, Field(ge=0, le=65535)] = 50051
    # Where rows are scored: `cpu`, `cuda`, `cuda:N`; `auto` takes an accelerator if there is one.
    device: str = "auto"
    # Folder of the journals and weights of all runs. Keep it: runs resume from it.
    journal: Path = Path("out/journal")
    # Processor threads of each scoring process; 0 leaves it to torch, and a launcher of several processes gives each
    # one thread.
    threads: Annotated[int, Field(ge=0)] = 0
    # Keep what every selection was picked from beside it, so that `selector-server replay` can pick again: a few KiB a
    # step, with exact gradients of the last blocks 4 bytes × large_batch_size × sketch_size.
    keep_scores: bool = True
    # Of the weights that no step needs any more, how many of the newest stay on disk, for `replay --rescore`.
    retain_weights: Annotated[int, Field(ge=0)] = 0
    # How long a scoring process may be silent, or at work without getting further, before the server stops.
    worker_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    # How long a rank without an open stream may be silent before the server works ahead of it.
    rank_lease_s: Annotated[float, Field(gt=0)] = 60.0
    # Most runs that are open at a time.
    max_runs: Positive = 16
    # Of one version of a run's weights; what its tensors take is a limit of its own.
    max_weights_bytes: Positive = 64 * 2**30
    # Who may call: a `name:token` a line, or one bare token. Without it, the environment's SUBBATCH_TOKENS.
    token_file: Path | None = None
    # Encrypt calls, and with `ca` ask callers for a certificate.
    tls: TlsConfig | None = None
    # A second, plaintext port of `host` with the gRPC health service alone, for probes that speak neither TLS nor
    # tokens, such as Kubernetes'; without it, health is asked for where everything else is.
    health_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    # Send tokenised rows to trainers without the store (client.payload): whoever may open a run can then read it.
    send_rows: bool = True
    # Listen on other than loopback addresses although calls aren't encrypted, or anybody may call.
    insecure: bool = False
    # What callers may cost at most.
    limits: LimitsConfig = LimitsConfig()
    # The server's metrics, and its web page.
    metrics: MetricsConfig = MetricsConfig()


class ClientConfig(Branch):
    """How a trainer reaches its selector: a server's address, or `inline` for selection in the training process."""

    # `host:port`, or the numbers of one server with commas between them. Or `replay`: train on the selections that an
    # earlier run recorded, whose `train.output` is `replay`.
    selector: str = "127.0.0.1:50051"
    # With selector `replay`: the earlier run's `train.output`.
    replay: Path | None = None
    # What a selection brings: `indices` of rows in this machine's copy of data.store, or `records`: the tokenised rows
    # of this rank's share themselves. data.store isn't opened then.
    payload: Literal["indices", "records"] = "indices"
    # How long to wait for a server that was never reached.
    connect_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    # How long to wait for a server that went away, or is late with a selection.
    wait_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    # How long one call may take before it is tried again.
    call_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    # When the server is away: `wait` for it, for wait_timeout_s; `fail` at once; or `sample`: go on, on the first rows
    # of each step's own draw, until it is back.
    on_unavailable: Literal["wait", "fail", "sample"] = "wait"
    # A server is away that has answered nothing for so long; one that scores isn't.
    away_after_s: Annotated[float, Field(gt=0)] = 10.0
    # Push weights as how they differ from those pushed before, compressed: for full fine-tuning over slow links. Costs
    # host memory for one more copy of what is trained, and a background thread's time.
    push_deltas: bool = False
    # The trainers' own token. Without it, the environment's SUBBATCH_TOKEN.
    token_file: Path | None = None
    # Encrypt calls: `ca` is the server's authority, certificate and key this trainer's own for mutual TLS.
    tls: TlsConfig | None = None
    # Send the token to other than loopback addresses although the call isn't encrypted.
    insecure: bool = False
    # The training job's metrics, on rank 0's host.
    metrics: MetricsConfig = MetricsConfig()

    @field_validator("selector")
    @classmethod
    def _is_address(cls, selector: str) -> str:
        if selector not in ("inline", "replay"):
            parse_target(selector)
        return selector

    @model_validator(mode="after")
    def _replay_has_a_recording(self) -> ClientConfig:
        if (self.selector == "replay") != (self.replay is not None):
            raise ValueError(
                f"selector {self.selector!r} and replay {self.replay} don't go together: give selector 'replay' and "
                "replay the train.output of an earlier run, or neither"
            )
        if self.selector in ("inline", "replay") and self.on_unavailable != "wait":
            raise ValueError(
                f"on_unavailable {self.on_unavailable!r} is for a server that may be away, selector is "
                f"{self.selector!r}: leave on_unavailable at 'wait'"
            )
        if self.payload == "records" and self.selector in ("inline", "replay"):
            raise ValueError(
                f"payload 'records' comes from a server, selector is {self.selector!r}, which reads data.store: leave "
                "payload at 'indices'"
            )
        if self.payload == "records" and self.on_unavailable == "sample":
            raise ValueError(
                "on_unavailable 'sample' draws rows from data.store while the server is away, which payload 'records' "
                "goes without: set on_unavailable to 'wait' or 'fail', or payload to 'indices'"
            )
        return self


class LoraSettings(Branch):
    """The adapter of the reference loop; any PEFT LoRA config works with the plugin."""

    # Of its matrices.
    rank: Positive = 128
    # Its update is scaled by alpha / rank.
    alpha: Annotated[float, Field(gt=0)] = 512
    # Of its input while training; scoring drops nothing.
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    # Names of the linear modules that get one, whole or their last part.
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "fc1", "fc2")


class TrainConfig(Branch):
    """The reference loop. `lora = false` trains every weight."""

    # Folder of the trained model, checkpoints and the files that tell of every step.
    output: Path = Path("out/train")
    # AdamW's, at its highest; a cosine schedule follows the warm-up.
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    # Share of num_steps that the learning rate takes to rise.
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    # AdamW's.
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    # Gradients with a larger norm are scaled down to it.
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    # Most rows of one forward and backward pass on one rank; plugins read it, too.
    micro_batch_size: Positive = 8
    # Accelerate's.
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    # Compute activations again in the backward pass instead of keeping them.
    gradient_checkpointing: bool = False
    # The new adapter, or `false` to train every weight.
    lora: LoraSettings | Literal[False] = LoraSettings()
    # `auto` leaves it to Accelerate.
    device: Literal["auto", "cpu"] = "auto"
    # Processor threads of each rank; 0 leaves it to torch.
    threads: Annotated[int, Field(ge=0)] = 0
    # Steps from one checkpoint to the next; 0: none.
    save_every: Annotated[int, Field(ge=0)] = 0
    # A checkpoint's folder, or `latest` for the newest one in `output`, if there is any.
    resume: Path | None = None
    # Steps from one held-out loss to the next; 0: at the end alone. Needs data.heldout_store.
    eval_every: Annotated[int, Field(ge=0)] = 0
    # Steps from one comparison of the sub-batch's exact gradient with the large batch's to the next; 0: never.
    gradient_check_every: Annotated[int, Field(ge=0)] = 0
    # Accelerate's trackers to log to, such as `tensorboard` or `wandb`.
    trackers: tuple[str, ...] = ()


class ExperimentConfig(Branch):
    """How `train-client experiment` runs its arms. The other branches say what is trained; the arms override them."""

    # Names of arms or groups.
    arms: tuple[str, ...] = ("main",)
    # The seeds that every arm is run with.
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 3, 4)
    # Ranks of a training job.
    num_processes: Positive = 1
    # CUDA devices of the trainers, or cores where train.device is `cpu`. Left empty, the trainers get all cores but the
    # last; of CUDA devices they see all.
    trainer_devices: tuple[int, ...] = ()
    # The selector's. Left empty, it gets the last core; of CUDA devices it sees all.
    selector_devices: tuple[int, ...] = ()
    # On cores: two arms that need no scores at a time.
    parallel: bool = True
    # What a trained model is asked, files or sets as `train-client evaluate` takes them; nothing: no accuracy.
    questions: tuple[str, ...] = ()
    # How: for a program first and reasoning where it fails, for a program alone, or for reasoning alone.
    ask: Literal["hybrid", "program", "plain"] = "plain"
    # Of one answer.
    max_new_tokens: Positive = 256
    # Large batches of the lowest seed whose rows are kept as text.
    gallery_steps: Annotated[int, Field(ge=0)] = 3


class Config(BaseSettings):
    """The whole tree. Components take a branch of it, never the tree."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        cli_prog_name="",
        cli_hide_none_type=True,
        cli_implicit_flags=True,
    )

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    selection: SelectionConfig = SelectionConfig()
    run: RunConfig = RunConfig()
    server: ServerConfig = ServerConfig()
    client: ClientConfig = ClientConfig()
    train: TrainConfig = TrainConfig()
    experiment: ExperimentConfig = ExperimentConfig()
    log: LogConfig = LogConfig()
    trace: TraceConfig = TraceConfig()


def load_config(path: Path | None, overrides: list[str] | None = None) -> Config:
    """Read the tree from a TOML file, the environment and `--branch.key VALUE` arguments.

    Relative paths in the tree are relative to the working directory, whatever gave them.

    Args:
        path: The file; None for the one that the environment's SUBBATCH_CONFIG names, if that is set.
        overrides: Arguments of a command line.

    Raises:
        ConfigError: no such file, not TOML, an unknown key (with the nearest known one), or a wrong value.
    """
    named = "" if path else os.environ.get(CONFIG_VARIABLE, "")
    path = path or (Path(named) if named else None)
    if path is not None and not path.is_file():
        origin = f", which {CONFIG_VARIABLE} names," if named else ""
        raise ConfigError(f"config file {path}{origin} does not exist: give the path of a TOML file")

    class FromFile(Config):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            cli = CliSettingsSource[Any](settings_cls, cli_parse_args=overrides or [], cli_exit_on_error=False)
            toml = TomlConfigSettingsSource(settings_cls, path) if path else init_settings
            return cli, env_settings, toml

    where = f"configuration (file {path}, environment, command line)" if path else "configuration"
    if unknown := _unknown_variables():
        raise ConfigError(f"{where}: " + "; ".join(unknown))
    try:
        return Config.model_validate(FromFile().model_dump(exclude_unset=True))
    except ValidationError as error:
        # A branch that may also be `false` gets a second error for not being it, which helps nobody.
        errors = [e for e in error.errors() if not str(e["loc"][-1]).startswith("literal[")] or error.errors()
        raise ConfigError(f"{where}: " + "; ".join(_explain(e) for e in errors)) from None
    except SettingsError as error:
        if stray := [text for text in overrides or [] if text.endswith(".toml")]:
            raise ConfigError(f"{where}: {stray[0]} stands alone: give it as --config {stray[0]}") from None
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise ConfigError(f"{where}: {error}{cause}") from None
    except ValueError as error:
        raise ConfigError(f"config file {path} is not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: some value is nested too deeply to be read: write it flat") from None


def _unknown_variables() -> list[str]:
    """Environment variables with our prefix that name no branch; pydantic-settings would ignore them without a word."""
    ours = [name.upper() for name in sorted(os.environ) if name.upper().startswith(ENV_PREFIX)]
    branches = [f"{ENV_PREFIX}{branch.upper()}{ENV_DELIMITER}" for branch in Config.model_fields]
    return [
        f"environment variable {name} names no key; known ones begin with {', '.join(branches)}"
        for name in ours
        if not name.startswith(tuple(branches)) and name not in (CONFIG_VARIABLE, TOKEN_VARIABLE, TOKENS_VARIABLE)
    ]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The branches that a field may hold: itself, or those of a union such as `TlsConfig | None`."""
    kinds = (annotation, *get_args(annotation))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _explain(error: Any) -> str:
    # In a union, pydantic puts the name of the member it tried between the keys.
    keys: list[str] = []
    models: list[type[BaseModel]] = [Config]
    for part in map(str, error["loc"]):
        if part in {model.__name__ for model in models}:
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        keys.append(part)
        known = [name for model in models for name in model.model_fields]
        models = [model for field in fields for model in _models_in(field.annotation)]
    location = ".".join(keys)
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        return f"{location}: {message} (given {error['input']!r})" if location else message
    near = difflib.get_close_matches(keys[-1], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
    return f"{location}: unknown key; {hint}"
