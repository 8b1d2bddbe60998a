"""Who a peer has proved to be: the role and the name that its key stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["client", "worker"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Principal:
    """Whoever holds the secret half of ``public``, a key in Z85; two keys make two holders, also under one name."""

    role: Role
    name: str
    public: str

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"
