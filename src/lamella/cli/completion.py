"""``completion``: scripts for bash, zsh and fish, made from the commands as they are. Names of instances are asked for."""

import sys

from lamella.cli.commands import MODULES, NOUNS, SUMMARIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.parser import Command, Options, Parser

# What takes an instance's name.
_INSTANCE = [
    *("show", "exec", "shell", "logs", "cp", "top", "set", "contract", "explain"),
    *("start", "stop", "restart", "reset", "kill", "pause", "suspend", "resume", "fork", "rm"),
    *("console", "desktop", "screenshot", "type", "dump", "device ls", "device attach", "device detach"),
    *("network capture", "network mirror"),
]
# What takes the name of another noun first.
_NAMED = {
    "image": ["image show", "image rm", "image export", "run", "create"],
    "volume": [
        f"volume {verb}" for verb in ("show", "set", "resize", "attach", "detach", "rename", "unlock", "rekey", "rm")
    ]
    + ["snapshot create", "snapshot ls"],
    "snapshot": ["snapshot show", "snapshot restore", "snapshot rm"],
    "template": ["template show", "template set", "template rebuild", "template rm"],
    "balancer": ["balancer show", "balancer set", "balancer rm"],
    "firewall": [f"firewall {verb}" for verb in ("show", "set", "attach", "detach", "default", "rm")],
    "router": ["router show", "router set", "router rm"],
    "address": [f"address {verb}" for verb in ("show", "attach", "detach", "rm")],
    "network": ["network show", "network set", "network rm"],
    "pool": ["pool show", "pool set", "pool scrub", "pool rm"],
}
_ASK = "lamella ps -a -o name 2>/dev/null"


def _words() -> dict[str, list[str]]:
    """Every command with the options that it knows."""
    from lamella.cli.main import load
    from lamella.cli.parser import Parser

    found: dict[str, list[str]] = {}
    for name in MODULES:
        parser = Parser(name, SUMMARIES[name])
        load(name)[0](parser)
        found[name] = parser.options
    return found


def _first() -> list[str]:
    return [*(name for name in MODULES if " " not in name), *NOUNS]


def _verbs(noun: str) -> list[str]:
    return [name.partition(" ")[2] for name in MODULES if name.startswith(f"{noun} ")]


def _patterns() -> list[str]:
    return [_pattern(name) for name in _INSTANCE]


def _pattern(name: str) -> str:
    return f'"{name}"' if " " in name else name


def bash() -> str:
    """For bash: ``source <(lamella completion bash)``."""
    options = "\n".join(f'    "{name}") options="{" ".join(words)}" ;;' for name, words in _words().items())
    named = "\n".join(
        f'    {"|".join(_pattern(name) for name in names)}) words="$(lamella {noun} ls -o name 2>/dev/null)" ;;'
        for noun, names in _NAMED.items()
    )
    nouns = "\n".join(f'    {noun}) words="{" ".join(_verbs(noun))}" ;;' for noun in NOUNS)
    return f"""# bash completion for lamella: source <(lamella completion bash)
_lamella() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" first="${{COMP_WORDS[1]}}" second="${{COMP_WORDS[2]}}" options="" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(_first())} --host --project --help --version" -- "$word")); return
  fi
  case "$first" in
{nouns}
  esac
  if [ -n "$words" ]; then
    if [ "$COMP_CWORD" -eq 2 ]; then COMPREPLY=($(compgen -W "$words" -- "$word")); return; fi
    first="$first $second"
  fi
  case "$first" in
{options}
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")); return ;;
  esac
  case "$first" in
    {"|".join(_patterns())}) words="$({_ASK})" ;;
{named}
    completion) words="bash zsh fish" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  case "$first" in cp|run|create|"image import"|"device attach") COMPREPLY+=($(compgen -f -- "$word")) ;; esac
}}
complete -o bashdefault -F _lamella lamella
"""


def zsh() -> str:
    """For zsh, on top of its own emulation of bash's completion."""
    return (
        "#compdef lamella\n# zsh completion for lamella: source <(lamella completion zsh)\nautoload -U +X bashcompinit && bashcompinit\n"
        + bash()
    )


def fish() -> str:
    """For fish: ``lamella completion fish | source``."""
    lines = ["# fish completion for lamella: lamella completion fish | source", "complete -c lamella -f"]
    every = " ".join(_first())
    for name, words in _words().items():
        noun, space, verb = name.partition(" ")
        if space:
            condition = (
                f"__fish_seen_subcommand_from {noun}; and not __fish_seen_subcommand_from {' '.join(_verbs(noun))}"
            )
            lines.append(f"complete -c lamella -n '{condition}' -a {verb} -d {_quoted(SUMMARIES[name])}")
            seen = f"__fish_seen_subcommand_from {noun}; and __fish_seen_subcommand_from {verb}"
        else:
            lines.append(
                f"complete -c lamella -n 'not __fish_seen_subcommand_from {every}' -a {name} -d {_quoted(SUMMARIES[name])}"
            )
            seen = f"__fish_seen_subcommand_from {noun}"
        for word in words:
            kind = f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}"
            lines.append(f"complete -c lamella -n '{seen}' {kind}")
    lines += [f"complete -c lamella -n 'not __fish_seen_subcommand_from {every}' -a {noun}" for noun in NOUNS]
    takers = dict.fromkeys(name.partition(" ")[2] or name for name in _INSTANCE if name != "device ls")
    lines.append(f"complete -c lamella -n '__fish_seen_subcommand_from {' '.join(takers)}' -a '({_ASK})'")
    for noun in ("volume", "snapshot", "pool", "network", "router", "address", "firewall", "balancer", "image"):
        verbs = " ".join(name.partition(" ")[2] for name in _NAMED[noun] if name.startswith(f"{noun} "))
        seen = f"__fish_seen_subcommand_from {noun}; and __fish_seen_subcommand_from {verbs}"
        lines.append(f"complete -c lamella -n '{seen}' -a '(lamella {noun} ls -o name 2>/dev/null)'")
    lines.append("complete -c lamella -n '__fish_seen_subcommand_from cp import run create attach' -F")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _options(parser: "Parser") -> None:
    parser.positional("shell", choices=("bash", "zsh", "fish"))


def _completion(options: "Options") -> int:
    sys.stdout.write({"bash": bash, "zsh": zsh, "fish": fish}[options.shell]())
    return 0


COMMANDS: "dict[str, Command]" = {"completion": (_options, _completion)}
