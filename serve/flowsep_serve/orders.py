"""The form of a request: a recording, queries, and the options of a separation.

The fields of the options are those of `flowsep_runtime.options.Options`, and none is listed again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from flowsep_runtime.audio.clipping import CLIP_MODES, ClipMode
from flowsep_runtime.audio.writing import CONTAINERS
from flowsep_runtime.errors import FlowSepError
from flowsep_runtime.options import Options
from flowsep_serve.errors import ServeError
from flowsep_serve.limits import Limits

FORMATS = tuple(extension[1:] for extension in CONTAINERS)
LONGEST_QUERY = 500  # characters; the model reads 50 tokens


@dataclass(frozen=True)
class Order:
    """A separation that was asked for.

    Attributes:
        queries: One or more.
        options: Those of the separation.
        model: A name of `Models`.
        format: The extension of the results, without its dot.
        clip_mode: What becomes of samples beyond full scale.
        remove: Whether the answer to one query is the recording without its sound.
    """

    queries: tuple[str, ...]
    options: Options
    model: str
    format: str
    clip_mode: ClipMode
    remove: bool


@cache
def form_model() -> type[BaseModel]:
    """The fields of the form besides the recording, for checks and for the OpenAPI document."""
    hints, texts = get_type_hints(Options), _descriptions()
    options: dict[str, Any] = {
        each.name: (hints[each.name], Field(default=each.default, description=texts[each.name]))
        for each in fields(Options)
    }
    return create_model(
        "Form",
        __config__=ConfigDict(extra="forbid"),
        query=(list[str], Field(description="What to separate, in words; may be given several times.")),
        model=(str | None, Field(default=None, description="A name of /v1/models; its first by default.")),
        format=(
            str,
            Field(
                default="wav", description="Format of the results.", json_schema_extra={"enum": list(FORMATS)}
            ),
        ),
        clip_mode=(
            ClipMode,
            Field(
                default=CLIP_MODES[0],
                description="Samples beyond full scale: cut off; or all made quieter; or floating point.",
            ),
        ),
        remove=(
            bool,
            Field(default=False, description="Answer with everything but the sound of the one query."),
        ),
        **options,
    )


def _descriptions() -> dict[str, str]:
    """The attributes of `Options` in the words of its docstring."""
    _, _, text = (Options.__doc__ or "").partition("Attributes:")
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def form_schema() -> dict[str, Any]:
    """The OpenAPI description of the form."""
    schema = form_model().model_json_schema()
    for described in schema["properties"].values():
        # A form has no null: a field that is left out, or empty, is one.
        if kinds := [each for each in described.pop("anyOf", ()) if each != {"type": "null"}]:
            (kind,) = kinds
            described |= kind
        if described.get("default", ...) is None:
            del described["default"]
    schema["properties"]["query"]["items"] |= {"minLength": 1, "maxLength": LONGEST_QUERY}
    schema["properties"]["query"]["minItems"] = 1
    recording = {"type": "string", "format": "binary", "description": "A sound file, of any name."}
    schema["properties"] = {"recording": recording, **schema["properties"]}
    schema["required"] = ["recording", "query"]
    return schema


def read_order(given: Sequence[tuple[str, str]], models: Mapping[str, object], limits: Limits) -> Order:
    """The order in the text fields of a form.

    Raises:
        ServeError: With a sentence that names the field.
    """
    values: dict[str, Any] = {"query": []}
    known = form_model().model_fields
    for name, text in given:
        if name == "query":
            values["query"].append(text)
        elif name not in known:
            raise ServeError(
                422, f"There is no field {name[:40]!r}: use one of recording, {', '.join(known)}."
            )
        elif name in values:
            raise ServeError(422, f"{name} is given twice: give it once.")
        elif text != "" or name == "negative":
            values[name] = text
    if len(values["query"]) > limits.max_queries:
        raise ServeError(413, f"There are {len(values['query'])} queries: give at most {limits.max_queries}.")
    if any(len(query) > LONGEST_QUERY for query in values["query"]):
        raise ServeError(413, f"A query has more than {LONGEST_QUERY} characters: say it shorter.")
    if not values["query"]:
        raise ServeError(422, "There is no query: name a sound in the field 'query'.")
    if any(not query.strip() for query in values["query"]):
        raise ServeError(422, "The query is empty: say in a few words what to separate.")
    try:
        form: Any = form_model()(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ServeError(422, f"{first['loc'][0]}: {first['msg']}.") from None
    except (ValueError, OverflowError):  # an integer of ten thousand digits
        raise ServeError(422, "A field is not a number that can be read.") from None
    if form.format not in FORMATS:
        raise ServeError(422, f"There is no format {form.format[:40]!r}: choose from {', '.join(FORMATS)}.")
    name = form.model or next(iter(models))
    if name not in models:
        raise ServeError(404, f"There is no model {name[:80]!r}: choose from {', '.join(models)}.")
    if form.remove and len(form.query) > 1:
        raise ServeError(422, "remove takes one query: leave the others out.")
    try:
        options = Options(**{each.name: getattr(form, each.name) for each in fields(Options)})
    except FlowSepError as error:
        raise ServeError(422, str(error)) from None
    return Order(tuple(dict.fromkeys(form.query)), options, name, form.format, form.clip_mode, form.remove)
