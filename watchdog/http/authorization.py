"""The token that calls must carry, if there is one."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..errors import TooManyWrongTokens, Unauthorized
from ..settings.declarations import Settings
from .health import Health
from .request import is_token
from .wrong_tokens import WrongTokens


class Authorization:
    """Checks the token of requests.

    Args:
        health: while the server drains, no answer is delayed.
    """

    def __init__(self, settings: Settings, health: Health) -> None:
        self._token = settings.auth_token
        self._is_for_all = settings.auth_all
        self._health = health
        self._wrong_tokens = WrongTokens()

    async def check(self, request: web.BaseRequest) -> None:
        """Check the token of a call, if calls must carry one.

        Raises:
            Unauthorized: it is missing or wrong. Callers learn that a token is wrong at a limited rate.
        """
        if self._token is None:
            return
        given = request.headers.get("Authorization")
        if given is not None:
            if is_token(given, self._token):
                return
            wait_s = 0.0 if self._health.is_draining else self._wrong_tokens.wait_s(asyncio.get_running_loop().time())
            if wait_s is None:
                raise TooManyWrongTokens("the token is wrong, as those of many other calls; send the right token")
            if wait_s:
                await asyncio.sleep(wait_s)
        raise Unauthorized("this server wants its token: Authorization: Bearer TOKEN")

    async def check_reader(self, request: web.BaseRequest) -> None:
        """Check the token of a request for the description or the metrics, if these need it.

        Raises:
            Unauthorized: it is missing or wrong.
        """
        if self._is_for_all:
            await self.check(request)
