"""Adds types without their checks, and default values, to the attributes that a class docstring lists.

The reference shows attributes as `name (type) – description`. A pydantic field may have a type such as
`Annotated[int, Field(ge=1)]` and always has its default in the class body: a reader wants `int` and the default.
"""

import re
from typing import Any

import griffe

CHECKED = re.compile(r"(?:Annotated|SkipValidation)\[((?:[^\[\],]|\[[^\]]*\])*)(?:,[^\]]*)?\]")


def plain(annotation: Any, cls: griffe.Class) -> str:
    """The type as text, with private names replaced by what they stand for, and without checks."""
    names = {name: str(part.value) for name, part in cls.module.attributes.items() if name.startswith("_")}
    text = re.sub(r"\b_\w+", lambda found: names.get(found[0], found[0]), str(annotation))
    return CHECKED.sub(r"\1", text)


def default_of(value: str) -> str | None:
    """The default that a field's value in the class body stands for; None where there is none to show."""
    if value.startswith(("Field(", "field(")):
        factory = re.search(r"default_factory=(\w+)", value)
        default = re.search(r"default=([^,)]+)", value)
        value = {"dict": "{}", "list": "[]"}.get(factory[1], "None") if factory else default[1] if default else "None"
    return None if value == "None" else value


class Defaults(griffe.Extension):
    """Called by griffe once the members of a class are known."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Complete the section `Attributes` of a docstring that has no other list of names."""
        text = cls.docstring.value if cls.docstring else ""
        # The arguments of a dataclass are not known yet: parsing its docstring here would report them as missing.
        if cls.docstring is None or "Attributes:" not in text or "Args:" in text:
            return
        for section in cls.docstring.parsed:
            if section.kind is not griffe.DocstringSectionKind.attributes:
                continue
            for item in section.value:
                field = cls.members.get(item.name)
                if not isinstance(field, griffe.Attribute) or field.value is None or not field.annotation:
                    continue
                item.annotation = plain(field.annotation, cls)
                default = default_of(str(field.value))
                if default is not None:
                    item.description += f" Default: `{default}`."
