"""The part of the OCI runtime configuration that we write (runtime-spec 1.0, config.md and config-linux.md), as types."""

import msgspec


class _Camel(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Names as the specification writes them; what is left at its default is not written."""


class User(_Camel, omit_defaults=False):
    uid: int
    gid: int
    additional_gids: list[int] = []


class ProcessCapabilities(_Camel):
    bounding: list[str] = []
    effective: list[str] = []
    permitted: list[str] = []


class ConsoleSize(_Camel):
    height: int
    width: int


class Process(_Camel):
    args: list[str]
    cwd: str
    env: list[str]
    user: User
    capabilities: ProcessCapabilities
    terminal: bool = False
    no_new_privileges: bool = False
    console_size: ConsoleSize | None = None


class Root(_Camel):
    path: str
    readonly: bool = False


class Mount(_Camel):
    destination: str
    type: str
    source: str
    options: list[str] = []


class Namespace(_Camel):
    type: str
    path: str | None = None


class IdMapping(_Camel, omit_defaults=False):
    container_id: int = msgspec.field(default=0, name="containerID")
    host_id: int = msgspec.field(default=0, name="hostID")
    size: int = 0


class SyscallArgument(_Camel, omit_defaults=False):
    index: int
    value: int
    op: str
    value_two: int = 0


class SyscallRule(_Camel):
    names: list[str]
    action: str
    args: list[SyscallArgument] = []
    errno_ret: int | None = None


class Seccomp(_Camel):
    default_action: str
    default_errno_ret: int
    architectures: list[str]
    syscalls: list[SyscallRule]


class DeviceRule(_Camel, omit_defaults=False):
    allow: bool
    access: str = "rwm"


class Resources(_Camel):
    devices: list[DeviceRule] = []


class Linux(_Camel):
    namespaces: list[Namespace]
    uid_mappings: list[IdMapping]
    gid_mappings: list[IdMapping]
    cgroups_path: str
    resources: Resources
    masked_paths: list[str]
    readonly_paths: list[str]
    seccomp: Seccomp | None = None
    sysctl: dict[str, str] = {}


class Spec(_Camel):
    """A whole ``config.json``."""

    oci_version: str = msgspec.field(name="ociVersion")
    process: Process
    root: Root
    hostname: str
    mounts: list[Mount]
    linux: Linux
