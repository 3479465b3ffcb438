"""The command line `train-client`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from shared.cli import (
    EXIT_ERROR,
    EXIT_USAGE,
    add_completion_argument,
    add_config_argument,
    add_dry_run_argument,
    dry_run,
    make_console,
    print_completion,
    read_config,
    run_command,
)
from shared.errors import ConfigError
from shared.metric_list import add_metrics_arguments, print_metrics
from train_client.bench.arguments import add_arguments as add_bench_arguments
from train_client.evaluate.arguments import add_arguments as add_evaluate_arguments
from train_client.experiment.arguments import add_arguments as add_experiment_arguments
from train_client.plan.arguments import add_arguments as add_plan_arguments

_FEWEST_STEPS = 5


def main() -> None:
    """Parse arguments and run one command; every error of ours is one line and an exit code other than 0."""
    parser = argparse.ArgumentParser(prog="train-client", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train on sub-batches; start it with accelerate launch or torchrun")
    add_dry_run_argument(train)
    train.add_argument(
        "--measured", type=Path, metavar="DIR", help="--dry-run: predict waits from this --out of `bench overlap`"
    )
    add_config_argument(train)

    doctor = commands.add_parser("doctor", help="look for what would keep a job from training, and say what to do")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    add_config_argument(doctor)

    demo = commands.add_parser("demo", help="the whole product on this machine, without network or GPU")
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for results (default %(default)s)")
    demo.add_argument("--steps", type=int, default=60, help="steps of each arm (default %(default)s)")
    demo.add_argument("--inputs-only", action="store_true", help="make model, data and run.toml, and stop")

    experiment = commands.add_parser("experiment", help="the paper's experiments: arms compared over seeds")
    add_experiment_arguments(experiment)

    evaluate = commands.add_parser("evaluate", help="exact match on sets of questions; programs run in a sandbox")
    add_evaluate_arguments(evaluate)

    bench = commands.add_parser("bench", help="measure this machine: what selection and pushes cost the trainers")
    add_bench_arguments(bench)

    plan = commands.add_parser("plan", help="what a layout of trainers and selectors will take, before it is paid for")
    add_plan_arguments(plan)

    report = commands.add_parser("report", help="an experiment's results as one HTML page that needs nothing else")
    report.add_argument("folder", type=Path, metavar="DIR", help="the experiment's --out folder")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page (default DIR/report.html)")

    metrics = commands.add_parser("metrics", help="list every metric of a training job, by name")
    add_metrics_arguments(metrics)

    completion = commands.add_parser("completion", help="print a script by which a shell completes this command")
    add_completion_argument(completion, of=parser)

    arguments, rest = parser.parse_known_args()
    for name, command in (
        ("report", report),
        ("demo", demo),
        ("plan", plan),
        ("metrics", metrics),
        ("completion", completion),
    ):
        if arguments.command == name and rest:
            command.error(f"unknown arguments: {' '.join(rest)}")
    if arguments.command == "demo" and arguments.steps < _FEWEST_STEPS:
        demo.error(f"--steps {arguments.steps} is too few to compare anything: give at least {_FEWEST_STEPS}")
    refused = EXIT_USAGE if getattr(arguments, "dry_run", False) else EXIT_ERROR
    sys.exit(run_command(lambda: _COMMANDS[arguments.command](arguments, rest), refused=refused))


def _train(arguments: argparse.Namespace, rest: list[str]) -> None:
    if arguments.dry_run:
        from train_client.dry_run import plan_training

        dry_run(arguments, rest, partial(plan_training, measured=arguments.measured))
        return
    if arguments.measured:
        raise ConfigError(f"--measured {arguments.measured} is for --dry-run: leave it out, or add --dry-run")
    config = read_config(arguments, rest)  # before the seconds that torch takes to import
    from train_client.train import train

    train(config)


def _doctor(arguments: argparse.Namespace, rest: list[str]) -> None:
    from train_client.doctor import run_doctor

    run_doctor(lambda: read_config(arguments, rest), make_console(), as_json=arguments.json)


def _demo(arguments: argparse.Namespace, _rest: list[str]) -> None:
    from train_client.demo.run import run_demo

    run_demo(arguments.out, steps=arguments.steps, inputs_only=arguments.inputs_only)


def _experiment(arguments: argparse.Namespace, rest: list[str]) -> None:
    from train_client.experiment.command import run_experiment

    run_experiment(arguments, rest)


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> None:
    from train_client.evaluate.command import run_evaluate

    run_evaluate(arguments, rest)


def _bench(arguments: argparse.Namespace, rest: list[str]) -> None:
    from train_client.bench.command import run_bench

    run_bench(arguments, rest)


def _plan(arguments: argparse.Namespace, _rest: list[str]) -> None:
    from train_client.plan.command import run_plan

    run_plan(arguments)


def _report(arguments: argparse.Namespace, _rest: list[str]) -> None:
    from train_client.report.command import run_report

    run_report(arguments.folder, arguments.out)


def _metrics(arguments: argparse.Namespace, _rest: list[str]) -> None:
    from train_client.metrics import METRICS

    print_metrics(METRICS, make_console(), as_json=arguments.json)


_COMMANDS = {
    "train": _train,
    "doctor": _doctor,
    "demo": _demo,
    "experiment": _experiment,
    "evaluate": _evaluate,
    "bench": _bench,
    "plan": _plan,
    "report": _report,
    "metrics": _metrics,
    "completion": print_completion,
}

if __name__ == "__main__":
    main()
