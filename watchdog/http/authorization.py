"""Check the token of calls, if the server has a token."""

from __future__ import annotations

import asyncio

from ..errors import TooManyWrongTokens, Unauthorized
from ..settings.declarations import Settings
from .health import Health
from .http_message import Request
from .request import is_token
from .wrong_tokens import WrongTokens


class Authorization:
    """Checks the token of requests.

    Args:
        health: says whether the server drains. During a drain no answer is delayed.
    """

    def __init__(self, settings: Settings, health: Health) -> None:
        self._token = settings.auth_token
        self._is_for_all = settings.auth_all
        self._health = health
        self._wrong_tokens = WrongTokens()

    async def check(self, request: Request) -> None:
        """Check the token of a call, if the server has a token. The answer to a wrong token may be delayed.

        Raises:
            Unauthorized: the token is missing or wrong.
            TooManyWrongTokens: the token is wrong, and the answers to many other wrong tokens are being delayed.
        """
        if self._token is None:
            return
        given = request.headers.get("Authorization")
        if given is not None:
            if is_token(given, self._token):
                return
            wait_s = 0.0 if self._health.is_draining else self._wrong_tokens.wait_s(asyncio.get_running_loop().time())
            if wait_s is None:
                raise TooManyWrongTokens(
                    "the token is wrong, and many other calls have a wrong token, too; send the right token"
                )
            if wait_s:
                await asyncio.sleep(wait_s)
        raise Unauthorized("the token is missing or wrong; send the header Authorization: Bearer TOKEN")

    async def check_reader(self, request: Request) -> None:
        """Check the token of a request for the description or the metrics, if ``auth_all`` is set.

        Raises:
            Unauthorized: the token is missing or wrong.
        """
        if self._is_for_all:
            await self.check(request)
