from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchdog.settings.service_definition import Parsed, ServiceDefinition, StoragePath, holds_secrets, parse

ORIGIN = "/oscar/config/function_config.yaml"

# Every field of OSCAR's Service in YAML, as its manager writes it (`pkg/types/service.go`, `ToYAML`). The keys are
# those of JSON. `script` is missing, because it has a separate file, and secrets are empty.
MOUNTED = (Path(__file__).parent / "contract" / "oscar_function_config.yaml").read_bytes()

WHOLE = b"""
functions:
  oscar:
  - my-cluster:
      name: plants
      script: plants.sh
      storage_providers: {webdav: {dcache: {hostname: b}}}
storage_providers:
  s3: {aws: {access_key: a}}
clusters: {my-cluster: {endpoint: x}}
"""


def read(text: bytes) -> ServiceDefinition:
    parsed = parse(text, ORIGIN)
    assert parsed.problems == []
    assert parsed.service is not None
    return parsed.service


def only_problem(text: bytes) -> str:
    parsed = parse(text, ORIGIN)
    assert parsed.service is None
    assert len(parsed.problems) == 1
    return parsed.problems[0]


def variables(text: bytes) -> dict[str, str]:
    return read(b"name: x\nenvironment:\n  variables:\n" + text).variables


def test_what_oscar_mounts() -> None:
    parsed = parse(MOUNTED, ORIGIN)
    assert parsed == Parsed(
        ServiceDefinition(
            name="plants",
            log_level="INFO",
            script_path=None,
            variables={"MODEL": "resnet", "OCTAL": "0755", "TEXT": "two\nlines"},
            inputs=[StoragePath(storage_provider="minio.default", path="plants/in")],
            outputs=[
                StoragePath(storage_provider="minio.default", path="plants/out", suffix=["jpg", "txt"]),
                StoragePath(storage_provider="webdav.dcache", path="plants/out", prefix=["result"]),
            ],
            storage_providers={
                "minio": {
                    "default": {
                        "endpoint": "https://minio.example.org",
                        "verify": True,
                        "access_key": "hidden",
                        "secret_key": "hidden",
                        "region": "us-east-1",
                    }
                },
                "webdav": {"dcache": {"hostname": "dcache.example.org", "login": "user", "password": "hunter2"}},
            },
        ),
        [],
        [],
    )


# Fields of `docs/fdl.md`, of examples with fields that it does not name any more, and of the Service of older versions.
FIELDS_OF_FDL = """
    name cluster_id image vo allowed_users alpine script file_stage_in image_pull_secrets memory cpu enable_gpu
    enable_sgx image_prefetch total_memory total_cpu ephemeral_storage_request delegation synchronous expose federation
    log_level input output environment annotations labels interlink_node_name isolation_level visibility mount volume
    replicas rescheduler_threshold token owner bucket_list storage_providers clusters
    kserve workspace propagate_token expose_options
"""


@pytest.mark.parametrize("field", FIELDS_OF_FDL.split())
def test_every_field_of_oscars_reference_is_known(field: str) -> None:
    flat = f"name: x\n{field}:\n"
    whole = f"functions: {{oscar: [{{my-cluster: {{name: x, {field}: }}}}]}}"
    for text in (flat, whole) if field != "name" else ("name: x",):
        parsed = parse(text.encode(), ORIGIN)
        assert (parsed.problems, parsed.warnings) == ([], [])


def test_a_document_as_oscars_examples_have_it() -> None:
    """The examples have numbers in place of texts, one port or a list, tabs at line ends, and keys without a value."""
    text = b"""
functions:
  oscar:
  - oscar-cluster:
     name: fire-detection
     cpu: 1.0
     memory: 1Gi
     image: ghcr.io/grycap/fire-detection
     script: script.sh
     log_level: critical\t\t
     allowed_users: []
     expose: {api_port: [18789], nodePort: 30500}
     replicas:
     - {type: oscar, cluster_id: oscar-us, service_name: fire-detection}
     input:
     - storage_provider: minio
       path: fire-detection/input
     output:
     - path: /fire-detection/output
       storage_provider: minio.oscar-us
       suffix: jpg
       prefix: ["a", 1]
     environment:
       Variables:
         SEND_SNS: false
         THREADS: 4
         RATIO: 1.50
       Secrets:
         PASSWORD: admin
clusters:
  oscar-us: {endpoint: , auth_user: , ssl_verify: true, memory: 256Mi}
storage_providers:
  minio:
    oscar-us: {endpoint: , access_key: , verify: True}
"""
    service = read(text)
    assert service.log_level == "critical"
    assert service.script_path == "script.sh"
    assert service.variables == {"SEND_SNS": "false", "THREADS": "4", "RATIO": "1.50", "PASSWORD": "admin"}
    assert service.inputs == [StoragePath(storage_provider="minio", path="fire-detection/input")]
    (output,) = service.outputs
    assert (output.suffix, output.prefix) == (["jpg"], ["a", "1"])


def test_an_emptied_secret_does_not_hide_the_one_in_the_environment() -> None:
    text = b"name: x\nenvironment: {secrets: {A: ''}, Secrets: {B: }, variables: {C: ''}}"
    assert read(text).variables == {"C": ""}


