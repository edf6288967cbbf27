# The demo, as ./dev demo runs it: every line is a command that you can type yourself.
set -euo pipefail
show() { printf '\n\033[36m$ %s\033[0m\n' "$*" >&2; "$@"; }

show lamella doctor
show lamella image build debian:12
show lamella image ls

show lamella run --rm debian:12 -- cat /etc/os-release
show lamella run --rm --isolation microvm debian:12 -- uname -r
printf '\n(the host runs %s)\n' "$(uname -r)"

show lamella run -d --name web --cpu 0.5 --memory 256MiB debian:12 -- sleep infinity
show lamella run -d --name cell --isolation microvm --cpu 1 --memory 512MiB debian:12 -- sleep infinity
show lamella exec web -- sh -c 'cat /proc/self/uid_map; id'
show lamella exec cell -- sh -c 'uname -r; id'
show lamella ps
show lamella contract web
show lamella contract cell
show lamella explain cell
show lamella rm --force web cell
