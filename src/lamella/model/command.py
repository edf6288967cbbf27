"""What an instance runs: entrypoint and command joined, as docker joins them."""

from lamella.model.image import ImageConfig
from lamella.model.instance import InstanceSpec


def whole_command(spec: InstanceSpec, config: ImageConfig) -> list[str]:
    """The argument vector; an entrypoint of the request's own drops the image's command. Empty when nobody names a program."""
    entrypoint = config.entrypoint if spec.entrypoint is None else spec.entrypoint
    command = spec.command if spec.command is not None else (config.command if spec.entrypoint is None else [])
    return [*entrypoint, *command]