def test_whole_document() -> None:
    service = read(WHOLE)
    assert service.name == "plants"
    assert service.script_path == "plants.sh"
    assert service.storage_providers == {
        "s3": {"aws": {"access_key": "a"}},
        "webdav": {"dcache": {"hostname": "b"}},
    }


def test_json_is_yaml() -> None:
    assert read(b'{"name": "x", "file_stage_in": true}').file_stage_in is True


def test_scalars_reach_the_script_as_written() -> None:
    text = b"""
    OCTAL: 0755
    VERSION: 1.10
    COUNTRY: no
    DAY: 2024-01-01
    TIME: 12:30:45
    BIG: 123456789012345678901234567890
    YES: True
    QUOTED: "null"
    EMPTY:
    NULL_: ~
    LINES: |
      a
      b
    """
    assert variables(text) == {
        "OCTAL": "0755",
        "VERSION": "1.10",
        "COUNTRY": "no",
        "DAY": "2024-01-01",
        "TIME": "12:30:45",
        "BIG": "123456789012345678901234567890",
        "YES": "true",
        "QUOTED": "null",
        "EMPTY": "",
        "NULL_": "",
        "LINES": "a\nb\n",
    }


@pytest.mark.parametrize("section", ["variables", "Variables", "secrets", "Secrets"])
def test_spellings_of_variables(section: str) -> None:
    assert read(f"name: x\nenvironment: {{{section}: {{A: b}}}}".encode()).variables == {"A": "b"}


def test_anchors_and_merges() -> None:
    text = b"""
name: x
environment:
  variables: &common {A: a, B: b}
  secrets: {<<: *common, B: c}
"""
    assert read(text).variables == {"A": "a", "B": "c"}


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        (b"", "", "is empty"),
        (b"- a", "", "is a list"),
        (b"just text", "", "is text"),
        (b"name: [a]", " name ", "expected text"),
        (b"name: x\nlog_level: {a: b}", " log_level ", "expected text"),
        (b"name: x\nfile_stage_in: maybe", " file_stage_in ", "expected true or false"),
        (b"name: x\ninput: {a: b}", " input ", "expected a list"),
        (b"name: x\ninput: [text]", " input[0] ", "expected an object"),
        (b"name: x\noutput: [{path: a}]", " output[0].storage_provider ", "is missing"),
        (b"name: x\noutput: [{storage_provider: a, prefix: {p: q}}]", " output[0].prefix ", "expected a list"),
        (b"name: x\noutput: [{storage_provider: a, suffix: [[]]}]", " output[0].suffix[0] ", "is a list"),
        (b"name: x\nstorage_providers: [a]", " storage_providers ", "expected an object"),
        (b"name: x\nenvironment: text", " environment ", "expected an object"),
        (b"name: x\nenvironment: {variables: [A]}", " environment.variables ", "expected an object"),
        (b"name: x\nenvironment: {variables: {A: [1]}}", " environment.variables.A ", "expected text"),
        (b"name: x\nenvironment: {variables: {A=B: c}}", " environment.variables.A=B ", "not a variable's name"),
        (b'name: x\nenvironment: {variables: {"": c}}', " environment.variables.'' ", "not a variable's name"),
        (
            b'name: x\nenvironment: {variables: {"a\\0": c}}',
            r" environment.variables.'a\x00' ",
            "not a variable's name",
        ),
        (b'name: x\nenvironment: {variables: {A: "\\0"}}', " environment.variables.A ", "NUL"),
        (b"functions: text", " functions ", "expected an object"),
        (b"functions: {aws: []}", " functions.oscar ", "has 0 services"),
        (b"functions: {oscar: [{a: {name: x}}, {b: {name: y}}]}", "oscar[0].a, functions.oscar[1].b", "2 s"),
        (b"functions: {oscar: [{a: {input: 1}}]}", " functions.oscar[0].a.input ", "expected a list"),
    ],
)
def test_wrong_types_name_the_field(text: bytes, field: str, says: str) -> None:
    problem = only_problem(text)
    assert problem.startswith(f"service definition {ORIGIN}: ")
    assert field in problem
    assert says in problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"name: x\n\tcpu: 1\n", "line 2: "),
        (b"name: x\na: b: c\n", "line 2: "),
        (b"name: x\nb: *nowhere\n", "line 2: "),
        (b"name: x\nb: !unknown y\n", "line 2: "),
        (b"name: \xff\n", "is not YAML"),
        (b"name: \x01\n", "is not YAML"),
        (b"[" * 20000, "line 1: "),
        (b"name: !!int x", "does not fit its tag"),
        (b"name: !!bool x", "does not fit its tag"),
        (b"name: !!timestamp x", "does not fit its tag"),
        (b"name: a\n---\nname: b\n", "line 2: "),
    ],
)
def test_broken_yaml_names_the_line(text: bytes, says: str) -> None:
    problem = only_problem(text)
    assert says in problem
    assert "\n" not in problem


