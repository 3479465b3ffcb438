"""The command line `selector-server`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from selector_server.reading_arguments import add_reading_arguments
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


def main() -> None:
    """Parse arguments and run one command; every error of ours is one line and an exit code other than 0."""
    parser = argparse.ArgumentParser(prog="selector-server", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    prepare = commands.add_parser("prepare", help="tokenise a data set into a store")
    prepare.add_argument(
        "source",
        nargs="+",
        help="JSON, JSONL (either also .gz or .zst) or Parquet files, folders, patterns, URLs (s3://, gs://, hf://, "
        "https://) or hub ids",
    )
    prepare.add_argument("--tokenizer", required=True, metavar="PATH", help="hub id, folder, or .gguf file")
    prepare.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write the store to")
    prepare.add_argument("--max-length", type=int, default=512, help="most tokens of a row (default %(default)s)")
    prepare.add_argument("--num-proc", type=int, help="processes to tokenise with (default: this one, on all cores)")
    add_reading_arguments(prepare)
    prepare.add_argument("--overwrite", action="store_true", help="replace a store that is there already")

    serve = commands.add_parser("serve", help="select sub-batches for trainers")
    add_dry_run_argument(serve)
    add_config_argument(serve)

    status = commands.add_parser("status", help="show what a running server is doing")
    status.add_argument("--json", action="store_true", help="print JSON, with the newest steps")
    add_config_argument(status)

    health = commands.add_parser("health", help="exit with 0 if the server of this configuration serves")
    add_config_argument(health)

    top = commands.add_parser("top", help="show what a running server is doing, and keep showing it")
    top.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between looks (default 1)")
    add_config_argument(top)

    doctor = commands.add_parser("doctor", help="look for what would keep a server from serving, and say what to do")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    add_config_argument(doctor)

    journal = commands.add_parser("journal", help="list, verify or export the runs in a journal folder")
    journal.add_argument("action", choices=["list", "verify", "export"])
    journal.add_argument("runs", nargs="*", metavar="RUN", help="names of runs (default: all)")
    journal.add_argument("--out", type=Path, metavar="FILE", help="export: the Parquet file, a line per picked row")
    add_config_argument(journal)

    replay = commands.add_parser("replay", help="compute a run's selections again and compare them, offline")
    replay.add_argument("run", metavar="RUN", help="its name")
    replay.add_argument("--from-step", type=int, default=0, metavar="N", help="first step (default %(default)s)")
    replay.add_argument("--to-step", type=int, metavar="M", help="last step (default: the last that is selected)")
    replay.add_argument("--rescore", action="store_true", help="score again, too, where the weights are kept")
    replay.add_argument("--json", action="store_true", help="print JSON, with every step")
    add_config_argument(replay)

    metrics = commands.add_parser("metrics", help="list every metric of a server, by name")
    add_metrics_arguments(metrics)

    certs = commands.add_parser("certs", help="make a development CA and certificates for mutual TLS")
    certs.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write the files to")
    certs.add_argument(
        "--host", action="append", default=[], metavar="NAME", help="a name or address of the server (may be repeated)"
    )
    certs.add_argument("--days", type=int, default=30, help="how long they are valid (default %(default)s)")

    completion = commands.add_parser("completion", help="print a script by which a shell completes this command")
    add_completion_argument(completion, of=parser)

    bench = commands.add_parser("bench", help="measure this machine: speed, or how well sub-batches match")
    bench.add_argument(
        "name",
        choices=["scoring", "facility-location", "gradient-match", "overhead", "subscribers", "telemetry", "store"],
    )
    bench.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for result.json and the picture")
    bench.add_argument("--quick", action="store_true", help="under five minutes on two cores")
    bench.add_argument(
        "--rows", type=int, metavar="N", help="store: rows of the large store (default 10,000,000; 1,000,000 if quick)"
    )
    bench.add_argument(
        "--config", type=Path, metavar="FILE", help="gradient-match: this model and store; overhead: this token and TLS"
    )

    arguments, rest = parser.parse_known_args()
    for name, command in (("prepare", prepare), ("certs", certs), ("metrics", metrics), ("completion", completion)):
        if arguments.command == name and rest:
            command.error(f"unknown arguments: {' '.join(rest)}")
    refused = EXIT_USAGE if getattr(arguments, "dry_run", False) else EXIT_ERROR
    sys.exit(run_command(lambda: _COMMANDS[arguments.command](arguments, rest), refused=refused))


def _prepare(arguments: argparse.Namespace, _rest: list[str]) -> None:
    from selector_server.prepare import prepare, print_summary
    from selector_server.reading_arguments import read_chat_template, read_reading

    manifest = prepare(
        arguments.source,
        tokenizer=arguments.tokenizer,
        out=arguments.out,
        max_length=arguments.max_length,
        reading=read_reading(arguments),
        chat_template=read_chat_template(arguments),
        num_proc=arguments.num_proc,
        overwrite=arguments.overwrite,
    )
    print_summary(manifest, make_console())


def _serve(arguments: argparse.Namespace, rest: list[str]) -> None:
    if arguments.dry_run:
        from selector_server.dry_run import plan_serving

        dry_run(arguments, rest, plan_serving)
        return
    config = read_config(arguments, rest)  # before the seconds that torch takes to import
    from selector_server.scale_out.launch import launch

    launch(config, on_ready=lambda address: print(f"selector-server ready on {address}", flush=True))


def _status(arguments: argparse.Namespace, rest: list[str]) -> None:
    from selector_server.live.ask import as_json, ask
    from selector_server.live.status import status_view

    client = read_config(arguments, rest).client
    runs = ask(client)
    if arguments.json:
        print(as_json(runs))
    else:
        make_console().print(status_view(client.selector, runs))


def _top(arguments: argparse.Namespace, rest: list[str]) -> None:
    from selector_server.live.ask import ask
    from selector_server.live.top import top

    client = read_config(arguments, rest).client
    top(make_console(), client.selector, lambda: ask(client), every_s=max(0.1, arguments.every))


def _health(arguments: argparse.Namespace, rest: list[str]) -> None:
    from selector_server.probes import require_serving

    print(f"{require_serving(read_config(arguments, rest))} serves")


def _doctor(arguments: argparse.Namespace, rest: list[str]) -> None:
    from selector_server.doctor import run_doctor

    run_doctor(lambda: read_config(arguments, rest), make_console(), as_json=arguments.json)


def _journal(arguments: argparse.Namespace, rest: list[str]) -> None:
    from selector_server.journal.command import run_journal

    folder = read_config(arguments, rest).server.journal
    run_journal(arguments.action, folder, arguments.runs, arguments.out, make_console())


def _replay(arguments: argparse.Namespace, rest: list[str]) -> None:
    from selector_server.replay.command import run_replay

    run_replay(
        arguments.run,
        read_config(arguments, rest),
        from_step=arguments.from_step,
        to_step=arguments.to_step,
        rescore=arguments.rescore,
        as_json=arguments.json,
        console=make_console(),
    )


def _metrics(arguments: argparse.Namespace, _rest: list[str]) -> None:
    from selector_server.metrics import METRICS

    print_metrics(METRICS, make_console(), as_json=arguments.json)


def _certs(arguments: argparse.Namespace, _rest: list[str]) -> None:
    from datetime import datetime, timezone

    from selector_server.security.certs import make_certificates, next_steps

    written = make_certificates(arguments.out, arguments.host, days=arguments.days, now=datetime.now(timezone.utc))
    print(f"wrote {', '.join(map(str, written))}, valid for {arguments.days} days")
    print(next_steps(arguments.out))


def _bench(arguments: argparse.Namespace, rest: list[str]) -> None:
    from selector_server.bench.paired import make_folder

    on_own_model = arguments.config is not None or rest
    if on_own_model and arguments.name not in ("gradient-match", "overhead"):
        raise ConfigError(
            f"bench {arguments.name} takes no configuration (given {arguments.config} {rest}): leave it out"
        )
    if arguments.rows is not None and arguments.name != "store":
        raise ConfigError(f"bench {arguments.name} has no --rows (given {arguments.rows}): leave it out")
    settings: dict[str, Any] = {"config": read_config(arguments, rest)} if on_own_model else {}
    if arguments.rows is not None:
        settings["rows"] = arguments.rows
    module = import_module(f"selector_server.bench.{arguments.name.replace('-', '_')}")
    make_folder(arguments.out)
    console = make_console()
    module.run(out=arguments.out, quick=arguments.quick, console=console, **settings)
    console.print(f"result.json and the picture are in {arguments.out}")


_COMMANDS = {
    "prepare": _prepare,
    "serve": _serve,
    "status": _status,
    "health": _health,
    "doctor": _doctor,
    "top": _top,
    "journal": _journal,
    "replay": _replay,
    "metrics": _metrics,
    "completion": print_completion,
    "certs": _certs,
    "bench": _bench,
}

if __name__ == "__main__":
    main()
