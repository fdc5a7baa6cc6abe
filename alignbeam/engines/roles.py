"""A role, wherever its model is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from alignbeam.config import RoleConfig
from alignbeam.engines import check
from alignbeam.engines.role import RemoteRole
from alignbeam.engines.scope import scope
from alignbeam.errors import ConfigError
from alignbeam.models.role import Role

AnyRole = Role | RemoteRole


def role_of(name: str, config: RoleConfig, best: int = 0) -> AnyRole:
    """Load a role, or reach the engine that plays it; see ``from_config`` of both classes."""
    if config.url is None:
        return Role.from_config(name, config)
    return RemoteRole.from_config(name, config, best)


def check_shared(roles: Iterable[object]) -> None:
    """Check engines that play two roles and are asked both kinds of questions.

    Raises
    ------
    EngineShortfall
        See ``check.takes_both``.
    """
    remote = [role for role in roles if isinstance(role, RemoteRole)]
    for best, named in itertools.permutations(remote, 2):
        if best.most and not named.most and best.client.url == named.client.url:
            scope.get().run(check.takes_both(best, named))


def local(role: AnyRole, what: str) -> Role:
    """Return a role whose model is in this process.

    Raises
    ------
    ConfigError
        It is not; ``what`` needs it here.
    """
    if isinstance(role, Role):
        return role
    raise _elsewhere(role.name, what)


def refuse_engines(configs: Mapping[str, RoleConfig], what: str) -> None:
    """Refuse settings of roles that engines play, before anything is loaded or asked.

    Raises
    ------
    ConfigError
        One is; ``what`` needs it here.
    """
    for name, config in configs.items():
        if config.url is not None:
            raise _elsewhere(name, what)


def _elsewhere(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"{what} needs the {name}'s weights in this process, and an engine has them; set "
        f"{name}.model in place of {name}.url, to the folder or hub id of what it serves"
    )
