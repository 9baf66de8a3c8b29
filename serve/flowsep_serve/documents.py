"""The words and examples of the OpenAPI document."""

from __future__ import annotations

from typing import Any

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


_OBJECT = {"type": "object"}
_REFUSALS = (401, 404, 408, 413, 415, 422, 429, 503, 507)
_SOUNDS = ("audio/wav", "audio/flac", "audio/ogg", "audio/mpeg")

HEALTH = _route("Whether the process is well", 200, _json(_OBJECT, {"status": "ok"}, "It is."), ())
READY = _route("Whether requests are taken", 200, _json(_OBJECT, {"status": "ready"}, "They are."), (503,))
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
        _OBJECT,
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
    _bytes((*_SOUNDS, "application/zip"), "The sound of one query; a zip for several, with the rest."),
    _REFUSALS,
) | {"openapi_extra": _form()}
NEW_JOB = _route(
    "Separate a recording in the background",
    202,
    _json(_OBJECT, _JOB_EXAMPLE | {"state": "queued", "stems": []}, "It waits or runs."),
    _REFUSALS,
) | {"openapi_extra": _form()}
JOB = _route("State of a job", 200, _json(_OBJECT, _JOB_EXAMPLE, "The job."), (401, 404))
EVENTS = _route(
    "Progress of a job, as server-sent events",
    200,
    {
        "description": "Events `progress` and, at last, `end`; the data is the job.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    (401, 404),
)
ZIP = _route(
    "All results of a job", 200, _bytes(("application/zip",), "A zip of the stems."), (401, 404, 409, 503)
)
STEM = _route("One result of a job", 200, _bytes(_SOUNDS, "The sound."), (401, 404, 409, 503))
DELETE = _route(
    "Cancel a job, and remove all that there is of it", 204, {"description": "It is gone."}, (401, 404)
)
