"""The answers and the OpenAPI document, held to each other by schemathesis."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.conftest import Serve, listening

#: Its other checks know too little of sounds: a form that is right by the document may hold no recording, or
#: a number of steps that the solver does not take.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance,use_after_free"
)


@pytest.mark.slow
def test_every_answer_is_one_that_the_document_has(serve: Serve, tmp_path: Path) -> None:
    service = serve(max_length=2, max_steps=20)
    with listening(service) as address:
        words = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"]
        words += ["--checks", CHECKS, "--max-examples", "6", "--seed", "1", "--continue-on-failure"]
        words += ["--no-color", "--warnings", "off"]
        hooks = {"SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("schema_hooks.py"))}
        done = subprocess.run(
            words, capture_output=True, text=True, env=os.environ | hooks, cwd=tmp_path, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = service.metrics.text()
    for route in (b'method="POST",route="/v1/jobs",status="202"', b'route="/v1/separate",status="200"'):
        assert route in figures, "no form reached the model"
    assert [path.name for path in service.store.root.iterdir() if path.name not in service.store._jobs] == [
        ".lock"
    ]
