"""The words and examples of the OpenAPI document."""

from __future__ import annotations

from typing import Any

from flowsep_serve.answers import MEDIA_TYPES
from flowsep_serve.orders import form_schema

DESCRIPTION = """Separates the sounds that sentences name from a recording.

`POST /v1/separate` answers with the sound; `POST /v1/jobs` works in the background and tells its progress. An
error is one sentence: `{"error": "..."}`."""

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_SENTENCES = {
    401: "Give a key of this server as 'Authorization: Bearer KEY'.",
    403: "Pages of other sites may not use this server.",
    404: "There is no such job, or it has expired.",
    405: "This address does not take this method.",
    408: "The upload took more than 120 s.",
    409: "The job is running: there is no result.",
    413: "The upload is larger than 256 MiB.",
    415: "Send a form (multipart/form-data) with a recording and a query.",
    421: "The server has another name: use the address that it said at its start.",
    422: "The query is empty: say in a few words what to separate.",
    429: "The server is busy: try again in 4 s.",
    500: "Unexpected error: the server's log has the details.",
    503: "The server is shutting down: try again in a while.",
    507: "The server has no room for more results: try again later.",
}
_JOB_EXAMPLE = {
    "id": "9jQv1H3mEwYp0o5mS2xXk1aZ",
    "state": "done",
    "position": None,
    "steps_done": 16,
    "steps": 16,
    "queries": ["dog barking"],
    "model": "nano",
    "format": "wav",
    "sample_rate": 44100,
    "channels": 1,
    "seconds": 9.0,
    "created": "2026-01-01T12:00:00+00:00",
    "expires": "2026-01-01T13:00:04+00:00",
    "warnings": [],
    "error": None,
    "stems": [
        {
            "name": "dog-barking.wav",
            "query": "dog barking",
            "url": "/v1/jobs/9jQv1H3mEwYp0o5mS2xXk1aZ/stems/dog-barking.wav",
        },
        {"name": "rest.wav", "query": None, "url": "/v1/jobs/9jQv1H3mEwYp0o5mS2xXk1aZ/stems/rest.wav"},
    ],
}


def _json(schema: dict[str, Any], example: Any, text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema, "example": example}}}


def _bytes(kinds: tuple[str, ...], text: str) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"description": text, "content": dict.fromkeys(kinds, binary)}


def _route(summary: str, status: int, answer: dict[str, Any], errors: tuple[int, ...]) -> dict[str, Any]:
    failures = {
        code: _json(_ERROR, {"error": _SENTENCES[code]}, "Refused.") for code in (*errors, 403, 421, 500)
    }
    return {
        "summary": summary,
        "status_code": status,
        "response_model": None,
        "responses": {status: answer, **failures},
    }


def _form() -> dict[str, Any]:
    example = {"query": ["dog barking", "rain"], "format": "flac"}
    content = {"schema": form_schema(), "example": example, "encoding": {"query": {"explode": True}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}


def _object(**properties: Any) -> dict[str, Any]:
    """An object that has all of these properties."""
    return {"type": "object", "required": list(properties), "properties": properties}


_TEXT, _WHOLE, _NUMBER, _TRUTH = ({"type": each} for each in ("string", "integer", "number", "boolean"))
_TIME = {"type": "string", "format": "date-time"}
_STATES = {"type": "string", "enum": ["queued", "running", "done", "failed", "cancelled"]}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _or_null(kind: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [kind, {"type": "null"}]}


_STATUS = _object(status=_TEXT)
_MODELS = _object(
    models=_list(_object(name=_TEXT, is_default=_TRUTH, kind=_TEXT, sample_rate=_WHOLE, clip_seconds=_NUMBER))
)
_JOB = _object(
    id=_TEXT,
    state=_STATES,
    position=_or_null(_WHOLE),
    steps_done=_WHOLE,
    steps=_or_null(_WHOLE),
    queries=_list(_TEXT),
    model=_TEXT,
    format=_TEXT,
    sample_rate=_WHOLE,
    channels=_WHOLE,
    seconds=_NUMBER,
    created=_TIME,
    expires=_or_null(_TIME),
    warnings=_list(_TEXT),
    error=_or_null(_TEXT),
    stems=_list(_object(name=_TEXT, query=_or_null(_TEXT), url=_TEXT)),
)
_EVENT = _object(event={"type": "string", "enum": ["progress", "end"]}, data=_TEXT)
_REFUSALS = (401, 404, 408, 413, 415, 422, 429, 503, 507)
#: Refusals of a result that is not there, because the job still runs or ended without one.
_NO_RESULT = (401, 404, 409, 422, 503, 507)
_SOUNDS = tuple(dict.fromkeys(MEDIA_TYPES.values()))
_WARNINGS = {
    "flowsep-warnings": {
        "description": "Warnings, as a JSON list of sentences.",
        "schema": {"type": "string"},
        "example": '["The audio is silent: so is the result."]',
    }
}
#: The requests that follow an answer with the name of a job.
_LINKS = {
    name: {"operationId": name, "parameters": {"job": "$response.body#/id"}}
    for name in ("one_job", "job_events", "all_stems", "delete_job")
}

HEALTH = _route("Whether the process is well", 200, _json(_STATUS, {"status": "ok"}, "It is."), ())
READY = _route("Whether requests are taken", 200, _json(_STATUS, {"status": "ready"}, "They are."), (503,))
METRICS = _route(
    "Figures for Prometheus",
    200,
    {"description": "Text of Prometheus.", "content": {"text/plain": {"schema": {"type": "string"}}}},
    (401,),
)
MODELS = _route(
    "Models that a request may name",
    200,
    _json(
        _MODELS,
        {
            "models": [
                {
                    "name": "nano",
                    "is_default": True,
                    "kind": "masked",
                    "sample_rate": 16000,
                    "clip_seconds": 10.24,
                }
            ]
        },
        "The default comes first.",
    ),
    (401,),
)
SEPARATE = _route(
    "Separate a recording, and wait for the result",
    200,
    _bytes((*_SOUNDS, "application/zip"), "The sound of one query; a zip for several, with the rest.")
    | {"headers": _WARNINGS},
    _REFUSALS,
) | {"openapi_extra": _form()}
NEW_JOB = _route(
    "Separate a recording in the background",
    202,
    _json(_JOB, _JOB_EXAMPLE | {"state": "queued", "stems": []}, "It waits or runs.") | {"links": _LINKS},
    _REFUSALS,
) | {"openapi_extra": _form()}
JOB = _route("State of a job", 200, _json(_JOB, _JOB_EXAMPLE, "The job."), (401, 404))
EVENTS = _route(
    "Progress of a job, as server-sent events",
    200,
    {
        "description": "Events `progress` and, at last, `end`; the data is the job.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    (401, 404),
)
ZIP = _route("All results of a job", 200, _bytes(("application/zip",), "A zip of the stems."), _NO_RESULT)
STEM = _route("One result of a job", 200, _bytes(_SOUNDS, "The sound."), _NO_RESULT)
DELETE = _route(
    "Cancel a job, and remove all that there is of it", 204, {"description": "It is gone."}, (401, 404)
)
