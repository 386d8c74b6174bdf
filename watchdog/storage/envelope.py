"""Take events of S3 out of the envelopes of SQS and SNS, and recognise messages that report no object.

The shapes are from Amazon's documentation: the event that Lambda gets from SQS and from SNS, the body that SNS posts to
an HTTP endpoint, and the test message that S3 sends when a notification is set up. If a queue is subscribed to a topic,
each message of SQS contains a message of SNS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from ..system.pattern import pattern

# The log shows a command with the topic and the token, which an operator may copy into a shell.
_TOPIC = pattern(r"arn:[\w-]{1,64}:sns:[\w-]{,64}:[\w-]{,64}:[\w.-]{1,256}", re.ASCII)
_TOKEN = pattern(r"\w{1,1024}", re.ASCII)


class Notice(msgspec.Struct, frozen=True):
    """A message that reports no object. ``advice``: what the operator has to do now, or ""."""

    text: str
    advice: str = ""


class _FromSqs(msgspec.Struct, rename="camel"):
    event_source: str
    body: str


class _Message(msgspec.Struct, rename="pascal"):
    message: str


class _FromSns(msgspec.Struct, rename="pascal"):
    event_source: str
    sns: _Message


class _Posted(msgspec.Struct, rename="pascal"):
    type: str
    topic_arn: str
    message: str
    token: str = ""


class _Test(msgspec.Struct, rename="pascal"):
    service: str
    event: str
    bucket: str


def messages(fields: Mapping[str, msgspec.Raw]) -> list[bytes]:
    """Return the messages that an event of SQS or SNS contains; none if a part of the event is missing."""
    if "Records" in fields:
        texts = [_message_of_record(raw) for raw in decoded(fields["Records"], list[msgspec.Raw]) or ()]
    else:
        posted = decoded(msgspec.json.encode(fields), _Posted) if "TopicArn" in fields else None
        texts = [posted.message if posted is not None and posted.type == "Notification" else None]
    return [text.encode() for text in texts if text is not None] if None not in texts else []


def _message_of_record(raw: msgspec.Raw) -> str | None:
    if (queued := decoded(raw, _FromSqs)) is not None and queued.event_source == "aws:sqs":
        return str(queued.body)
    if (published := decoded(raw, _FromSns)) is not None and published.event_source == "aws:sns":
        return str(published.sns.message)
    return None


def notice(fields: Mapping[str, msgspec.Raw]) -> Notice | None:
    """Return the notice that S3 or SNS sent; None if this is another text."""
    if "Event" in fields:
        test = decoded(msgspec.json.encode(fields), _Test)
        if test is not None and test.event == "s3:TestEvent":
            return Notice(f"it is the test message of S3 for the bucket {test.bucket}")
    if "TopicArn" not in fields:
        return None
    posted = decoded(msgspec.json.encode(fields), _Posted)
    if posted is None or not _TOPIC.fullmatch(posted.topic_arn) or not _TOKEN.fullmatch(posted.token):
        return None
    if posted.type == "SubscriptionConfirmation":
        return Notice(
            f"SNS asks to confirm the subscription of this service to {posted.topic_arn}",
            "if you want the subscription, confirm it: "
            f"aws sns confirm-subscription --topic-arn {posted.topic_arn} --token {posted.token}",
        )
    if posted.type == "UnsubscribeConfirmation":
        return Notice(
            f"SNS has ended the subscription of this service to {posted.topic_arn}",
            "if you did not want that, subscribe the service again",
        )
    return None


def decoded(raw: msgspec.Raw | bytes | None, kind: Any) -> Any:
    """Return the value of a JSON text; None if it is missing or of another type."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
