"""Events as platforms send them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_plus

TIME = "2026-01-02T03:04:05.678Z"


CREATED = "s3:ObjectCreated:Put"


def record(location: str, source: str = "minio:s3", name: Any = CREATED, **about: Any) -> dict[str, Any]:
    """Return a record. ``location``: bucket and key; ``name``: that of the event; ``about``: more about the object."""
    bucket, _, key = location.partition("/")
    named = {} if name is None else {"eventName": name}
    return named | {
        "eventVersion": "2.0",
        "eventSource": source,
        "awsRegion": "",
        "eventTime": TIME,
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "Config",
            "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
            "object": {"key": key if source == "ceph:s3" else quote_plus(key), "size": 1} | about,
        },
    }


def event(*locations: str, source: str = "minio:s3", name: str | None = CREATED, **about: Any) -> bytes:
    """Return an event with a record for each location."""
    document: dict[str, Any] = {"Records": [record(location, source, name, **about) for location in locations]}
    if source == "minio:s3":
        document = {"EventName": name, "Key": locations[0]} | document
    return json.dumps(document).encode()


def event_of(*records: dict[str, Any]) -> bytes:
    """Return an event with these records."""
    return json.dumps({"Records": records}).encode()


def delegated(inner: bytes, provider: str = "minio.default") -> bytes:
    """Return the event as another OSCAR cluster sends it."""
    return json.dumps({"storage_provider": provider, "event": inner.decode()}).encode()


def event_bridge(location: str, kind: str = "Object Created", **about: Any) -> bytes:
    """Return an event as Amazon documents it. ``about``: more about the object."""
    bucket, _, key = location.partition("/")
    document = {
        "version": "0",
        "id": "17793124-05d4-b198-2fde-7ededc63b103",
        "detail-type": kind,
        "source": "aws.s3",
        "account": "111122223333",
        "time": TIME,
        "region": "ca-central-1",
        "resources": [f"arn:aws:s3:::{bucket}"],
        "detail": {
            "version": "0",
            "bucket": {"name": bucket},
            "object": {"key": key, "size": 5, "etag": "b1946ac92492d2347c6235b4d2611184", "sequencer": "0"} | about,
            "request-id": "N4N7GDK58NMKJ12R",
            "reason": "PutObject",
        },
    }
    return json.dumps(document).encode()


TOPIC = "arn:aws:sns:us-west-2:123456789012:MyTopic"


def posted_by_sns(message: bytes, kind: str = "Notification", **more: str) -> bytes:
    """Return the body that SNS posts to an HTTP endpoint."""
    document = {
        "Type": kind,
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": TOPIC,
        "Subject": "Amazon S3 Notification",
        "Message": message.decode(),
        "Timestamp": TIME,
        "SignatureVersion": "1",
        "Signature": "c2ln",
        "SigningCertURL": "https://sns.us-west-2.amazonaws.com/cert.pem",
    }
    return json.dumps(document | more).encode()


def lambda_of_sns(*messages: bytes) -> bytes:
    """Return the event that Lambda gets from SNS."""
    records = [
        {
            "EventSource": "aws:sns",
            "EventVersion": "1.0",
            "EventSubscriptionArn": f"{TOPIC}:1",
            "Sns": json.loads(posted_by_sns(message)),
        }
        for message in messages
    ]
    return event_of(*records)


def lambda_of_sqs(*messages: bytes) -> bytes:
    """Return the event that Lambda gets from SQS."""
    records = [
        {
            "messageId": f"{number}",
            "receiptHandle": "AQEB",
            "body": message.decode(),
            "attributes": {"ApproximateReceiveCount": "1"},
            "messageAttributes": {},
            "md5OfBody": "7b270e59b47ff90a553787216d55d91d",
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:us-east-2:123456789012:my-queue",
            "awsRegion": "us-east-2",
        }
        for number, message in enumerate(messages)
    ]
    return event_of(*records)


# The message that S3 sends when a notification is set up.
TEST_EVENT = json.dumps(
    {
        "Service": "Amazon S3",
        "Event": "s3:TestEvent",
        "Time": TIME,
        "Bucket": "bucket",
        "RequestId": "5582815E1AEA5ADF",
        "HostId": "8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR",
    }
).encode()
CONFIRMATION = posted_by_sns(
    b"You have chosen to subscribe to the topic.",
    "SubscriptionConfirmation",
    Token="2336412f37fb687f5d51e6e241d09c8058323f60b964268bf",
    SubscribeURL="https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription",
)
