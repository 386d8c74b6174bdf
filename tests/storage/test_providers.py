"""The storages in a service definition: providers, credentials, inputs and outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from watchdog.settings import service_definition, storage_providers
from watchdog.settings.storage_providers import Storages

MINIO = {"endpoint": "https://minio:9000", "access_key": "AKEY", "secret_key": "s3cr3t"}


def read(
    secrets_dir: Path | str = "/nonexistent", *, defined: Any = None, **entries: Any
) -> tuple[Storages, list[str], list[str]]:
    """``entries``: ``input`` and ``output``; a text is a reference to a provider with the path ``bucket/in``."""
    lists = {
        name: [{"storage_provider": each, "path": "bucket/in"} if isinstance(each, str) else each for each in value]
        for name, value in entries.items()
    }
    text = json.dumps({"name": "x", "storage_providers": defined, **lists})
    parsed = service_definition.parse(text.encode(), "here")
    assert parsed.service is not None, parsed.problems
    return storage_providers.read(parsed.service, str(secrets_dir))


def problem_of(**given: Any) -> str:
    _, problems, _ = read(**given)
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize("named", ["minio.default", "minio", "MinIO.default", "default"])
@pytest.mark.parametrize("identifier", ["default", "minio.default"])
def test_both_spellings_of_an_id(named: str, identifier: str) -> None:
    storages, problems, warnings = read(defined={"minio": {identifier: MINIO}}, output=[named])
    assert (problems, warnings) == ([], [])
    assert [place.provider for place in storages.outputs] == ["minio.default"]
    assert storages.providers["minio.default"].secret == "s3cr3t"


def test_all_kinds() -> None:
    defined = {
        "minio": {"default": MINIO | {"region": "eu-west-1", "verify": "false"}},
        "s3": {"aws": {"access_key": "A", "secret_key": "B", "region": "eu-south-2"}},
        "webdav": {"dcache": {"hostname": "dcache.example.org:2880/data/", "login": "me", "password": "pw"}},
        "onedata": {"one": {"oneprovider_host": "one.example.org", "token": "T", "space": "/plants/"}},
    }
    storages, problems, warnings = read(
        defined=defined, output=["minio.default", "s3.aws", "webdav.dcache", "onedata.one"]
    )
    assert (problems, warnings) == ([], [])
    found = storages.providers
    assert [provider.endpoint for provider in found.values()] == [
        "https://minio:9000",
        "",
        "https://dcache.example.org:2880/data",
        "https://one.example.org",
    ]
    assert not found["minio.default"].verify
    assert found["s3.aws"].verify
    assert (found["webdav.dcache"].user, found["webdav.dcache"].secret) == ("me", "pw")
    assert (found["onedata.one"].secret, found["onedata.one"].space) == ("T", "plants")


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"access_key": None}, "access_key is missing"),
        ({"secret_key": ""}, "secret_key is missing"),
        ({"access_key": "", "secret_key": " "}, "access_key and secret_key are missing"),
        ({"endpoint": ""}, "endpoint is missing; expected https://host"),
        ({"endpoint": "minio:9000"}, "not the address of a server"),
        ({"endpoint": "https://me:pw@minio"}, "not the address of a server"),
        ({"endpoint": "https://minio/path"}, "not the address of a server"),
        ({"endpoint": "https://minio:99999"}, "is not a URL"),
        ({"verify": "/etc/ca.pem"}, "expected true or false (set a file of certificates as ca_file)"),
        ({"ca_file": "/no/such/file"}, "'/no/such/file', which cannot be read: No such file"),
        ({"ca_file": "/etc/passwd"}, "which has no certificate"),
        ({"secret_key": {"a": "b"}}, "is not text"),
        ({"access_key": "two\nlines"}, "access_key has a line break or another control character (not shown)"),
        ({"secret_key": "s3cr3t\tcolumn"}, "secret_key has a line break or another control character (not shown)"),
        ({"region": "eu\r\nX-Header: 1"}, "region has a line break or another control character (not shown)"),
    ],
)
def test_incomplete_providers_are_problems_where_they_are_used(fields: dict[str, Any], part: str) -> None:
    problem = problem_of(defined={"minio": {"default": MINIO | fields}}, output=["minio.default"])
    assert problem.startswith("output[0]: storage_providers.minio.default")
    assert part in problem
    assert "s3cr3t" not in problem
    assert "pw@" not in problem


def test_a_token_of_several_lines_is_a_problem() -> None:
    """The program cannot send it, because a header is one line."""
    fields = {"oneprovider_host": "one.example.org", "token": "MDAx\nc2Vj", "space": "plants"}
    problem = problem_of(defined={"onedata": {"one": fields}}, output=["onedata.one"])
    assert "storage_providers.onedata.one.token has a line break" in problem
    assert "MDAx" not in problem


def test_providers_that_are_not_used_may_be_incomplete() -> None:
    storages, problems, _ = read(defined={"minio": {"default": MINIO, "other": {}}}, output=["minio.default"])
    assert problems == []
    assert storages.providers.keys() == {"minio.default"}
    assert "minio.other" in storages.unusable


@pytest.mark.parametrize(
    ("named", "part"),
    [
        ("minio.other", "storage_providers.minio has no 'other'; it has: minio.default"),
        ("s3.default", "storage_providers.s3 has no 'default'; it has: none"),
        ("gcs.default", "expected KIND.ID with a kind of minio, s3, webdav, onedata"),
        ("rucio.default", "keep faas-supervisor for this service"),
    ],
)
def test_references_that_lead_nowhere(named: str, part: str) -> None:
    problem = problem_of(defined={"minio": {"default": MINIO}}, input=[named])
    assert problem.startswith(f"input[0].storage_provider is '{named}': ")
    assert part in problem


def test_one_provider_in_two_spellings_is_reported_once() -> None:
    problem = problem_of(defined={}, input=["minio.default"], output=["minio", "MinIO.default"])
    assert problem.startswith("input[0].storage_provider is 'minio.default': ")
    assert problem.endswith("(also output[0], output[1])")


def test_an_id_that_two_kinds_have_needs_its_kind() -> None:
    defined = {"minio": {"one": MINIO}, "s3": {"one": MINIO}}
    assert "minio and s3 each have it" in problem_of(defined=defined, output=["one"])


@pytest.mark.parametrize("path", ["", "/", "a//b", "a/../b", "./a"])
def test_paths_of_buckets(path: str) -> None:
    entry = {"storage_provider": "minio.default", "path": path}
    assert "output[0].path is" in problem_of(defined={"minio": {"default": MINIO}}, output=[entry])


@pytest.mark.parametrize(
    ("provider", "given", "output", "warns"),
    [
        ("minio.default", "bucket/in", "bucket/in", True),
        ("minio.default", "bucket/in", "/bucket/in/results/", True),
        ("minio.default", "bucket", "bucket/out", True),
        ("onedata.one", "", "out", True),
        ("webdav.dcache", "in", "in", True),
        ("webdav.dcache", "in", "in/results", False),
        ("minio.default", "bucket/in", "bucket/out", False),
        ("minio.default", "bucket/in", "bucket/inner", False),
        ("minio.default", "bucket/in", "other/in", False),
        ("minio.default", "bucket/in", "bucket", False),
    ],
)
def test_an_output_that_lies_in_an_input_is_a_warning(provider: str, given: str, output: str, warns: bool) -> None:
    defined = {
        "minio": {"default": MINIO, "other": MINIO},
        "webdav": {"dcache": {"hostname": "dcache.example.org"}},
        "onedata": {"one": {"oneprovider_host": "one.example.org", "token": "T", "space": "plants"}},
    }
    entries = [{"storage_provider": provider, "path": path} for path in (given, output)]
    elsewhere = {"storage_provider": "minio.other", "path": "bucket/out"}
    _, problems, warnings = read(defined=defined, input=entries[:1], output=[elsewhere, entries[1]])
    assert problems == []
    assert len(warnings) == warns
    if warns:
        assert warnings[0].startswith("output[1] (")
        assert "lies in an input (" in warnings[0]


def test_a_second_webdav_input_is_a_warning() -> None:
    """Its files are never found, because an event of dCache has no directory."""
    defined = {"minio": {"default": MINIO}, "webdav": {"a": {"hostname": "a.example"}, "b": {"hostname": "b.example"}}}
    named = ["minio.default", "webdav.a", "minio.default", "webdav.b"]
    _, problems, warnings = read(defined=defined, input=named)
    assert problems == []
    (warning,) = warnings
    assert warning.startswith("input[3] (webdav.b:bucket/in) is not used")
    assert "in the first WebDAV input, input[1] (webdav.a:bucket/in);" in warning
    assert read(defined=defined, input=named[:3])[2] == []


def test_rucio_and_unknown_kinds_are_reported() -> None:
    _, problems, warnings = read(defined={"rucio": {"x": {}}, "gcs": {"y": {}}, "s3": None})
    assert problems == []
    assert any("rucio is not offered" in line and "copy them to S3 or WebDAV" in line for line in warnings)
    assert any("gcs is not offered" in line for line in warnings)


# Files that the platform mounts


def mount(directory: Path, **keys: str) -> None:
    (directory / "minio.default").mkdir()
    for name, value in keys.items():
        (directory / "minio.default" / name).write_text(value)


@pytest.mark.parametrize("keys", [("hidden", "hidden"), ("old", "older"), ("", "")])
def test_mounted_keys_win(tmp_path: Path, keys: tuple[str, str]) -> None:
    mount(tmp_path, accessKey="MOUNTED\n", secretKey="true secret\n")
    defined = {"minio": {"default": MINIO | {"access_key": keys[0], "secret_key": keys[1]}}}
    storages, problems, _ = read(tmp_path, defined=defined, output=["minio.default"])
    assert problems == []
    provider = storages.providers["minio.default"]
    assert (provider.user, provider.secret) == ("MOUNTED", "true secret")


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"accessKey": "A"}, "secretKey is missing"),
        ({"accessKey": "A", "secretKey": "\n"}, "secretKey is empty"),
        ({"accessKey": "A", "secretKey": "two\nlines"}, "secretKey has a line break or another control character"),
    ],
)
def test_a_mounted_secret_that_is_not_whole(tmp_path: Path, keys: dict[str, str], part: str) -> None:
    mount(tmp_path, **keys)
    problem = problem_of(secrets_dir=tmp_path, defined={"minio": {"default": MINIO}}, output=["minio.default"])
    assert part in problem


def test_keys_that_the_platform_withholds() -> None:
    """In OSCAR's synchronous services, the definition has no fault, so this is a warning and not a problem."""
    hidden = MINIO | {"access_key": "hidden", "secret_key": "hidden"}
    storages, problems, _ = read(defined={"minio": {"default": hidden}}, input=["minio"], output=["minio"])
    assert problems == []
    assert len(storages.inputs) == len(storages.outputs) == 1
    lines = storages.withheld()
    assert [line.split()[0] for line in lines] == ["input", "output"]
    assert all("the platform withholds the keys of minio.default" in line for line in lines)


