"""What the package and its extras need may be used: licences are on a list, or considered one by one."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

EXTRAS = ("quickstart", "fast", "postgresql", "tensorboard", "otel", "torch")
"""Those that users install; what tests and benchmarks need is handed on to nobody."""
ALLOWED = (
    *("MIT", "MIT-0", "MIT-CMU", "BSD", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "Zlib", "CC0-1.0"),
    *("Apache-2.0", "Apache-2.0 WITH LLVM-exception", "PSF-2.0", "BSL-1.0", "Unlicense"),
)
WORDS = {
    "MIT License": "MIT",
    "BSD License": "BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""What packages write in place of an SPDX identifier."""
CONSIDERED = {
    "psycopg": "LGPL-3.0-only: imported as it is, an extra",
    "psycopg-binary": "LGPL-3.0-only: the same, compiled",
    "certifi": "MPL-2.0: a list of authorities, used as it is",
}
"""Licences that ask more than to be named, with why they do here."""


def needed(name: str, extras: tuple[str, ...]) -> dict[str, Distribution]:
    """All installed distributions that a package needs with some extras, itself left out."""
    found: dict[str, Distribution] = {}
    waiting, seen = [(name, extras)], set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        try:
            held = distribution(one[0])
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        found[re.sub(r"[-_.]+", "-", one[0]).lower()] = held
        for line in held.requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": e}) for e in ("", *one[1])):
                waiting.append((wanted.name, tuple(sorted(wanted.extras))))
    return {key: held for key, held in found.items() if not key.startswith("scarcity-ray")}


def licence(held: Distribution) -> str:
    """A distribution's licence as an SPDX expression, as far as it states one; empty if it states none."""
    stated = held.metadata
    said = stated.get("License-Expression")
    if said is None:
        named = [
            c.split(" :: ")[-1] for c in stated.get_all("Classifier") or () if c.startswith("License ::")
        ]
        text = stated.get("License") or ""
        said = " AND ".join(WORDS.get(word, word) for word in named) or WORDS.get(text, text.split("\n")[0])
    return said


def is_allowed(expression: str) -> bool:
    """Whether one of the alternatives has only allowed parts."""
    alternatives = expression.replace("(", "").replace(")", "").split(" OR ")
    return any(all(part.strip() in ALLOWED for part in way.split(" AND ")) for way in alternatives)


def test_every_dependencys_licence_is_allowed_or_considered() -> None:
    found = needed("scarcity-ray", EXTRAS)
    assert len(found) > 20
    unknown = {
        f"{name} {held.version}: {licence(held) or 'none stated'}"
        for name, held in found.items()
        if name not in CONSIDERED and not is_allowed(licence(held))
    }
    assert unknown == set(), "leave it out, or say in CONSIDERED why it does"


def test_a_licence_that_is_not_on_the_list_is_found() -> None:
    assert is_allowed("Apache-2.0 OR BSD-2-Clause")
    assert is_allowed("GPL-3.0-only OR MIT")
    assert not is_allowed("MIT AND GPL-3.0-only")
    assert not is_allowed("")
