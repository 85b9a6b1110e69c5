"""What the reference takes from the source besides Google's sections: doctests, and comments behind fields."""

import re
from typing import Any

from griffe import Attribute, Class, Extension, Object

DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class FromSource(Extension):
    """Fences doctests, which Markdown takes for quotations; lists the fields of classes, `name: type  # comment`."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:  # noqa: ARG002
        """Called for every object, a class before its members."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)

    def on_class_members(self, *, cls: Class, **kwargs: Any) -> None:  # noqa: ARG002
        """Called for every class when its members are known."""
        fields = {
            field.name: field.source.partition("  # ")[2]
            for field in cls.members.values()
            if isinstance(field, Attribute) and field.annotation and not (field.docstring or field.is_private)
        }
        named_tuple = any(str(base) == "NamedTuple" for base in cls.bases)
        if cls.docstring and fields and (named_tuple or any(fields.values())):
            listed = "\n".join(f"    {name}: {comment}" for name, comment in fields.items())
            cls.docstring.value += f"\n\nAttributes:\n{listed}"
