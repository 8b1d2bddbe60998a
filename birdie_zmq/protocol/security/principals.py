"""Principals: the role and the name of an authenticated peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["client", "worker"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Principal:
    """The owner of a key pair with the public key ``public``, in Z85; two keys are two principals, even with one name."""

    role: Role
    name: str
    public: str

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"
