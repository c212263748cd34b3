"""All tables of the pages, by name; each module makes the tables of one topic."""

from benchmarks.common.pages import Table
from benchmarks.common.tables import (
    comparisons,
    digits,
    gpu,
    headroom,
    images,
    language,
    mnist1d,
    models,
    noise,
    outer_search,
    ray,
    response,
    speed,
    study,
    toy,
    versions,
)

_TOPICS = (
    versions,
    toy,
    response,
    models,
    headroom,
    study,
    images,
    digits,
    mnist1d,
    language,
    comparisons,
    speed,
    noise,
    outer_search,
    ray,
    gpu,
)
TABLES: dict[str, Table] = {name: table for topic in _TOPICS for name, table in topic.TABLES.items()}
