"""The interceptor that asks every call for its bearer token; only a health check, which ends at once, needs none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from selector_server.answering import refuse
from selector_server.security.caller import Caller, set_caller
from shared.errors import UnauthenticatedError
from shared.tokens import TokenFile
from shared.transport import TOKEN_KEY, TOKEN_PREFIX

_OPEN_TO_ALL = "/grpc.health.v1.Health/Check"


class Authenticator(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC ships no types
    """Lets through only calls with a token that is known, and notes whose it is."""

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        """Check a call's metadata before its method runs and before its message is read."""
        if details.method == _OPEN_TO_ALL:
            return await continuation(details)
        given = dict(details.invocation_metadata).get(TOKEN_KEY, "")
        owner = self._tokens.owner(given.removeprefix(TOKEN_PREFIX)) if isinstance(given, str) else ""
        if owner:
            set_caller(Caller(owner))
            return await continuation(details)
        handler = await continuation(details)
        if handler is None:
            return None
        error = UnauthenticatedError(
            f"{'wrong' if given else 'missing'} bearer token: set client.token_file to a file with the token that the "
            "server's token_file has for you"
        )

        async def answer(_request: Any, context: grpc.aio.ServicerContext) -> None:
            await refuse(context, details.method, error)

        async def answer_stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            await answer(request, context)
            yield None

        return handler._replace(
            unary_unary=answer if handler.unary_unary else None,
            stream_unary=answer if handler.stream_unary else None,
            unary_stream=answer_stream if handler.unary_stream else None,
            stream_stream=answer_stream if handler.stream_stream else None,
        )
