"""Types of the scenario's fields: quantities with units in YAML, SI floats in code."""

from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from costmodels.errors import DataError
from costmodels.units import EXAMPLES, parse


def _reader(dimension: str) -> Callable[[object], float]:
    def read(given: object) -> float:
        try:
            return parse(given, dimension)
        except DataError as error:
            raise ValueError(f"must be a quantity such as {EXAMPLES[dimension]}") from error

    return read


def _schema(dimension: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}], "examples": [EXAMPLES[dimension]]})


Bytes = Annotated[float, BeforeValidator(_reader("bytes")), Field(ge=0), _schema("bytes")]
Seconds = Annotated[float, BeforeValidator(_reader("seconds")), Field(ge=0), _schema("seconds")]
BytesPerSecond = Annotated[
    float, BeforeValidator(_reader("bytes_per_second")), Field(gt=0), _schema("bytes_per_second")
]


def size(nbytes: float) -> str:
    """Bytes as messages give them: "5.12 GB", or "44.1 MB" below one GB."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