def test_no_credential_is_shown() -> None:
    storages, _, _ = read(defined={"minio": {"default": MINIO}}, output=["minio"])
    shown = repr(storages) + repr(storages.providers["minio.default"]) + str(storages.providers["minio.default"])
    assert "s3cr3t" not in shown
    assert "AKEY" not in shown


def test_prefix_and_suffix() -> None:
    entry = {"storage_provider": "minio", "path": "b", "prefix": ["out/", "res"], "suffix": [".png", ".jpg"]}
    storages, _, _ = read(defined={"minio": {"default": MINIO}}, output=[entry])
    (place,) = storages.outputs
    assert [name for name in ("out/a.png", "res.jpg", "a.png", "res.txt", "out/res.txt") if place.takes(name)] == [
        "out/a.png",
        "res.jpg",
    ]


def test_a_document_of_oscars_examples_is_explained() -> None:
    """These documents name a provider that only OSCAR knows, more than once."""
    problem = problem_of(input=["minio.default"], output=["minio.default", "minio.default"])
    assert problem.startswith("input[0].storage_provider is 'minio.default': ")
    assert "OSCAR adds this provider when" in problem
    assert problem.endswith(" (also output[0], output[1])")
    assert "OSCAR adds this provider when" in problem_of(defined={"s3": {"aws": MINIO}}, input=["minio"])
    assert "OSCAR adds" not in problem_of(defined={"minio": {"other": MINIO}}, input=["minio.third"])


def test_a_fault_of_a_provider_is_reported_once() -> None:
    problem = problem_of(defined={"s3": {"aws": {}}}, input=["s3.aws"], output=["s3.aws"])
    assert problem.startswith("input[0]: storage_providers.s3.aws.access_key")
    assert problem.endswith(" (also output[0])")


def test_what_names_a_provider_of_a_kind_that_cannot_be_read_is_not_reported_too() -> None:
    problem = problem_of(defined={"minio": "text"}, input=["minio.default"], output=["minio"])
    assert problem.startswith("storage_providers.minio is not an object")
