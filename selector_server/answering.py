"""How a call is answered when it is refused: an error of ours becomes its status, and a line in the log."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from selector_server.security.caller import current_caller
from shared.errors import SubbatchError, WireError, to_status

logger = logging.getLogger(__name__)

# By method and status, how many calls this process has refused. Methods that don't exist never get here.
REFUSED: Counter[tuple[str, str]] = Counter()


def unary(method: Callable[..., Any]) -> Callable[..., Any]:
    """Answer an error of ours with its status."""

    @functools.wraps(method)
    async def guarded(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(self, request, context)
        except DecodeError as error:  # in the middle of what a client streams
            await refuse(context, method.__name__, WireError(f"a message is no protobuf of its kind: {error}"))
        except SubbatchError as error:
            await refuse(context, method.__name__, error)

    return guarded


def stream(method: Callable[..., Any]) -> Callable[..., Any]:
    """Answer an error of ours with its status, in a method that yields."""

    @functools.wraps(method)
    async def guarded(self: Any, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            async with contextlib.aclosing(method(self, request, context)) as messages:
                async for message in messages:
                    yield message
        except SubbatchError as error:
            await refuse(context, method.__name__, error)

    return guarded


async def refuse(context: grpc.aio.ServicerContext, method: str, error: SubbatchError) -> None:
    """End a call with an error's status; raises what gRPC ends calls with."""
    code, message, metadata = to_status(error)
    REFUSED[method.rpartition("/")[2], code.name] += 1
    # What a caller sent may be in the message, and must not begin a line of its own in the log.
    logger.warning(
        "%s from %s%s refused: %s: %s",
        method, context.peer(), f" ({name})" if (name := current_caller().name) else "", code.name,
        "".join(c if c.isprintable() else repr(c)[1:-1] for c in message),
    )  # fmt: skip
    await context.abort(code, message, metadata)
