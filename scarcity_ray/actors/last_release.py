"""The last release that was distributed to a basket actor, and what follows from it there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scarcity_ray.actors.session_terms import SessionTerms, agreement_hash
from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.plan import FederationPlan, ReleasePlan


class LastRelease:
    """The newest release seen here.

    Guarantees:
        an_earlier_release_never_replaces_a_later_one: By its version.
        a_clip_norm_that_the_config_does_not_allow_is_never_adopted

    Args:
        plan: The federation's numbers.
        model: The release, coming back after it was lost; None before the first.

    Attributes:
        model: The release.
    """

    def __init__(self, plan: FederationPlan, model: GlobalMetaModel | None = None) -> None:
        self._plan = plan
        self.model = model

    @property
    def version(self) -> int:
        """Its version; 0 for none."""
        return self.model.version if self.model is not None else 0

    @property
    def ledger_head(self) -> str:
        """The ledger's head at that release; empty before the first, and where none is distributed."""
        known = self.model is not None and self._plan.config.layer2.distribute_to_baskets
        return self.model.ledger_head if known and self.model is not None else ""

    @property
    def clip_norm(self) -> float:
        """What rows are clipped to from now on; what waits is clipped again by Layer 1."""
        if self.model is None or self.model.clip_norm is None:
            return self._plan.config.layer1.clip_norm
        return self.model.clip_norm

    def adopt(self, model: GlobalMetaModel) -> bool:
        """Take a release, unless a later one is here already; whether it was taken.

        Raises:
            ProtocolViolation: If it is none of this federation's; the one before stays.
        """
        if type(model) is not GlobalMetaModel or type(model.version) is not int:
            raise ProtocolViolation(f"this is no release: {type(model).__name__}")
        if model.clip_norm is not None and not self._may_clip_to(model.clip_norm):
            raise ProtocolViolation(
                f"release {model.version} tells a clip norm that is none here: {model.clip_norm!r}"
            )
        newer = model.version >= self.version
        if newer:
            self.model = model
        return newer

    def _may_clip_to(self, clip_norm: object) -> bool:
        adaptive = self._plan.config.layer2.adaptive_clipping
        return adaptive and type(clip_norm) is float and self._plan.may_clip_to(clip_norm)

    def agreement_hash(self, terms: SessionTerms) -> bytes | None:
        """A session's hash by this actor's own reckoning; None where releases are not distributed.

        Of what are no terms at all it is None, too: such a session is refused for that (`hosted_session`).
        """
        distributed = self._plan.config.layer2.distribute_to_baskets
        if not distributed or type(terms) is not SessionTerms or type(terms.release) is not ReleasePlan:
            return None
        last = np.zeros(0, np.float32) if self.model is None else self.model.aggregate
        return agreement_hash(last, replace(terms.release, clip_norm=self.clip_norm))


__all__ = ["LastRelease"]