def test_all_problems_at_once() -> None:
    parsed = parse(b"name: [a]\ninput: 1\noutput: 2\nfile_stage_in: 3\nenvironment: 4", ORIGIN)
    assert len(parsed.problems) == 5


def test_unknown_fields_are_warnings() -> None:
    parsed = parse(
        b"name: x\ninputs: []\nenvironment: {vars: {}}\ninput: [{storage_provider: a, sufix: []}]\n7: x",
        ORIGIN,
    )
    assert parsed.service is not None
    assert parsed.problems == []
    assert [warning.partition(ORIGIN + ": ")[2] for warning in parsed.warnings] == [
        "inputs is not known, so it is ignored",
        "7 is not known, so it is ignored",
        "environment.vars is not known, so it is ignored",
        "input[0].sufix is not known, so it is ignored",
    ]


def test_secrets_are_in_no_problem_and_no_repr() -> None:
    text = b"name: [hunter2]\ninput: hunter2\nenvironment: {variables: {A: [hunter2]}}\nfile_stage_in: hunter2"
    assert "hunter2" not in repr(parse(text, ORIGIN))
    service = read(b"name: x\nenvironment: {variables: {A: hunter2}}\nstorage_providers: {s3: {x: hunter2}}")
    assert "hunter2" not in repr(service)


@pytest.mark.parametrize("text", [b"a: 1\nstorage_providers: {}", b'{"token": "x"}', b"clusters:\n  a: b", WHOLE])
def test_holds_secrets(text: bytes) -> None:
    assert holds_secrets(text)


def test_holds_no_secrets() -> None:
    assert not holds_secrets(b"name: token\nimage: storage_providers")


@given(st.binary(max_size=200) | st.text(alphabet="[]{}:,-&*!|>'\" \n\taN01", max_size=60).map(str.encode))
def test_whatever_comes_is_read_or_named(text: bytes) -> None:
    parsed = parse(text, ORIGIN)
    assert (parsed.service is None) == bool(parsed.problems)


DUPLICATES = {
    "top": (b"name: a\nlog_level: INFO\nname: b\n", ["name occurs 2 times in one object, in lines 1 and 3"]),
    "nested": (
        b"name: a\nenvironment:\n  variables:\n    A: x\n    B: y\n    A: z\n",
        ["A occurs 2 times in one object, in lines 4 and 6"],
    ),
    "in a list": (
        b"name: a\ninput:\n- path: x\n  storage_provider: minio\n  path: y\n",
        ["path occurs 2 times in one object, in lines 3 and 5"],
    ),
    "flow": (
        b"name: a\nenvironment: {variables: {A: x,\n A: y}}\n",
        ["A occurs 2 times in one object, in lines 2 and 3"],
    ),
    "one line": (b'{"name": "a", "name": "b"}', ["name occurs 2 times in one object, in line 1;"]),
    "JSON": (b'{"name": "a",\n"name": "b",\n"name": "c"}', ["name occurs 3 times in one object, in lines 1, 2 and 3"]),
    "quoted in two ways": (b"name: a\n'name': b\n", ["name occurs 2 times in one object, in lines 1 and 2"]),
    "true": (
        b"name: a\nenvironment: {variables: {true: x,\n TRUE: y}}\n",
        ["true occurs 2 times in one object, in lines 2 and 3"],
    ),
    "several": (
        b"name: a\nenvironment:\n  variables: {A: x}\n  variables: {B: x,\n B: y}\nname: b\n",
        ["name occurs", "variables occurs", "B occurs"],
    ),
    "in an object that others merge": (
        b"name: a\nenvironment:\n  secrets: &base\n    A: x\n    A: y\n  variables: {<<: *base}\n",
        ["A occurs 2 times in one object, in lines 4 and 5"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), DUPLICATES.values(), ids=DUPLICATES)
def test_a_duplicate_key_is_a_warning_with_its_lines(text: bytes, expected: list[str]) -> None:
    parsed = parse(text, ORIGIN)
    assert parsed.problems == []
    assert len(parsed.warnings) == len(expected)
    for warning, part in zip(parsed.warnings, expected, strict=True):
        assert warning.startswith(f"service definition {ORIGIN}: {part}")
        assert "only the last one counts" in warning


@pytest.mark.parametrize(
    "text",
    [
        b"name: a\nenvironment:\n  secrets: &base {A: x, B: y}\n  variables: {<<: *base, A: z}\n",
        b"name: a\nenvironment:\n  Secrets: &a {A: x}\n  secrets: &b {A: y}\n  variables: {<<: [*a, *b], A: z}\n",
        b"name: a\nenvironment:\n  Secrets: &a {A: x}\n  secrets: &b {<<: *a, A: y}\n  variables: {<<: *b, A: z}\n",
        b"name: a\nenvironment: {variables: {A: x, a: x}, secrets: {A: x}}\n",
    ],
    ids=["merge", "merge of two", "merge of a merge", "other objects and other cases"],
)
def test_keys_that_are_not_duplicates(text: bytes) -> None:
    assert parse(text, ORIGIN).warnings == []


def test_the_last_of_two_duplicates_counts() -> None:
    assert read(b"name: a\nname: b\n").name == "b"
